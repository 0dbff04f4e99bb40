"""GPU paths, on a GPU where there is one, and without: on a pretended one (`tests.gpus`).

Every kind of problem is trained by `fit`, with all its measurements. Where it is pretended, the
CPU computes on tensors that claim to be on a GPU. So a test fails where

- tensors or generators of both devices meet, or numpy is given a tensor of the GPU;
- a step makes the host wait for the GPU more often than `ALLOWED`;
- code relies on what ``.to(device)`` of the CPU is, the same tensor and not a copy: the trained
  parameters must have the same bits as without a GPU.

A pretended GPU cannot show whether kernels are right, or are there for every type; whether they,
cuDNN's above all, give the same bits twice; how bfloat16 is rounded, and which operations autocast
for the GPU lowers; how much memory is needed; how long anything takes; and where kernels wait by
themselves, other than by the operations that `tests.gpus` lists.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resnet_limits.classification_settings import Precision
from resnet_limits.problem import Context
from resnet_limits.spec import load_study, study_names
from resnet_limits.testing import assert_resumes
from resnet_limits.train import fit
from tests.gpus import pretended_gpu, real_gpu
from tests.studies import CPU, configuration

CUDA = Context(torch.device("cuda"), Path("data"))
REAL = torch.cuda.is_available()
TORCH = {"backend": "torch"}  # what a GPU uses
SHORT = {"steps": 8, "probes": 2}  # so that some steps do not follow a measurement
SPIRALS = {"gram_probes": 2, "seed": [0, 1], "n_train": [8, 32], "boundary_n": [8]}

FLOAT32 = {"precision": {"cpu": "float32", "cuda": "float32"}}

# Study, experiment, run of scale smoke, other settings.
CASES = {
    "spirals": ("two_spirals", "rate", "constant", SHORT | SPIRALS),
    "spirals_per_step": ("two_spirals", "rate", 0, SHORT | SPIRALS | {"field": "per_step"}),
    "spirals_frozen": ("two_spirals", "rate", 0, SHORT | SPIRALS | {"field": "frozen"}),
    "vanilla": ("sorted_tau", "resnet20", "resnet20_vanilla_seed0", {}),
    "sorted_tau": ("sorted_tau", "resnet20", "resnet20_sorted_tau_seed0", {}),
    "steps": ("sorted_tau", "steps_or_sorting", "resnet20_steps_seed0", {}),
    "cost": ("sorted_tau", "cost", 0, {}),
    "expansion": ("sorted_tau", "expansion", 0, {"steps": 8, "depth": [4]}),
    "gradients": ("sorted_tau", "gradients", 0, SHORT | {"depth": [4]}),
    "particles": ("two_spirals", "theory", 0, SHORT),
    "large_depth": ("weight_smoothness", "large_depth", 0, TORCH | {"steps": 8, "times": [8]}),
    "long_time": ("weight_smoothness", "long_time", 0, TORCH | SHORT | {"times": [8]}),
    "kink": ("weight_smoothness", "relu_counterexample", 0, TORCH | SHORT),
    "deep_convolution": ("weight_smoothness", "cifar", 0, TORCH),
    "width": ("rff_width", "width", 0, SHORT | {"bound_probes": 2, "width": [8], "draw": [0]}),
    "flow_rkhs": ("rff_width", "mnist_layers", "rkhs_layers2_pretraining1_seed0", {}),
    "flow_shl": ("rff_width", "mnist_layers", "shl_layers2_pretraining1_seed0", {}),
    "blocks_rkhs": ("rff_width", "cifar", "rkhs_layers1_seed0", FLOAT32),
    "blocks_shl": ("rff_width", "cifar", "shl_layers1_seed0", FLOAT32),
}
# Where sums round differently since a copy has other strides.
ROUNDED = {"particles": (1e-12, 1e-14)} | dict.fromkeys(("blocks_rkhs", "blocks_shl"), (1e-3, 1e-5))
# How often a step makes the host wait where it must. A step right after a measurement may: the
# measurement has just done so. An epoch's first step is one, and copies its order of images. Not
# counted is torch.cuda.synchronize, by which the cost of a step is measured.
ALLOWED = {
    "sorted_tau": 1,  # for the order of blocks, which Python's loop must know
    "cost": 1,  # for the order of blocks
    "width": 2,  # of infinite width: how many centres there are, and which points become centres
}


@pytest.fixture(params=["pretended", "real"])
def gpu(request, monkeypatch):
    """A context in which `CUDA` is a GPU, and which counts how often the host waits for it."""
    if (request.param == "real") != REAL:
        pytest.skip("needs a GPU" if request.param == "real" else "there is a real GPU")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # problems set it
    return real_gpu if REAL else pretended_gpu


class Steps:
    """What has made the host wait for the GPU, by step.

    A step lasts until the next step or measurement begins; those right after a measurement are
    left out.
    """

    def __init__(self, problem):
        self.waits, self.free = [], []
        self.note = self.free.append
        self.measured = True
        optimizer = problem.optimizer
        # The first call of a step.
        optimizer.zero_grad = partial(self._begin, optimizer.zero_grad)
        problem.probes = [
            replace(probe, measure=partial(self._measure, probe.measure))
            for probe in problem.probes
        ]

    def _begin(self, zero_grad, **options):
        if not self.measured:
            self.waits.append([])
        self.note = (self.free if self.measured else self.waits[-1]).append
        self.measured = False
        zero_grad(**options)

    def _measure(self, measure):
        self.note, self.measured = self.free.append, True
        return measure()


def build(config, context):
    study = load_study(config.key.study)
    name = study.experiments[config.key.experiment].problem
    return study.load("problems", name)(config.settings, context)


def case_config(case):
    study, experiment, run, changes = CASES[case]
    config = configuration(study, experiment, run, **changes)
    precision = getattr(config.settings, "precision", None)
    if isinstance(precision, Precision):  # the GPU's for both
        changes = changes | {"precision": {"cpu": precision.cuda, "cuda": precision.cuda}}
    return configuration(study, experiment, run, **changes)


def trained(problem):
    """Return copies of what the optimizer trains, on the CPU."""
    groups = problem.optimizer.param_groups
    return [p.detach().cpu().clone() for group in groups for p in group["params"]]


@pytest.mark.parametrize("case", CASES)
def test_training_on_a_gpu(case, gpu, tmp_path):
    config = case_config(case)
    steps = None
    with gpu(lambda line: steps and steps.note(line)):
        problem = build(config, CUDA)
        steps = Steps(problem)
        fit(problem, config, "", tmp_path / "gpu", checkpoint_seconds=float("inf"))
        on_gpu = trained(problem)
    assert steps.waits, "no step that does not follow a measurement"
    for lines in steps.waits:
        assert len(lines) <= ALLOWED.get(case, 0), lines
    if not REAL:
        reference = build(config, CPU)
        fit(reference, config, "", tmp_path / "cpu", checkpoint_seconds=float("inf"))
        rtol, atol = ROUNDED.get(case, (0, 0))
        for one, other in zip(on_gpu, trained(reference), strict=True):
            torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", ["spirals", "vanilla", "width"])
def test_resuming_on_a_gpu(case, gpu, tmp_path):
    with gpu(lambda _: None):
        assert_resumes(lambda: build(case_config(case), CUDA), tmp_path, after=[3])


# What trains nothing on a device: torchdyn's networks, and networks that are only measured.
LEFT_OUT = {("two_spirals", "SolversProblem"), ("weight_smoothness", "PublishedProblem")}


def test_every_kind_of_problem_is_a_case():
    known = {
        (study, spec.problem)
        for study in study_names()
        for spec in load_study(study).experiments.values()
    }
    cases = {(s, load_study(s).experiments[e].problem) for s, e, *_ in CASES.values()}
    assert cases == known - LEFT_OUT


HOST = torch.arange(3.0)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + HOST,
        lambda x: torch.cat([x, torch.zeros(1)]),
        lambda x: torch.stack([x[0], torch.zeros(())]),
        lambda x: x.mul_(HOST),
        lambda x: torch.add(HOST, 1, out=x),
        lambda x: torch.add(x[0], 1, out=torch.zeros(())),
        lambda x: torch.zeros(()).add_(x[0]),
        lambda x: x.uniform_(generator=torch.Generator()),
        lambda x: torch.rand(3, generator=torch.Generator(), device=x.device),
        lambda x: x @ torch.ones(3),
        lambda x: x + torch.zeros_like(HOST),
        lambda x: np.asarray(x),
        lambda x: x.numpy(),
    ],
)
def test_mistakes_fail(mistake, gpu):
    with gpu(lambda _: None):
        x = HOST.to("cuda")
        with pytest.raises((RuntimeError, TypeError)):
            mistake(x)


@pytest.mark.parametrize(
    ("waits", "call"),
    [
        (True, lambda x: x[0].item()),
        (True, lambda x: int(x[0])),
        (True, lambda x: bool(x.all())),
        (True, lambda x: x.cpu()),
        (True, lambda x: x.tolist()),
        (True, lambda x: x.nonzero()),
        (True, lambda x: x[x > 0]),
        (True, lambda x: torch.equal(x, x)),
        (True, lambda x: HOST.to(x)),
        (True, lambda x: x.copy_(HOST)),
        (True, lambda x: torch.tensor([1.0], device=x.device)),
        (False, lambda x: x + 1 + torch.tensor(2.0)),
        (False, lambda x: torch.where(x > 0, x, 0.0)),
        (False, lambda x: x.masked_fill_(x > 0, 1.0)),
        (False, lambda x: x[x.argsort()] + x.new_zeros(3) + torch.ones(3, device=x.device)),
        (False, lambda x: x.to("cuda", torch.float64).to(x)),
        (False, lambda x: operator.setitem(x, x.long(), 1.0)),
        (False, lambda x: x[1:].fill_(torch.tensor(1.0))),
    ],
)
def test_what_makes_the_host_wait_is_noted(waits, call, gpu):
    lines = []
    with gpu(lines.append):
        x = HOST.to("cuda")
        lines.clear()
        call(x)
    assert bool(lines) == waits


def test_copies_of_a_gpu_are_no_views(gpu):
    with gpu(lambda _: None):
        host = torch.zeros(3)
        moved = host.to("cuda")
        assert moved.is_cuda and not host.is_cuda and moved[1:].device.type == "cuda"
        moved.add_(1)
        back = moved.cpu()
        moved.add_(1)
        assert host.tolist() == [0, 0, 0] and back.tolist() == [1, 1, 1]


def test_gradients_are_on_the_gpu(gpu):
    with gpu(lambda _: None):
        x = torch.ones(3, device="cuda", requires_grad=True)
        network = torch.nn.Linear(3, 2).to("cuda")
        torch.autograd.backward(F.cross_entropy(network(x)[None], torch.tensor([0]).to("cuda")))
        assert all(p.grad.is_cuda for p in [x, *network.parameters()])
