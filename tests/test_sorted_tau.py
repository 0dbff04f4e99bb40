"""Sorted tau: paired starts, the expansion's terms, adjoints, Table 1 and its power."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from statsmodels.stats.power import TTestPower

from resnet_limits import style
from resnet_limits.models.expansion import ACTIVATIONS, first_order, states, terms
from resnet_limits.studies.sorted_tau import dense_tables, plots, tables
from resnet_limits.testing import assert_run_resumes
from tests import studies
from tests.studies import (
    PlantedRun,
    configuration,
    draw_figures,
    each_alone,
    make_tables,
    smoke_runs,
    train,
)

problem = partial(studies.problem, "sorted_tau")


def network(depth=6, tied=False, scale=0.7):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, generator=source, dtype=torch.float64)
    layers = 1 if tied else depth
    theta = torch.randn(2, layers, 3, 3, generator=source, dtype=torch.float64) * scale
    return x, theta.expand(-1, depth, -1, -1)


def test_linear_terms_are_binomial():
    x, theta = network(tied=True)
    power = x
    for k, term in enumerate(terms(x, theta, "identity", 6)):
        wanted = math.comb(6, k) / 6**k * power
        torch.testing.assert_close(term, wanted, rtol=1e-12, atol=1e-14)
        power = power @ theta[:, 0].mT


def test_all_terms_of_a_linear_network_sum_to_its_output():
    x, theta = network()
    torch.testing.assert_close(
        sum(terms(x, theta, "identity", 6)), states(x, theta, "identity")[-1]
    )


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_terms_up_to_the_first_are_the_two_layer_network(activation):
    x, theta = network()
    zeroth, first = terms(x, theta, activation, 1)
    torch.testing.assert_close(zeroth + first, first_order(x, theta, activation))


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_remainder_has_the_next_order(activation, order):
    """With blocks scaled by epsilon, what the terms leave out falls like epsilon^(order + 1)."""
    x, theta = network()
    series = terms(x, theta, activation, order)
    sizes, sigma = (0.1, 0.05), ACTIVATIONS[activation]
    errors = []
    for epsilon in sizes:
        end = x
        for weights in theta.unbind(1):
            end = end + epsilon * sigma(end @ weights.mT) / theta.shape[1]
        kept = sum(term * epsilon**k for k, term in enumerate(series))
        errors.append(float((end - kept).norm()))
    slope = math.log(errors[0] / errors[1]) / math.log(sizes[0] / sizes[1])
    assert slope == pytest.approx(order + 1, abs=0.15)


def test_the_adjoint_of_linear_blocks_is_a_matrix_power():
    dense = problem("dense", activation=["identity"], start=["tied"], depth=[8])
    loss, _, norms = dense._backward(dense.theta[0], "identity")
    jacobian = torch.eye(16, dtype=torch.float64) + dense.theta[0][:, 0].detach() / 8
    end = states(dense.x, dense.theta[0].detach(), "identity")[-1]
    residual = torch.einsum("nsi,ni->ns", end, dense.w1) - dense.y
    assert torch.allclose(loss, residual.square().mean(1) / 2)
    adjoint = residual[..., None] * dense.w1[:, None]
    for layer in range(8, -1, -1):
        wanted = adjoint.square().sum(-1).mean(-1).sqrt()
        torch.testing.assert_close(norms[:, layer], wanted)
        adjoint = adjoint @ jacobian


def test_gradients_are_those_of_autograd_on_the_plain_loss():
    dense = problem("dense")
    losses = dense.loss_and_grad()
    for index, theta in enumerate(dense.theta):
        network = dense.cases[index]
        value = theta.detach().clone().requires_grad_()
        end = states(dense.x, value, network[0])[-1]
        loss = 0.5 * ((end * dense.w1[:, None]).sum(-1) - dense.y).square().mean(-1)
        (gradient,) = torch.autograd.grad(loss.sum(), [value])
        torch.testing.assert_close(theta.grad, gradient)
        count = len(theta)
        torch.testing.assert_close(losses[index * count : (index + 1) * count], loss.detach())


def test_the_guaranteed_adjoint_is_below_the_measured_one():
    dense = problem("dense", activation=["tanh"])
    rows = dense.measure()
    assert (rows["adjoint_bound"] <= rows["adjoint_least"]).all()
    assert (rows["adjoint_least"] <= 1).all() and (rows["adjoint_most"] >= 1).all()


def test_training_lowers_the_loss():
    dense = problem("dense", activation=["tanh"], steps=40)
    losses = train(dense, 41)
    assert (losses[-1] < losses[0]).all()


def test_both_methods_start_with_the_same_network_and_batches():
    vanilla, sorted_tau = (problem("resnet20", run) for run in (0, 1))
    assert (vanilla.settings.method, sorted_tau.settings.method) == ("vanilla", "sorted_tau")
    pd.testing.assert_frame_equal(vanilla.measure(), sorted_tau.measure())
    losses, others = train(vanilla, 2), train(sorted_tau, 2)
    assert torch.equal(losses[0], others[0])
    assert not torch.equal(losses[1], others[1])


def test_changes_of_order_are_counted_once_each():
    trained = problem("resnet20", "resnet20_sorted_tau_seed0")
    trained.loss_and_grad()
    assert trained.measure_steps()["changes"].max() == 0
    with torch.no_grad():
        trained.network.tau[0][:2] = torch.tensor([2.0, 1.0])  # the first two blocks swap
    trained.loss_and_grad()
    trained.loss_and_grad()
    steps = trained.measure_steps()
    assert steps["changes"].unique().tolist() == [1]
    first = steps.query("stage == 1").sort_values("place")
    assert first["block"].tolist() == [1, 0, 2]
    assert len(steps) == 9


def test_cost_counts_one_parameter_a_block():
    timed = problem("cost")
    train(timed, timed.steps)
    rows = timed.measure()
    assert len(rows) == timed.steps
    assert (rows["sorted_tau_parameters"] - rows["vanilla_parameters"] == 9).all()
    assert (rows["blocks"] == 9).all()
    assert (rows[["vanilla_seconds", "sorted_tau_seconds"]] > 0).all().all()


@pytest.mark.parametrize(
    ("experiment", "run"),
    [
        ("resnet20", "resnet20_vanilla_seed0"),
        ("resnet20", "resnet20_sorted_tau_seed0"),
        ("dense", "all"),
    ],
)
def test_resumed_training_ends_with_the_same_bits(tmp_path, experiment, run):
    assert_run_resumes(configuration("sorted_tau", experiment, run), tmp_path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return smoke_runs("sorted_tau", tmp_path_factory.mktemp("results"))


def test_tables_and_figures_of_all_runs(runs):
    made = make_tables("sorted_tau", runs)
    assert {name for table in made.values() for name in table["dataset"].dropna()} == {
        "digits",
        "random_images",
        "gaussian",
    }
    draw_figures("sorted_tau", made)


@pytest.mark.slow
def test_tables_and_figures_of_every_run_alone(runs):
    for alone in each_alone(runs):
        made = make_tables("sorted_tau", alone)
        assert all("dataset" in table for table in made.values())
        draw_figures("sorted_tau", made)


def planted_run(method, seed, error, **outcome):
    """A run of ResNet-20 that ended with this test error."""
    settings = configuration("sorted_tau", "resnet20", 0).to_json()["settings"]
    row = {"step": 4, "seed": seed, "epoch": 2, "test_error": error, **outcome}
    diverged = [{"seed": seed, "step": row["step"]}] if outcome else []
    settings |= {"method": method, "seed": seed}
    return PlantedRun(settings, diverged, metrics=pd.DataFrame([row]))


def planted(differences):
    source = np.random.default_rng(0)
    runs = []
    for seed, difference in enumerate(differences):
        base = 8 + source.normal()
        runs += [
            planted_run("vanilla", seed, base),
            planted_run("sorted_tau", seed, base + difference),
        ]
    return {"resnet20": runs, "deeper": []}


def test_table1_pairs_seeds_and_names_what_was_not_run():
    differences = [-0.6, -0.4, -0.5, -0.3]
    table = tables.table1(planted(differences)).set_index("network")
    row = table.loc["resnet20"]
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert row["difference_low"] < row["difference"] < row["difference_high"] < 0
    assert (row["paper_vanilla"], row["paper_sorted_tau"]) == (8.75, 8.19)
    assert row["paper_schedule"] == "160 epochs, /10 at 80, 120"
    assert (table.drop("resnet20")["status"] == "not run").all() and len(table) == 8
    assert tables.pairs(planted([-0.1, 0.0, 0.2]))["wins"].tolist() == [1, 0, 0]


def test_a_diverged_run_is_counted_and_marked():
    runs = planted([-0.5, -0.4])
    runs["resnet20"][1] = planted_run("sorted_tau", 0, error=90.0, step=3, epoch=1)
    pairs = tables.pairs(runs)
    assert pairs["diverged"].tolist() == [True, False]
    assert pairs["sorted_tau"][0] == 90.0
    assert tables.table1(runs)["diverged"][0] == 1


def test_table1_says_what_the_pairs_could_have_shown():
    differences = [-1.0, 0.5, -0.2, 0.7, -0.4]
    row = tables.table1(planted(differences)).iloc[0]
    spread, test = np.std(differences, ddof=1), TTestPower()
    found = test.power(row["detectable"] / spread, len(differences), 0.05)
    assert found == pytest.approx(0.8, abs=1e-3)
    assert test.power(0.5 / spread, row["needed"], 0.05) >= 0.8
    assert test.power(0.5 / spread, row["needed"] - 1, 0.05) < 0.8


def test_runs_of_one_method_make_no_pair():
    runs = {"resnet20": planted([0.1, 0.2])["resnet20"][::2], "deeper": []}
    assert set(tables.curves(runs)["method"]) == {"vanilla"}
    assert tables.pairs(runs).empty
    made = {"table1": tables.table1(runs), "pairs": tables.pairs(runs)}
    assert (made["table1"]["status"] == "not run").all()
    with style.applied():
        assert "nothing" in plots.table1(made).legends[0].get_title().get_text()


@pytest.mark.parametrize(("kind", "slope"), [("factorial", -1.0), ("geometric", 0.0)])
def test_planted_series_have_their_slopes(monkeypatch, kind, slope):
    orders = np.arange(11)
    norms = 3.0**orders / ([math.factorial(k) for k in orders] if kind == "factorial" else 1)
    rows = pd.DataFrame({"order": orders, "norm": norms, "seed": 0, "dataset": "planted"})
    rows = rows.assign(activation="tanh", start="tied", depth=4, trained=False, deepest=True)
    monkeypatch.setattr(dense_tables, "_dense", lambda *_: rows)
    assert dense_tables.expansion_slopes({})["slope"].iloc[0] == pytest.approx(slope, abs=1e-10)
