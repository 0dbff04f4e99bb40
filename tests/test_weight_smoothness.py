"""Weight smoothness: dense chains trained for a few steps, and measures of known answers."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from resnet_limits.claims import VERDICTS, judge
from resnet_limits.errors import UserError
from resnet_limits.models.activations import LayerRule
from resnet_limits.models.chains import chain as forward
from resnet_limits.models.descent import DescendingChain, MovingWeights
from resnet_limits.spec import load_study
from resnet_limits.stats import log_line
from resnet_limits.studies.weight_smoothness import kink_tables, long_time_tables, problems, tables
from resnet_limits.testing import assert_run_resumes
from tests import studies
from tests.reference import chains as reference
from tests.studies import (
    PlantedRun,
    configuration,
    draw_figures,
    make_tables,
    smoke_runs,
    train,
)

STUDY = load_study("weight_smoothness")
BRIEF = {"steps": 40, "times": [0, 5, 40]}
SHORT = {
    "long_time": BRIEF,
    "long_time_depths": BRIEF,
    "overparametrization": BRIEF,
    "relu_counterexample": {"steps": 60},
    "softplus_kink": {"steps": 5},
}
IMAGES = ("cifar", "smoothness_over_depth", "published")  # in files of their own
EXPERIMENTS = [name for name in STUDY.experiments if name not in IMAGES]
RUNS = [(name, run) for name in EXPERIMENTS for run in STUDY.experiment(name, "smoke").runs()]


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
    for name, table in made.items():
        assert len(table), name
        assert set(table["dataset"]) <= {"gaussian", "one_sample"}
        assert not table.duplicated().any()
    draw_figures("weight_smoothness", made)


@pytest.mark.parametrize(("experiment", "run"), RUNS)
def test_tables_and_figures_of_every_run_alone(trained, experiment, run):
    alone = [other for other in trained[experiment] if other.folder.name == run]
    made = make_tables("weight_smoothness", {experiment: alone})
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
    assert problem("large_depth", "seed0", seed=1).data.hash != one.data.hash
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
            assert kink_tables.relu_limit_gap(time, 1.0, target) == pytest.approx(
                expected, rel=1e-8
            )
    assert kink_tables.relu_limit_gap(50, 1.0, target) == pytest.approx(2 * math.log(target))


def test_closed_form_of_the_relu_chain_is_the_trained_one():
    kink = problem("relu_counterexample", "all", depth=[8], steps=500, target=[1.5, 2.0])
    train(kink, 500)
    rows = kink.measure().query("activation == 'relu'")
    expected = [kink_tables.relu_gap(8, target) for target in (1.5, 2.0)]
    assert rows["gap"].tolist() == pytest.approx(expected, rel=1e-3)
    assert kink_tables.relu_gap(10**7, 2.0) == pytest.approx(2 * math.log(2), rel=1e-5)


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


def linear_chain(depth):
    """Return a chain without activation, of equal layers, and the matrix A of dh/ds = A h."""
    generator = torch.Generator().manual_seed(0)
    x, W, V = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((5, 3), (1, 4, 3), (1, 3, 4))
    )
    rule = LayerRule(1 / depth, "identity")
    return DescendingChain(x, x, W, V, depth, rule, backend="torch"), x, V[0] @ W[0]


def test_hidden_states_are_those_of_the_discretized_ode():
    deep, x, A = linear_chain(12)
    step = torch.eye(3, dtype=torch.float64) + A / 12
    states = deep.states(4)
    for index, layers in enumerate((3, 6, 9, 12)):
        expected = x @ torch.linalg.matrix_power(step, layers).mT
        torch.testing.assert_close(states[index], expected)


def test_output_of_fewer_layers_nears_the_solution_of_the_ode():
    deep, x, A = linear_chain(1024)
    solution = x @ torch.linalg.matrix_exp(A).mT
    depths = (64, 128, 256)
    errors = [torch.dist(deep.coarse_output(depth), solution).item() for depth in depths]
    frame = pd.DataFrame({"depth": depths, "error": errors})
    assert log_line(frame, "depth", "error")[0].slope.value == pytest.approx(-1, abs=0.05)


def test_chain_of_fewer_layers_takes_the_last_of_each_group():
    weights = path(12)
    W = weights.value.mT.contiguous()
    x = torch.randn(4, 3, dtype=torch.float64)
    deep = DescendingChain(x, x, W, weights.value, 12, LayerRule(1 / 12), backend="torch")
    every = slice(2, None, 3)
    expected = forward(x, W[every], weights.value[every], LayerRule(1 / 4), backend="torch")
    torch.testing.assert_close(deep.coarse_output(4), expected)


def test_distances_to_the_limit_vanish_for_the_limit_alone(trained):
    rows = trained["large_depth"][0].measurements().query("step > 0")
    limit = rows["depth"] == trained["large_depth"][0].settings["limit_depth"]
    for name in ("states", "output", "ode"):
        assert (rows.loc[limit, name] == 0).all()
        assert (rows.loc[~limit, name] > 0).all()


def test_least_quotient_is_that_of_the_worst_targets():
    settings = short("overparametrization", 1).settings
    assert settings.width > settings.samples
    x, _, W, V = problems.draw(settings, torch.device("cpu"))
    x, W, V = x.double(), W.double(), V.double()
    features = torch.nn.functional.gelu(x @ W[0].mT)
    worst = torch.linalg.eigh(features @ features.mT)[1][:, :1]
    y = x.clone()
    y[:, :1] += worst
    rule = LayerRule(1 / settings.depth)
    start = DescendingChain(x, y, W, V, settings.depth, rule, backend="torch")
    loss = start.loss()
    square = start.V.grad.square().sum() + start.W.grad.square().sum()
    found = problems.least_quotient(start, settings, x, W[0])
    assert found == pytest.approx(float(settings.depth * square / loss), rel=1e-6)


@pytest.mark.parametrize("planted", ["plateau", "power"])
def test_rates_that_settle_are_told_from_a_power_law(planted):
    time = np.linspace(40_000, 80_000, 41)
    noise = 1 + 1e-4 * np.sin(np.arange(41) ** 2)
    settling = 0.02 + 0.01 * np.exp(-(time - 40_000) / 15_000)
    rate = (settling if planted == "plateau" else 900 / time) * noise
    found = long_time_tables.plateau_columns(time, rate)
    if planted == "plateau":
        assert found["plateau"] == pytest.approx(0.02, rel=0.01)
        assert found["plateau_share"] == pytest.approx(0.02 / rate[-1], rel=0.01)
        assert found["aic_gain"] > 10
    else:
        assert found["aic_gain"] < 10


def test_no_rate_has_no_plateau():
    found = long_time_tables.plateau_columns(np.arange(1.0, 9), np.zeros(8))
    assert all(math.isnan(value) for value in found.values())


def test_growth_is_that_of_the_present_distance():
    steps = [10, 20, 50, 100]
    rows = pd.DataFrame({"step": steps, "depth": 16, "loss": 1.0})
    for weight in ("V", "W"):
        rows[f"{weight}_largest"] = [1.0, 2.0, 3.0, 3.0]
        rows[f"{weight}_present"] = [1.0, 2.0, 3.0, 1.5]
    settings = {"scaling": "code", "seed": 0, "limit_depth": 0, "learning_rate": 0.1}
    runs = {"large_depth": [PlantedRun(settings, metrics=rows)], "paper_scaling": []}
    assert tables.growth(runs)["exponent"].tolist() == pytest.approx([-1, -1])


def test_onset_of_softplus_in_proportion_to_depth_is_found():
    betas = {f"softplus{beta}": beta for beta in (1, 4, 16, 64)} | {"relu": np.inf}
    rows = pd.DataFrame(
        [
            {"step": 9, "target": 2.0, "depth": depth, "activation": name}
            | {"gap": 1 / (1 + depth / beta)}
            for depth in (4, 8, 16)
            for name, beta in betas.items()
        ]
    )
    onset = kink_tables.softplus_onset({"softplus_kink": [PlantedRun({}, metrics=rows)]})
    assert onset["slope"].iloc[0] == pytest.approx(1, abs=0.1)
    corrected = [depth / math.log(depth) for depth in (4, 8, 16)]
    np.testing.assert_allclose(onset["corrected"], corrected, rtol=0.2)
    assert onset.set_index("depth")["beta"][16] == pytest.approx(16)


def test_slopes_leave_small_depths_out():
    depths = [2, 4, 16, 32, 64]
    rows = pd.DataFrame({"depth": depths, "step": 20, "loss": 1.0})
    for weight in ("V", "W"):
        distances = [7.0, 7.0, 1 / 16, 1 / 32, 1 / 64]
        rows[[f"{weight}_{name}" for name in ("largest", "present", "l2", "sup")]] = np.array(
            [distances] * 4
        ).T
    settings = {"scaling": "code", "seed": 0, "limit_depth": 1024, "learning_rate": 0.1}
    runs = {"large_depth": [PlantedRun(settings, metrics=rows)], "paper_scaling": []}
    found = tables.slopes(runs)
    assert found["slope"].tolist() == pytest.approx([-1] * 8)
    assert found["doubling"].tolist() == pytest.approx([0.5] * 8)


def test_the_slowest_of_weights_is_one_of_both_weights_and_norms():
    depths = [16, 32, 64]
    rows = pd.DataFrame({"depth": depths, "step": 20, "loss": 1.0, "states": [4.0, 2.0, 1.0]})
    for name in ("V_l2", "V_sup", "W_l2"):
        rows[name] = [4.0, 2.0, 1.0]
    rows["W_sup"] = [4.0, 3.0, 1.0]
    settings = {"scaling": "code", "seed": 0, "limit_depth": 1024, "learning_rate": 0.1}
    found = tables.slopes(
        {"large_depth": [PlantedRun(settings, metrics=rows)], "paper_scaling": []}
    )
    slowest = found[found["slowest"]].set_index("measure")
    assert sorted(slowest.index) == ["states", "sup"]
    assert slowest.loc["sup", "weight"] == "W"
    assert slowest["doubling"].to_dict() == {"sup": 0.75, "states": 0.5}


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="multiple of depth 3"):
        problem("large_depth", "seed0", depth=[2, 3])
    with pytest.raises(UserError, match="41 is after the end"):
        problem("long_time", "seed0", times=[0, 41])
    with pytest.raises(UserError, match="softplus1 is not compiled"):
        problem("softplus", "softplus1_seed0", backend="numba")


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
        if claim.table in made and "depth" not in claim.select:
            table = made[claim.table].drop(columns="protocol", errors="ignore")
            found = judge(claim, table.assign(dataset="real"), "paper")
            assert found.verdict in VERDICTS[:3], claim.id
