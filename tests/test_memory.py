"""What can never fit into memory is refused before anything is allocated."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from resnet_limits import memory
from resnet_limits.errors import UserError
from resnet_limits.memory import require_memory, total_memory
from resnet_limits.settings import build, to_json
from resnet_limits.spec import TRAINED_SCALES, load_study, study_names

CPU = torch.device("cpu")
EXPERIMENTS = [(study, name) for study in study_names() for name in load_study(study).experiments]
# Numbers that no memory grows with: seeds, and how long or how often something is done.
FREE = {"seed", "draw", "data_seed", "steps", "gram_n_max", "kappa_states_max"}
# Numbers that something else limits: a list that is given, or the images there are.
LIMITED = {"boundary_n", "measured", "times", "limit_depth", "batch", "transfer_images"}
HUGE = 10**12


def paper(study, experiment):
    return next(iter(load_study(study).experiment(experiment, "paper").runs().values()))


def counts(values):
    """Yield the settings that are whole numbers, or lists of them."""
    for name, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        if numbers and all(type(number) is int for number in numbers):
            yield name


@pytest.mark.parametrize(("study", "experiment"), EXPERIMENTS)
def test_every_size_can_be_too_large(study, experiment):
    config = paper(study, experiment)
    values = to_json(config.settings)
    for name in set(counts(values)) - FREE - LIMITED:
        huge = [HUGE] if isinstance(values[name], list) else HUGE
        try:
            settings = build(type(config.settings), {**values, name: huge}, "")
        except UserError:
            continue  # what is not allowed at all
        if name in ("alpha", "states") and values["embedding"] != {"states": "lifting"}.get(name):
            continue  # not used
        if (experiment, name) == ("matched", "depth"):
            continue  # an untrained field keeps no states
        with pytest.raises(UserError, match=rf"{name}.*: needs at least .* GB of memory"):
            require_memory(replace(config, settings=settings), CPU)


@pytest.mark.parametrize("scale", TRAINED_SCALES)
def test_every_run_fits_into_what_it_asks_for(scale):
    for study in study_names():
        spec = load_study(study)
        for config in spec.runs(scale):
            asked = spec.experiments[config.key.experiment].resources.mem_mb
            assert config.largest_need[1] < asked * 10**6
            require_memory(config, CPU)


MODERATE = {
    ("two_spirals", "rate"): {"n_train": [8000], "seed": [0], "boundary_n": [], "gram_n_max": 0},
    ("weight_smoothness", "large_depth"): {"depth": [2048], "limit_depth": 0},
    ("sorted_tau", "expansion"): {
        "depth": [64],
        "samples": 512,
        "activation": ["tanh"],
        "order": 3,
    },
    ("rff_width", "width"): {"samples": 64, "width": [1024], "capacity": 24},
}
TRAIN = r"""
import json, re, sys, torch
from pathlib import Path
from resnet_limits.problem import Context
from resnet_limits.spec import load_study
content = json.loads(sys.argv[1])
study = load_study(content["study"])
config = study.config(content, "test")
name = study.experiments[config.key.experiment].problem
# The kernel's own count of this process: getrusage also has the parent's, from before exec.
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
problem = study.load("problems", name)(config.settings, Context(torch.device("cpu"), Path("data")))
problem.optimizer.zero_grad()
problem.loss_and_grad()
for probe in problem.probes:
    if 0 in probe.steps:
        probe.measure()
print(config.largest_need[1], peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("study", "experiment"), MODERATE)
def test_estimates_are_lower_bounds(study, experiment):
    """One step and its measurements of runs of tens of megabytes."""
    content = paper(study, experiment).to_json()
    content["settings"] |= MODERATE[study, experiment]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(content)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    estimate, found = map(int, done.stdout.split())
    assert 5e6 < estimate < found


def test_memory_is_the_machines_or_what_a_container_may_use(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMIT", limit)
    whole = total_memory(CPU)
    assert 2**28 < whole < 2**50
    limit.write_text("max\n")
    assert total_memory(CPU) == whole
    limit.write_text("100000000\n")
    assert total_memory(CPU) == 10**8
