"""Weight smoothness on images: what is measured, and contrasts of planted cells."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from resnet_limits.claims import VERDICTS, judge
from resnet_limits.models.deep_convolution import DeepConvolution
from resnet_limits.models.smoothness import interpolate, without
from resnet_limits.spec import load_study
from resnet_limits.stats import log_line
from resnet_limits.studies.weight_smoothness import image_tables
from resnet_limits.testing import assert_run_resumes
from tests.studies import PlantedRun, configuration, draw_figures, make_tables, smoke_runs

STUDY = load_study("weight_smoothness")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return smoke_runs("weight_smoothness", folder, ["cifar", "smoothness_over_depth"])


def test_resumed_training_ends_with_the_same_bits(tmp_path):
    config = configuration("weight_smoothness", "cifar", "gelu_weight_tied_seed0")
    assert_run_resumes(config, tmp_path)


def test_tables_and_figures_of_all_runs_and_of_every_run_alone(runs):
    alone = [{name: [run]} for name, some in runs.items() for run in some]
    for some in (runs, {"cifar": runs["cifar"]}, *alone):
        made = make_tables("weight_smoothness", some)
        for table in made.values():
            assert set(table["dataset"]) <= {"digits"}
            assert not table.duplicated().any()
        draw_figures("weight_smoothness", made)


def cell(activation, init, seed, ratios, accuracy, depth=8, **training):
    """Return a stand-in for a run of `cifar` that ended like this."""
    metrics = pd.DataFrame(
        {"step": [0, 9], "seed": seed, "epoch": [0, 3]}
        | {"test_error": [90.0, 100 - accuracy], "train_error": [np.nan, 1.0]}
    )
    rows = [(0, "conv1", 0.0), (0, "conv2", 0.0), (9, "conv1", ratios[0]), (9, "conv2", ratios[1])]
    weights = pd.DataFrame(rows, columns=["step", "convolution", "von_neumann_ratio"])
    weights = weights.assign(seed=seed, epoch=weights["step"] // 3, mean_distance=ratios[0])
    weights = weights.assign(largest_distance=2 * ratios[0])
    paths = pd.concat([weights.assign(path=path) for path in ("weights", "update", "new")])
    settings = {"train_images": 100, "epochs": 3, "batch": 4, "learning_rate": 0.1} | training
    settings |= {"activation": activation, "init": init, "seed": seed, "depth": depth}
    change = pd.DataFrame({"step": 9, "seed": seed, "factor": [2, 4], "change": 1 / depth})
    change = change.assign(accuracy=50.0, deeper_accuracy=40.0)
    return PlantedRun(settings, metrics=metrics, smoothness=paths, transfer=change)


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
    assert row["roughest_smooth"] == pytest.approx(0.01)
    assert row["smoothest_rough"] == pytest.approx(0.5)
    assert row["process_ratio"] == pytest.approx(0.2)
    assert row["log_distance"] == pytest.approx(-4)
    assert row["gelu_gain"] == pytest.approx(50)
    assert row["rough_gain"] == pytest.approx(4)

    verdicts = image_tables.table1(runs).set_index(["activation", "init"])
    tested = verdicts.dropna(subset="paper_smooth")
    assert (tested["smooth"] == tested["paper_smooth"].astype(bool)).all()
    assert not verdicts.loc[("gelu", "gaussian_process"), "smooth"]
    assert tested["paper_test_accuracy"].isna().all()


def test_scaling_compares_only_networks_that_were_trained_alike():
    ratios = {depth: (5 / depth**2, 3 / depth**2) for depth in (16, 32, 64)}
    tied = ("gelu", "weight_tied", 0)
    deep = [cell(*tied, ratios[depth], 50.0, depth) for depth in (16, 64)]
    other = [cell(*tied, (1.0, 1.0), 50.0, depth, epochs=9) for depth in (16, 32)]
    runs = {"cifar": [cell(*tied, ratios[32], 50.0, 32), *other], "smoothness_over_depth": deep}
    points = image_tables.over_depth(runs)
    assert set(points["epochs"]) == {3}
    slopes = image_tables.depth_slopes(runs).set_index("measure")
    assert slopes["depths"].tolist() == [3, 3]
    assert slopes.loc["ratio", "slope"] == pytest.approx(-2)
    assert slopes.loc["change", "slope"] == pytest.approx(-1)


def test_interpolated_weights_are_a_line_s_own():
    depth, factor = 10, 4
    layer = torch.arange(1.0, depth + 1)
    line = ((layer - 0.5) / depth)[:, None, None] * torch.tensor([[2.0, -1.0]])
    finer = interpolate(line, factor)
    s = (torch.arange(1.0, factor * depth + 1) - 0.5) / (factor * depth)
    inner = (s >= 0.5 / depth) & (s <= 1 - 0.5 / depth)
    torch.testing.assert_close(finer[inner, 0, 0], 2 * s[inner])
    assert finer.shape == (40, 1, 2)
    torch.testing.assert_close(finer[0], line[0])


def test_new_part_of_weights_is_orthogonal_to_their_start():
    start, step = torch.randn(2, 7, 3, 3)
    new = without(0.3 * start + step, start)
    assert float((new * start).sum()) == pytest.approx(0, abs=1e-4)
    assert without(0.3 * start, start).abs().max() < 1e-5


def test_deepened_network_is_a_finer_discretization():
    """Layers that all are alike solve one ODE, whose error is O(1/L)."""
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    changes = []
    for depth in (8, 16, 32):
        source = torch.Generator().manual_seed(0)
        network = DeepConvolution(depth, "gelu", "weight_tied", source, backend="torch").eval()
        assert torch.equal(network.deepened(2)(x), network(x))  # bn2 is 0, and layers are nothing
        nn.init.constant_(network.bn2_weight, 3.0)
        deeper = network.deepened(2)
        assert deeper.depth == 2 * depth and network.depth == depth
        changes.append(torch.dist(deeper(x), network(x)).item())
    frame = pd.DataFrame({"depth": [8, 16, 32], "change": changes})
    assert log_line(frame, "depth", "change")[0].slope.value == pytest.approx(-1, abs=0.15)


def test_weights_are_looked_at_before_and_after_training(runs):
    for run in runs["cifar"]:
        paths = run.measurements("smoothness")
        seen = paths[paths["path"] == "weights"].set_index(["epoch", "convolution"])
        update = paths[paths["path"] == "update"].set_index(["epoch", "convolution"])
        assert (update.loc[0, "largest_distance"] == 0).all()
        start, end = seen.loc[0], seen.loc[run.settings["epochs"]]
        tied = run.settings["init"] == "weight_tied"
        assert (start["von_neumann_ratio"] == 0).all() == tied
        if tied:  # an update of equal layers is as smooth as they become
            moved = update.loc[run.settings["epochs"], "von_neumann_ratio"]
            np.testing.assert_allclose(moved, end["von_neumann_ratio"], rtol=1e-3)
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
            table = made[claim.table].drop(columns="protocol", errors="ignore")
            found = judge(claim, table.assign(dataset="real"), "paper")
            assert found.verdict in VERDICTS[:3] or claim.id == "rough_scaling"
