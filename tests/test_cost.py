"""Costs add up what records say."""

from __future__ import annotations

import pandas as pd
import pytest

from resnet_limits.cost import cost_table, study_costs
from resnet_limits.layout import Layout
from resnet_limits.runs import write_record
from resnet_limits.spec import load_study

STUDY = load_study("two_spirals")
METRICS = pd.DataFrame({"step": [0], "seed": [0], "loss": [0.5]})


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path)


def finish(layout, run, device, threads, hours):
    config = STUDY.experiment("depth", "paper").runs()[run]
    content = {
        "config": config.to_json(),
        "outcome": {"state": "finished", "steps": 0, "members": 1, "diverged": []},
        "data": {"name": "toy", "hash": "0"},
        "provenance": {
            "commit": "c",
            "sources": "s",
            "versions": {},
            "device": device,
            "threads": threads,
            "engine": "torch",
        },
        "timing": {
            "started": "now",
            "seconds": 3600 * hours,
            "resumed": 0,
            "peak_memory_mb": 1.0,
        },
    }
    write_record(layout.run(config.key), content, {"metrics": METRICS})


def test_hours_count_threads_on_a_cpu_and_nothing_else_on_a_gpu(layout):
    finish(layout, "depth10", "cpu", 4, 0.5)
    finish(layout, "depth20", "cuda:0", 4, 3.0)
    (depth,) = (cost for cost in study_costs(STUDY, "paper", layout) if cost.finished)
    assert (depth.experiment, depth.finished, depth.wanted) == ("depth", 2, 4)
    assert (depth.core_hours, depth.gpu_hours, depth.longest) == (2.0, 3.0, 3.0)


def test_what_has_not_run_is_not_measured(layout):
    finish(layout, "depth10", "cpu", 1, 2.0)
    lines = cost_table([STUDY], "paper", layout).splitlines()
    assert "| two_spirals | depth | paper | 1 of 4 | 2.00 | 0.00 | 2.00 |" in lines
    unmeasured = [line for line in lines if "not measured" in line]
    assert len(unmeasured) == len(STUDY.experiments) - 1
    assert "0 of" in unmeasured[0]
    assert lines[-1].endswith("| 2.00 | 0.00 | 2.00 |")
