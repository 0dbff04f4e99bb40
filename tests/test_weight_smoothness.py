"""Weight smoothness: dense chains trained for a few steps, and measures of known answers."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from resnet_limits.claims import VERDICTS, judge
from resnet_limits.errors import UserError
from resnet_limits.models.activations import LayerRule
from resnet_limits.models.descent import DescendingChain, MovingWeights
from resnet_limits.spec import load_study
from resnet_limits.stats import log_line
from resnet_limits.studies.weight_smoothness import problems, tables
from resnet_limits.testing import assert_run_resumes
from tests import studies
from tests.reference import chains as reference
from tests.studies import (
    configuration,
    draw_figures,
    each_alone,
    make_tables,
    smoke_runs,
    train,
)

STUDY = load_study("weight_smoothness")
SHORT = {"long_time": {"steps": 40, "times": [0, 5, 40]}, "relu_counterexample": {"steps": 60}}
EXPERIMENTS = [name for name in STUDY.experiments if name != "cifar"]  # in a file of its own


def short(experiment, run, **changes):
    settings = SHORT.get(experiment, {}) | changes
    return configuration("weight_smoothness", experiment, run, **settings)


def problem(experiment, run, **changes):
    settings = SHORT.get(experiment, {}) | changes
    return studies.problem("weight_smoothness", experiment, run, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every smoke run after a few steps, by experiment."""
    folder = tmp_path_factory.mktemp("results")
    return smoke_runs("weight_smoothness", folder, EXPERIMENTS, **SHORT)


def test_every_run_finishes(trained):
    for runs in trained.values():
        for run in runs:
            assert run.record.outcome.state == "finished"
            assert run.record.outcome.steps == run.settings["steps"]


def test_tables_and_figures_of_all_runs(trained):
    made = make_tables("weight_smoothness", trained)
    for table in made.values():
        assert len(table)
        assert set(table["dataset"]) <= {"gaussian", "one_sample"}
        assert not table.duplicated().any()
    draw_figures("weight_smoothness", made)


@pytest.mark.slow
def test_tables_and_figures_of_every_run_alone(trained):
    for alone in each_alone(trained):
        made = make_tables("weight_smoothness", alone)
        assert all("dataset" in table for table in made.values())
        draw_figures("weight_smoothness", made)


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
    depths.loss_and_grad()
    deviation = depths.chains[0].V.deviation
    deviation[0] = 3.0
    depths.loss_and_grad()
    deviation[0] = 0.0
    measured = depths.measure()
    assert measured["V_largest"][0] == pytest.approx(3 * math.sqrt(deviation[0].numel()))
    assert measured["V_largest"][1] == 0


@pytest.mark.parametrize(
    ("experiment", "run"),
    [("large_depth", "seed0"), ("long_time", "seed0"), ("relu_counterexample", "all")],
)
def test_resumed_training_ends_with_the_same_bits(tmp_path, experiment, run):
    assert_run_resumes(short(experiment, run), tmp_path)


def test_depths_share_data_and_first_weights():
    one, other = problem("large_depth", "seed0"), problem("paper_scaling", "seed0", depth=[2, 8])
    assert one.data.hash == other.data.hash
    assert problem("more_seeds", "seed1").data.hash != one.data.hash
    for chain in one.chains + other.chains:
        assert torch.equal(chain.W.value, one.chains[0].W.value[:1].expand(chain.depth, -1, -1))
        assert not chain.V.value.any()


def test_experiment_trains_like_the_naive_loop():
    depths = problem("large_depth", "seed0", dtype="float64")
    chain = depths.chains[2]
    settings = short("large_depth", "seed0", dtype="float64").settings
    x, y, W, V = problems.draw(settings, torch.device("cpu"))
    tied = [weights.expand(chain.depth, -1, -1) for weights in (W, V)]
    expected = reference.losses(x, y, *tied, LayerRule(1 / chain.depth), 0.01, 4)
    assert train(depths, 5)[:, 2].tolist() == pytest.approx(expected, rel=1e-10)


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
    train(kink, 500)
    rows = kink.measure().query("activation == 'relu'")
    expected = [tables.relu_gap(8, target) for target in (1.5, 2.0)]
    assert rows["gap"].tolist() == pytest.approx(expected, rel=1e-3)
    assert tables.relu_gap(10**7, 2.0) == pytest.approx(2 * math.log(2), rel=1e-5)


def test_inactive_layers_never_move():
    kink = problem("relu_counterexample", "all")
    before = kink.chains[0].W.value.clone()
    train(kink, 10)
    kink.loss_and_grad()
    after = kink.chains[0].W.value
    assert torch.equal(after[:, ::2], before[:, ::2])
    assert (after[:, 1::2] > before[:, 1::2]).all()


def test_exponential_and_exponent_of_growth():
    time = pd.Series([1.0, 2.0, 4.0, 8.0], index=[10, 20, 40, 80])
    exact = 3 * time * np.exp(0.5 * time)
    guess = tables._exponential(time, exact, 10, 20)
    assert guess.tolist() == pytest.approx(exact.tolist())


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="multiple of depth 3"):
        problem("large_depth", "seed0", depth=[2, 3])
    with pytest.raises(UserError, match="41 is after the end"):
        problem("long_time", "seed0", times=[0, 41])


def test_float32_deviations_resolve_what_float32_weights_do_not():
    """At the second iteration neighbours differ by far less than the rounding of W."""
    distances = {}
    for dtype in ("float32", "float64"):
        chain = problem("large_depth", "seed0", dtype=dtype)
        train(chain, 2)
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
    made = make_tables("weight_smoothness", trained)
    for claim in STUDY.claims:
        if claim.table in made:
            found = judge(claim, made[claim.table].assign(dataset="real"), "paper")
            assert found.verdict in VERDICTS[:3]
            assert found.n > 0
