"""Weight smoothness: trainings of a few steps, and measures against known answers."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from resnet_limits.record import read_record, read_run

from resnet_limits import style, train
from resnet_limits.analysis import run_folder
from resnet_limits.claims import VERDICTS, judge
from resnet_limits.errors import UserError
from resnet_limits.models.activations import LayerRule
from resnet_limits.models.descent import DescendingChain, MovingWeights, train_chain
from resnet_limits.spec import load_study
from resnet_limits.stats import log_line
from resnet_limits.studies.weight_smoothness import (
    experiments,
    image_plots,
    image_tables,
    images,
    plots,
    tables,
    trajectory,
)
from tests.reference import chains as reference

STUDY = load_study("weight_smoothness")
CONTEXT = train.Context(torch.device("cpu"), Path())
RUNS = [(run["experiment"], run["run"]) for run in STUDY.runs("smoke")]
SHORT = {
    "large_depth": {},
    "more_seeds": {},
    "paper_scaling": {},
    "long_time": {"steps": 40, "times": [0, 5, 40]},
    "relu_counterexample": {"steps": 60},
    "cifar": {},
}


def config(experiment, run, **changes):
    resolved = STUDY.run("smoke", experiment, run)
    settings = resolved["settings"] | SHORT[experiment] | changes
    return resolved | {"settings": settings}


def problem(experiment, run, **changes):
    settings = SimpleNamespace(**config(experiment, run, **changes)["settings"])
    module, function = STUDY.builder(experiment)
    return getattr({"experiments": experiments, "images": images}[module], function)(
        settings, CONTEXT
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every smoke run after a few steps, by experiment."""
    folder = tmp_path_factory.mktemp("results")
    runs = {}
    for experiment, run in RUNS:
        short = config(experiment, run)
        train.train(short, run_folder(folder, short), CONTEXT, 1e9)
        runs.setdefault(experiment, []).append(read_run(run_folder(folder, short), short))
    return runs


def test_every_run_finishes(trained):
    for runs in trained.values():
        for run in runs:
            assert run.record["outcome"]["state"] == "finished"
            last = run.settings.get("steps", run.measurements()["step"].max())
            assert run.record["outcome"]["steps"] == last


def table_of(name, runs):
    """Make a table by its name, of the experiments that it reads."""
    function = getattr(tables, name, None) or getattr(image_tables, name)
    return function(
        {experiment: runs[experiment] for experiment in STUDY.tables[name]["experiments"]}
    )


@pytest.mark.parametrize("name", STUDY.tables)
def test_tables_are_tidy(trained, name):
    table = table_of(name, trained)
    assert len(table)
    assert set(table["dataset"]) <= {"gaussian", "one_sample", "digits"}
    assert not table.duplicated().any()


@pytest.mark.parametrize(("experiment", "run"), RUNS)
def test_tables_and_figures_of_every_run_alone(trained, experiment, run):
    alone = [other for other in trained[experiment] if other.folder.name == run]
    given = {name: [] for name in STUDY.experiments} | {experiment: alone}
    made = {
        name: table_of(name, given)
        for name, table in STUDY.tables.items()
        if experiment in table["experiments"]
    }
    assert all("dataset" in table for table in made.values())
    with style.applied():
        for name, figure in STUDY.figures.items():
            if set(figure["tables"]) <= set(made):
                draw = getattr(plots, name, None) or getattr(image_plots, name)
                draw(made).draw_without_rendering()


@pytest.mark.parametrize("tied", [True, False])
def test_successive_distance_is_the_largest_frobenius_norm(tied):
    start = torch.randn(1 if tied else 7, 3, 2)
    weights = MovingWeights(start, 7)
    weights.deviation.copy_(torch.randn(7, 3, 2))
    weights.renew()
    layers = weights.value.unbind(0)
    expected = max(torch.dist(a, b) for a, b in zip(layers[1:], layers, strict=False))
    assert torch.isclose(weights.successive_distance(), expected)


def path(depth):
    """Return a smooth path of matrices at s = (k - 1/2) / L, as weights."""
    s = ((torch.arange(depth, dtype=torch.float64) + 0.5) / depth)[:, None, None]
    weights = MovingWeights(torch.randn(1, 3, 2, dtype=torch.float64), depth)
    ones = torch.ones(1, 3, 2, dtype=torch.float64)
    weights.deviation.copy_(torch.sin(3 * s) * ones + s**2 * torch.arange(6.0).reshape(1, 3, 2))
    return weights


@pytest.mark.parametrize("measure", ["largest", "l2", "sup"])
def test_smooth_weights_have_slope_minus_one(measure):
    limit = path(2**14)
    rows = []
    for depth in (16, 32, 64, 128):
        weights = path(depth)
        l2, sup = weights.distances(limit)
        values = {"largest": weights.successive_distance(), "l2": l2, "sup": sup}
        rows.append({"depth": depth, "distance": float(values[measure])})
    line, _ = log_line(pd.DataFrame(rows), "depth", "distance")
    assert line.slope.value == pytest.approx(-1, abs=0.03)


def test_distances_to_the_limit_are_those_of_step_functions():
    coarse, fine = path(4), path(12)
    norms = [
        torch.dist(coarse.deviation[math.ceil((j + 1) * 4 / 12) - 1], fine.deviation[j])
        for j in range(12)
    ]
    l2, sup = coarse.distances(fine)
    assert torch.isclose(sup, max(norms))
    assert torch.isclose(l2, torch.stack(norms).square().mean().sqrt())


def test_largest_distance_remembers_every_iteration():
    """A distance that was larger between two measurements is not forgotten."""
    depths = problem("large_depth", "seed0")
    depths.step()
    deviation = depths.chains[0].V.deviation
    deviation[0] = 3.0
    depths.step()
    deviation[0] = 0.0
    measured = depths.measure()
    assert measured["V_largest"][0] == pytest.approx(3 * math.sqrt(deviation[0].numel()))
    assert measured["V_largest"][1] == 0


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    ("experiment", "run"),
    [("large_depth", "seed0"), ("long_time", "seed0"), ("cifar", "gelu_weight_tied_seed0")],
)
def test_resumed_run_has_the_same_bits(trained, tmp_path, experiment, run):
    whole = trained[experiment][0].folder
    broken = problem(experiment, run)
    step, taken = broken.step, []

    def interrupted_step():
        taken.append(1)
        if len(taken) == 7:
            raise Interrupted
        return step()

    broken.step = interrupted_step
    with pytest.raises(Interrupted):
        train.fit(broken, config(experiment, run), tmp_path, -1)  # a checkpoint every step
    train.fit(problem(experiment, run), config(experiment, run), tmp_path, -1)
    assert read_record(tmp_path / "record.json")["timing"]["resumed"] == 1
    for file in whole.glob("*.csv"):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_depths_share_data_and_first_weights():
    one, other = problem("large_depth", "seed0"), problem("paper_scaling", "seed0", depth=[2, 8])
    assert one.data.hash == other.data.hash
    assert problem("more_seeds", "seed1").data.hash != one.data.hash
    for chain in one.chains + other.chains:
        assert torch.equal(chain.W.value, one.chains[0].W.value[:1].expand(chain.depth, -1, -1))
        assert not chain.V.value.any()


@pytest.fixture
def arrays():
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    x, y = torch.randn(2, 9, 4, **options)
    return x, y, torch.randn(6, 5, 4, **options), 0.1 * torch.randn(6, 4, 5, **options)


def test_trajectory_is_that_of_the_naive_loop(arrays):
    before = [array.clone() for array in arrays]
    losses, W, _ = train_chain(*arrays, learning_rate=0.05, steps=20, backend="torch")
    assert losses.tolist() == pytest.approx(
        reference.losses(*arrays, LayerRule(1 / 6), 0.05, 20), rel=1e-10
    )
    assert losses[-1] < losses[0]
    assert not torch.equal(W, arrays[2])
    assert all(torch.equal(a, b) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("scaling", ["code", "paper"])
def test_trajectory_from_the_command_line(arrays, tmp_path, capsys, scaling):
    x, y, W, V = arrays
    file = tmp_path / "data.npz"
    np.savez(file, x=x, y=y, W=W[0])
    options = ["--depth", "6", "--learning-rate", "0.05", "--steps", "5", "--backend", "torch"]
    assert trajectory.main([str(file), *options, "--scaling", scaling]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step,loss"
    _, width, dimension = W.shape
    outer, inner = (width**-0.5, dimension**-0.5) if scaling == "paper" else (1, 1)
    rule = LayerRule(outer / 6, "gelu", inner)
    expected = reference.losses(x, y, W[:1].repeat(6, 1, 1), 0 * V, rule, 0.05, 5)
    assert [float(line.split(",")[1]) for line in lines[1:]] == pytest.approx(expected, rel=1e-10)


def test_trajectory_says_what_is_missing(arrays, tmp_path, capsys):
    x, y, W, V = arrays
    for content, words in (
        ({"x": x, "W": W}, "lacks the array 'y'"),
        ({"x": x, "y": y, "W": W[0]}, "give --depth"),
        ({"x": x, "y": y, "W": W, "V": V[:3]}, "3 layers where 6 are wanted"),
        ({"x": x[:, :2], "y": y, "W": W}, "need x"),
    ):
        np.savez(tmp_path / "data.npz", **content)
        assert trajectory.main([str(tmp_path / "data.npz"), "--backend", "torch"]) == 2
        assert words in capsys.readouterr().err


def test_experiment_trains_like_the_naive_loop():
    depths = problem("large_depth", "seed0", dtype="float64")
    chain = depths.chains[2]
    x, y, W, V = experiments.draw(depths_settings(dtype="float64"), torch.device("cpu"))
    tied = [weights.expand(chain.depth, -1, -1) for weights in (W, V)]
    expected = reference.losses(x, y, *tied, LayerRule(1 / chain.depth), 0.01, 4)
    losses = []
    for _ in range(5):
        losses.append(depths.step()[2].item())
        depths.optimizer.step()
    assert losses == pytest.approx(expected, rel=1e-10)


def depths_settings(**changes):
    return SimpleNamespace(**config("large_depth", "seed0", **changes)["settings"])


def test_quotient_is_the_rate_of_the_loss():
    """For a small step, minus the change of log loss over the time of the step."""
    chain = problem("long_time", "seed0", dtype="float64", learning_rate=1e-6)
    row = chain.measure().iloc[0]
    chain.optimizer.step()
    after = chain.measure().iloc[0]
    rate = math.log(row["loss"] / after["loss"]) / 1e-6
    assert row["quotient"] == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("target", [1.5, 4.0])
def test_closed_form_of_the_relu_limit_is_the_flow_s(target):
    output, time, step = 1.0, 0.0, 1e-4
    for count in range(1, 10001):

        def rate(u):
            return u**2 * (target - u)

        first = rate(output)
        second = rate(output + step * first / 2)
        third = rate(output + step * second / 2)
        output += step / 6 * (first + 2 * second + 2 * third + rate(output + step * third))
        time = count * step
        if count in (1, 100, 10000):
            expected = 2 * math.log(output)
            assert tables.relu_limit_gap(time, 1.0, target) == pytest.approx(expected, rel=1e-8)
    assert tables.relu_limit_gap(50, 1.0, target) == pytest.approx(2 * math.log(target))


def test_closed_form_of_the_relu_chain_is_the_trained_one():
    kink = problem("relu_counterexample", "all", depth=[8], steps=500, target=[1.5, 2.0])
    for _ in range(500):
        kink.step()
        kink.optimizer.step()
    rows = kink.measure().query("activation == 'relu'")
    expected = [tables.relu_gap(8, target) for target in (1.5, 2.0)]
    assert rows["gap"].tolist() == pytest.approx(expected, rel=1e-3)
    assert tables.relu_gap(10**7, 2.0) == pytest.approx(2 * math.log(2), rel=1e-5)


def test_inactive_layers_never_move():
    kink = problem("relu_counterexample", "all")
    before = kink.chains[0].W.value.clone()
    for _ in range(10):
        kink.step()
        kink.optimizer.step()
    kink.step()
    after = kink.chains[0].W.value
    assert torch.equal(after[:, ::2], before[:, ::2])
    assert (after[:, 1::2] > before[:, 1::2]).all()


def test_exponential_and_exponent_of_growth():
    time = pd.Series([1.0, 2.0, 4.0, 8.0], index=[10, 20, 40, 80])
    exact = 3 * time * np.exp(0.5 * time)
    guess = tables._exponential(time, exact, 10, 20)
    assert guess.tolist() == pytest.approx(exact.tolist())


def test_depths_that_do_not_divide_the_limit_are_refused():
    with pytest.raises(UserError, match="multiple of depth 3"):
        problem("large_depth", "seed0", depth=[2, 3])
    with pytest.raises(UserError, match="after the last"):
        problem("long_time", "seed0", times=[0, 41])


def test_float32_deviations_resolve_what_float32_weights_do_not():
    """At the second iteration neighbours differ by far less than the rounding of W."""
    distances = {}
    for dtype in ("float32", "float64"):
        chain = problem("large_depth", "seed0", dtype=dtype)
        for _ in range(2):
            chain.step()
            chain.optimizer.step()
        distances[dtype] = chain.measure()["W_largest"].to_numpy()
    np.testing.assert_allclose(distances["float32"], distances["float64"], rtol=1e-2)


def test_chain_of_one_type_refuses_another():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="one floating type"):
        DescendingChain(
            x, x, torch.zeros(1, 4, 2).double(), torch.zeros(1, 2, 4), 4, LayerRule(0.25)
        )


def test_every_claim_can_be_judged(trained):
    """At a scale and on data that no claim is excused from."""
    for claim in STUDY.claims:
        table = table_of(claim["table"], trained).assign(dataset="real")
        result = judge(claim, table, "paper")
        assert result["verdict"] in VERDICTS[:3]
        assert result["n"] > 0


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
    record = {"outcome": {"diverged": []}, "data": {"name": "planted"}}
    settings = {"activation": activation, "init": init, "seed": seed, "depth": 8}
    return SimpleNamespace(
        settings=settings, record=record, measurements=lambda name="metrics": frames[name].copy()
    )


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
    bounds = {claim["id"]: claim["bound"] for claim in STUDY.claims}
    threshold = pytest.approx(math.log10(image_tables.SMOOTH_BELOW))
    assert bounds["smooth_cells"]["below"] == bounds["rough_cells"]["above"] == threshold
    assert bounds["gaussian_process_cells"]["below"] == threshold


def test_weights_are_looked_at_before_and_after_training(trained):
    for run in trained["cifar"]:
        seen = run.measurements("smoothness").set_index(["epoch", "convolution"])
        start, end = seen.loc[0], seen.loc[run.settings["epochs"]]
        tied = run.settings["init"] == "weight_tied"
        assert (start["von_neumann_ratio"] == 0).all() == tied
        assert (end["mean_distance"] != start["mean_distance"]).all()
        entries = run.measurements("entries")
        layers = entries.groupby(["epoch", "convolution", "entry"])["value"]
        assert (layers.count() == run.settings["depth"]).all()
        assert (layers.nunique().loc[0] == 1).all() == tied


def test_measuring_after_the_last_epoch_is_refused():
    with pytest.raises(UserError, match="measured: 5 is after"):
        problem("cifar", "relu_iid_seed0", measured=[0, 5])
