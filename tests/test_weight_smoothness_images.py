"""Weight smoothness on images: what is measured, and contrasts of planted cells."""

import math

import numpy as np
import pandas as pd
import pytest

from resnet_limits.claims import VERDICTS, judge
from resnet_limits.spec import load_study
from resnet_limits.studies.weight_smoothness import image_tables
from resnet_limits.testing import assert_run_resumes
from tests.studies import (
    PlantedRun,
    configuration,
    draw_figures,
    each_alone,
    make_tables,
    smoke_runs,
)

STUDY = load_study("weight_smoothness")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return smoke_runs("weight_smoothness", tmp_path_factory.mktemp("results"), ["cifar"])


def test_resumed_training_ends_with_the_same_bits(tmp_path):
    config = configuration("weight_smoothness", "cifar", "gelu_weight_tied_seed0")
    assert_run_resumes(config, tmp_path)


def test_tables_and_figures_of_all_runs(runs):
    made = make_tables("weight_smoothness", runs)
    for table in made.values():
        assert set(table["dataset"]) == {"digits"}
        assert not table.duplicated().any()
    draw_figures("weight_smoothness", made)


@pytest.mark.slow
def test_tables_and_figures_of_every_run_alone(runs):
    for alone in each_alone(runs):
        made = make_tables("weight_smoothness", alone)
        assert all("dataset" in table for table in made.values())
        draw_figures("weight_smoothness", made)


def cell(activation, init, seed, ratios, accuracy):
    """Return a stand-in for a run of `cifar` that ended like this."""
    metrics = pd.DataFrame(
        {"step": [0, 9], "seed": seed, "epoch": [0, 3]}
        | {"test_error": [90.0, 100 - accuracy], "train_error": [np.nan, 1.0]}
    )
    rows = [(0, "conv1", 0.0), (0, "conv2", 0.0), (9, "conv1", ratios[0]), (9, "conv2", ratios[1])]
    weights = pd.DataFrame(rows, columns=["step", "convolution", "von_neumann_ratio"])
    weights = weights.assign(seed=seed, epoch=weights["step"] // 3, mean_distance=ratios[0])
    frames = {"metrics": metrics, "smoothness": weights.assign(largest_distance=2 * ratios[0])}
    settings = {"activation": activation, "init": init, "seed": seed, "depth": 8}
    return PlantedRun(settings, **frames)


def test_contrasts_of_planted_cells():
    planted = {
        ("identity", "weight_tied"): ((0.001, 0.01), 30.0),
        ("identity", "iid"): ((1.0, 1.0), 31.0),
        ("gelu", "weight_tied"): ((0.0001, 0.001), 80.0),
        ("gelu", "iid"): ((1.0, 1.1), 85.0),
        ("relu", "weight_tied"): ((0.05, 0.5), 84.0),
        ("relu", "iid"): ((0.9, 0.8), 90.0),
        ("gelu", "gaussian_process"): ((0.2, 0.2), 10.0),
    }
    runs = {"cifar": [cell(*names, 0, *values) for names, values in planted.items()]}

    row = image_tables.extremes(runs).iloc[0]
    assert row["roughest_smooth"] == pytest.approx(-2)
    assert row["smoothest_rough"] == pytest.approx(math.log10(0.5))
    assert row["process_ratio"] == pytest.approx(math.log10(0.2))
    assert row["log_distance"] == pytest.approx(-4)
    assert row["gelu_gain"] == pytest.approx(50)
    assert row["rough_gain"] == pytest.approx(4)

    verdicts = image_tables.table1(runs).set_index(["activation", "init"])
    tested = verdicts.dropna(subset="paper_smooth")
    assert (tested["smooth"] == tested["paper_smooth"].astype(bool)).all()
    assert not verdicts.loc[("gelu", "gaussian_process"), "smooth"]
    assert tested["paper_test_accuracy"].isna().all()


def test_claims_and_tables_have_the_same_threshold():
    bounds = {claim.id: claim.bound for claim in STUDY.claims}
    threshold = pytest.approx(math.log10(image_tables.SMOOTH_BELOW))
    assert bounds["smooth_cells"].below == bounds["rough_cells"].above == threshold
    assert bounds["gaussian_process_cells"].below == threshold


def test_weights_are_looked_at_before_and_after_training(runs):
    for run in runs["cifar"]:
        seen = run.measurements("smoothness").set_index(["epoch", "convolution"])
        start, end = seen.loc[0], seen.loc[run.settings["epochs"]]
        tied = run.settings["init"] == "weight_tied"
        assert (start["von_neumann_ratio"] == 0).all() == tied
        assert (end["mean_distance"] != start["mean_distance"]).all()
        entries = run.measurements("entries")
        layers = entries.groupby(["epoch", "convolution", "entry"])["value"]
        assert (layers.count() == run.settings["depth"]).all()
        assert (layers.nunique().loc[0] == 1).all() == tied


def test_every_claim_can_be_judged(runs):
    """At a scale and on data that no claim is excused from."""
    made = make_tables("weight_smoothness", runs)
    for claim in STUDY.claims:
        if claim.table in made:
            found = judge(claim, made[claim.table].assign(dataset="real"), "paper")
            assert found.verdict in VERDICTS[:3]
            assert found.n > 0
