"""Divergence is a result: tables, figures, verdicts and a report come of runs that all diverged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from resnet_limits import style
from resnet_limits.analysis import _diverged
from resnet_limits.spec import PACKAGE, load_study

pytestmark = pytest.mark.slow

# Whatever a study calls how far a step goes.
STEPS = re.compile(
    r"\b((?:learning|pretraining)_rate|step_size): ((?:&\w+ )?(?:\{value: )?)[0-9.e+-]+"
)
# Experiments whose steps cannot be too long: they have none, or are limited by stability.
LIMITED = {"cost", "published", "width", "embedding", "guarantee", "start"}
SATURATING = {"gradients", "expansion", "theory"}  # whose bounded activations keep losses finite
RUN_ALL = """
import sys, torch
from pathlib import Path
from resnet_limits.analysis import make_table
from resnet_limits.claims import judge_study
from resnet_limits.drawing import draw_figure
from resnet_limits.layout import Layout
from resnet_limits.problem import Context
from resnet_limits.report import write_report
from resnet_limits.spec import load_study
from resnet_limits.train import train

torch.set_num_threads(1)
study, layout = load_study(sys.argv[1]), Layout()
for config in study.runs("smoke"):
    train(config, layout.run(config.key), Context(torch.device("cpu"), Path("data")), 1e9)
for table in study.tables:
    make_table(study.name, table, "smoke", layout)
for figure in study.figures:
    draw_figure(study.name, figure, "smoke", layout)
judge_study(study.name, "smoke", layout)
write_report([study.name], "smoke", layout)
"""


def run_all(study, folder, experiments):
    """Run a study, some of whose experiments take steps of 1e35, with warnings as errors."""
    package = folder / "src" / "resnet_limits"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    path = package / "studies" / study / "study.yaml"
    text = path.read_text()
    for name in experiments:
        # An experiment has one entry in the protocol, and one of each scale.
        entries = re.compile(rf"^  +{name}:.*\n(?:(?:    .*)?\n)*", re.MULTILINE)
        text = entries.sub(lambda entry: STEPS.sub(r"\1: \g<2>1.0e+35", entry[0]), text)
    assert text != path.read_text()
    path.write_text(text)
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-W", "error", "-c", RUN_ALL, study]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("study", ["rff_width", "sorted_tau", "two_spirals", "weight_smoothness"])
def test_everything_that_diverges_is_judged_and_drawn(tmp_path, study):
    spec = load_study(study)
    changed = set(spec.experiments) - LIMITED
    folder = run_all(study, tmp_path, changed)
    results, figures = folder / "results/smoke", folder / "figures/smoke" / study
    for figure in spec.figures:
        assert (figures / f"{figure}.png").stat().st_size > 1000
    verdicts = json.loads((results / study / "claims.json").read_text(), parse_constant=pytest.fail)
    assert [verdict["id"] for verdict in verdicts] == [claim.id for claim in spec.claims]
    assert all(verdict["why"] for verdict in verdicts)
    assert (results / f"report-{study}.html").stat().st_size > 10000
    for path in results.rglob("*/record.json"):
        record = json.loads(path.read_text())
        if record["config"]["experiment"] in changed - SATURATING:
            assert record["outcome"]["diverged"], path
    for path in results.rglob("tables/*.csv"):
        assert "dataset" in pd.read_csv(path)


def test_a_figure_says_in_words_that_everything_diverged():
    gone = pd.DataFrame({"loss": [1.0, float("nan")], "diverged": True, "dataset": "toy"})
    half = gone.assign(diverged=[True, False])
    empty = gone[:0]
    assert style.nothing_to_draw([gone, empty]) == "every run diverged"
    assert style.nothing_to_draw([empty]) == "not run at this scale"
    assert style.nothing_to_draw([gone, half]) == style.nothing_to_draw([half]) == ""
    assert style.nothing_to_draw([gone.drop(columns="diverged")]) == ""
    assert style.notice("in words").axes[0].texts[0].get_text() == "in words"


def test_a_table_of_diverged_runs_says_so_even_if_nothing_is_left_of_them():
    rows = pd.DataFrame({"slope": [1.0, 2.0], "dataset": "toy"})
    assert _diverged(rows, "toy")["diverged"].tolist() == [True, True]
    left = _diverged(rows[:0], "toy")
    assert left["diverged"].tolist() == [True]
    assert left["dataset"].tolist() == ["toy"]
    assert left["slope"].isna().all()


def test_numbers_that_no_axis_could_show_are_left_out():
    table = pd.DataFrame({"loss": [1.0, 1e200, -1e300], "width": [1.0, 2.0, float("inf")]})
    found = style.drawable(table)
    assert found["loss"].isna().tolist() == [False, True, True]
    assert found["width"].tolist() == table["width"].tolist()
