"""Sorted tau: paired starts, expansions, adjoints, matched gradients, Table 1 and its power."""

import math
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from resnet_limits import style
from resnet_limits.models.expansion import (
    ACTIVATIONS,
    DERIVATIVES,
    chain_terms,
    first_order,
    states,
    terms,
)
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


@pytest.mark.parametrize("expand", [terms, chain_terms])
def test_linear_terms_are_binomial(expand):
    x, theta = network(tied=True)
    power = x
    for k, term in enumerate(expand(x, theta, "identity", 6)):
        wanted = math.comb(6, k) / 6**k * power
        torch.testing.assert_close(term, wanted, rtol=1e-12, atol=1e-14)
        power = power @ theta[:, 0].mT


@pytest.mark.parametrize("expand", [terms, chain_terms])
def test_all_terms_of_a_linear_network_sum_to_its_output(expand):
    x, theta = network()
    torch.testing.assert_close(
        sum(expand(x, theta, "identity", 6)), states(x, theta, "identity")[-1]
    )


@pytest.mark.parametrize("expand", [terms, chain_terms])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_terms_up_to_the_first_are_the_two_layer_network(activation, expand):
    x, theta = network()
    zeroth, first = expand(x, theta, activation, 1)
    torch.testing.assert_close(zeroth + first, first_order(x, theta, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_are_those_of_autograd(activation):
    u = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ACTIVATIONS[activation](u).sum(), u)
    torch.testing.assert_close(DERIVATIVES[activation](u.detach()), slope)


@pytest.mark.parametrize("activation", ["tanh", "sin"])
def test_every_set_of_layers_gives_one_chain(activation):
    x, theta = network()
    hidden = torch.einsum("nsi,nlji->nlsj", x, theta)
    block, slope = ACTIVATIONS[activation](hidden), DERIVATIVES[activation](hidden)
    for k, term in enumerate(chain_terms(x, theta, activation, 4)[1:], start=1):
        wanted = torch.zeros_like(x)
        for first, *others in combinations(range(6), k):
            product = block[:, first]
            for layer in others:
                product = slope[:, layer] * (product @ theta[:, layer].mT)
            wanted += product / 6**k
        torch.testing.assert_close(term, wanted)


@pytest.mark.parametrize("activation", ["tanh", "sin"])
def test_chains_are_complete_up_to_order_two_only(activation):
    x, theta = network()
    chains, complete = (expand(x, theta, activation, 3) for expand in (chain_terms, terms))
    for k in range(3):
        torch.testing.assert_close(chains[k], complete[k])
    assert (chains[3] - complete[3]).norm() > 0.01 * complete[3].norm()


def test_a_set_of_k_layers_gives_k_minus_one_factorial_terms():
    """With sigma = exp all derivatives are 1 at 0: term k counts its products.

    X^{l+1} = X^l + epsilon exp(X^l) from X^0 = 0 has coefficient (k-1)! for the set of its k
    layers, by inclusion and exclusion over subnetworks.
    """

    def coefficient(layers, order):
        series = np.zeros(order + 1)
        for _ in range(layers):
            exponential = np.zeros(order + 1)
            exponential[0] = 1.0
            for k in range(1, order + 1):
                terms = (j * series[j] * exponential[k - j] for j in range(1, k + 1))
                exponential[k] = sum(terms) / k
            series[1:] += exponential[:-1]
        return series[order]

    for k in range(1, 7):
        signs = ((-1) ** (k - m) * math.comb(k, m) for m in range(k + 1))
        found = sum(sign * coefficient(m, k) for m, sign in enumerate(signs))
        assert found == pytest.approx(math.factorial(k - 1))


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "sin"])
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
    dense = problem("gradients", activation=["identity"], start=["tied"], depth=[8])
    ratios = dense._adjoints(dense.theta[0], "identity")
    jacobian = torch.eye(16, dtype=torch.float64) + dense.theta[0][:, 0].detach() / 8
    end = states(dense.x, dense.theta[0].detach(), "identity")[-1]
    residual = torch.einsum("nsi,ni->ns", end, dense.w1) - dense.y
    adjoint = residual[..., None] * dense.w1[:, None]
    norms = []
    for _ in range(9):
        norms.insert(0, adjoint.square().sum(-1).mean(-1).sqrt())
        adjoint = adjoint @ jacobian
    wanted = torch.stack(norms, dim=1)
    torch.testing.assert_close(ratios, wanted / wanted[:, -1:])


def plain_loss(dense, end):
    return 0.5 * ((end * dense.w1[:, None]).sum(-1) - dense.y).square().mean(-1)


def test_gradients_are_those_of_autograd_on_the_plain_loss():
    dense = problem("gradients")
    losses = iter(dense.loss_and_grad().split(len(dense.theta[0])))
    for network, thetas in (("deep", dense.theta), ("two_layer", dense.shallow)):
        for (activation, _), theta in zip(dense.cases, thetas, strict=True):
            value = theta.detach().clone().requires_grad_()
            end = states(dense.x, value, activation)[-1]
            if network == "two_layer":
                hidden = (dense.x @ weights.mT for weights in value.unbind(1))
                end = dense.x + sum(ACTIVATIONS[activation](u) for u in hidden) / value.shape[1]
            loss = plain_loss(dense, end)
            (gradient,) = torch.autograd.grad(loss.sum(), [value])
            torch.testing.assert_close(theta.grad, gradient)
            torch.testing.assert_close(next(losses), loss.detach())


def test_both_networks_start_with_the_same_weights_and_are_trained():
    dense = problem("gradients", steps=20)
    pairs = list(zip(dense.theta, dense.shallow, strict=True))
    assert all(torch.equal(deep, shallow) for deep, shallow in pairs)
    losses = train(dense, 21)
    assert (losses[-1] < losses[0]).all()
    assert not any(torch.equal(deep, shallow) for deep, shallow in pairs)


def test_the_guaranteed_adjoint_is_below_the_measured_one():
    rows = problem("gradients").measure_extremes()
    assert (rows["adjoint_bound"] <= rows["adjoint_least"]).all()
    assert (rows["adjoint_least"] <= 1).all() and (rows["adjoint_most"] >= 1).all()


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_gradients_are_matched_at_equal_losses(exponent):
    """Planted: gradients 3 loss^p and 2 loss^p at different losses have ratio 3/2 where equal."""
    losses = {"deep": [0.5, 0.3, 0.1, 0.02], "two_layer": [0.6, 0.35, 0.2]}
    factors = {"deep": 3.0, "two_layer": 2.0}
    rows = [
        {"network": name, "step": step, "loss": loss, "gradient": factors[name] * loss**exponent}
        for name, values in losses.items()
        for step, loss in enumerate(values)
    ]
    names = {"activation": "tanh", "start": "iid", "weight_scale": 1.0, "depth": 4, "seed": 0}
    run = PlantedRun({}, metrics=pd.DataFrame(rows).assign(**names))
    matched = dense_tables.matched_gradients({"gradients": [run]})
    assert matched["ratio"].to_numpy() == pytest.approx(1.5)
    assert matched["loss"].iloc[[0, -1]].tolist() == pytest.approx([0.5, 0.2])


def test_all_methods_start_with_the_same_network_and_batches():
    vanilla, steps, sorted_tau = (problem("steps_or_sorting", run) for run in range(3))
    methods = [trained.settings.method for trained in (vanilla, steps, sorted_tau)]
    assert methods == ["vanilla", "steps", "sorted_tau"]
    pd.testing.assert_frame_equal(vanilla.measure(), sorted_tau.measure())
    losses, others, more = (train(trained, 3) for trained in (vanilla, steps, sorted_tau))
    assert torch.equal(losses[0], others[0])
    assert not torch.equal(losses[1], others[1])
    # Nothing sorts until two blocks change places.
    assert sorted_tau.changes == 0 and torch.equal(others, more)


def test_a_network_is_evaluated_in_float32():
    trained = problem("resnet20", precision={"cpu": "bfloat16", "cuda": "bfloat16"})
    types = []
    for module in trained.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *seen: types.append(seen[2].dtype))
    trained.loss_and_grad()
    assert set(types) == {torch.bfloat16}
    types.clear()
    trained.evaluate()
    assert set(types) == {torch.float32}


def test_changes_of_order_are_counted_once_each():
    trained = problem("resnet20", "resnet20_sorted_tau_seed0")
    trained.loss_and_grad()
    assert trained.measure_steps()["changes"].max() == 0
    with torch.no_grad():
        trained.network.tau[0][:2] = torch.tensor([2 / 3, 1 / 3])  # the first two blocks swap
    trained.loss_and_grad()
    trained.loss_and_grad()
    steps = trained.measure_steps()
    assert steps["changes"].unique().tolist() == [1]
    first = steps.query("stage == 1").sort_values("index")
    assert first["block"].tolist() == [1, 0, 2]
    assert len(steps) == 9


def test_cost_counts_one_parameter_a_block():
    timed = problem("cost")
    train(timed, timed.steps)
    rows = timed.measure()
    assert len(rows) == timed.steps
    for method in ("steps", "sorted_tau"):
        assert (rows[f"{method}_parameters"] - rows["vanilla_parameters"] == 9).all()
    assert (rows["blocks"] == 9).all()
    seconds = ["vanilla_seconds", "steps_seconds", "sorted_tau_seconds"]
    assert (rows[seconds] > 0).all().all()


@pytest.mark.parametrize(
    ("experiment", "run"),
    [
        ("resnet20", "resnet20_vanilla_seed0"),
        ("resnet20", "resnet20_sorted_tau_seed0"),
        ("steps_or_sorting", "resnet20_steps_seed0"),
        ("expansion", "all"),
        ("gradients", "all"),
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


def planted_run(method, seed, error, changes=0, time_scale=1.0, train_error=1.0, **outcome):
    """A run of ResNet-20 that ended with this test error and this number of order changes."""
    settings = configuration("sorted_tau", "resnet20", 0).to_json()["settings"]
    row = {"step": 4, "seed": seed, "epoch": 2, "test_error": error, "train_error": train_error}
    diverged = [{"seed": seed, "step": 3}] if outcome else []
    settings |= {"method": method, "seed": seed, "time_scale": time_scale}
    measured = {"metrics": pd.DataFrame([row | outcome])}
    if method != "vanilla":
        step = {"step": 4, "stage": 1, "index": 1, "block": 0, "size": 1.0, "epoch": 2}
        measured["steps"] = pd.DataFrame([step | {"changes": changes, "seed": seed}])
    return PlantedRun(settings, diverged, **measured)


def planted(differences, changes=0):
    source = np.random.default_rng(0)
    runs = []
    for seed, difference in enumerate(differences):
        base = 8 + source.normal()
        runs += [
            planted_run("vanilla", seed, base),
            planted_run("sorted_tau", seed, base + difference, changes + seed),
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
    assert (row["least_changes"], row["most_changes"]) == (0, 3)
    assert (table.drop("resnet20")["status"] == "not run").all() and len(table) == 8
    (row,) = tables.row_means(planted([-0.1, 0.0, 0.2])).to_dict("records")
    assert row["pairs"] == 3 and row["enough"] and not row["lower"]
    assert row["difference"] == pytest.approx(0.1 / 3)
    assert tables.row_means(planted([-0.1, -0.2, 0.2]))["lower"].all()
    assert not tables.row_means(planted([-0.1, -0.2]))["enough"].any()


def test_a_diverged_run_is_counted_and_marked():
    runs = planted([-0.5, -0.4])
    runs["resnet20"][1] = planted_run("sorted_tau", 0, error=90.0, step=3, epoch=1)
    pairs = tables.pairs(runs)
    assert pairs["diverged"].tolist() == [True, False]
    assert pairs["sorted_tau"][0] == 90.0
    assert tables.table1(runs)["diverged"][0] == 1


def test_table1_says_what_the_pairs_could_have_shown():
    """Power by the noncentral t distribution: the paper's 0.56 points, one-sided at 5 %."""
    differences = [-1.0, 0.5, -0.2, 0.7, -0.4]
    row = tables.table1(planted(differences)).iloc[0]
    spread = np.std(differences, ddof=1)

    def power(n):
        critical = scipy.stats.t.ppf(0.95, n - 1)
        return scipy.stats.nct.sf(critical, n - 1, 0.56 / spread * math.sqrt(n))

    assert row["spread"] == pytest.approx(spread)
    assert row["power"] == pytest.approx(power(5), abs=1e-6)
    assert row["power_of_three"] == pytest.approx(power(3), abs=1e-6)
    assert power(row["needed"] - 1) < 0.8 <= power(row["needed"])


def test_comparisons_split_a_difference_into_steps_and_sorting():
    runs = []
    for seed, errors in enumerate([(8.0, 7.0, 7.5), (9.0, 8.5, 8.0)]):
        methods = zip(("vanilla", "steps", "sorted_tau"), errors, strict=True)
        runs += [planted_run(method, seed, error, 7) for method, error in methods]
    runs.append(planted_run("vanilla", 2, 8.0))  # a seed without the other methods
    table = tables.comparisons({"steps_or_sorting": runs})
    wide = table.pivot(index="seed", columns="comparison", values="difference")
    assert wide["trained steps"].tolist() == [-1.0, -0.5]
    assert wide["sorting"].tolist() == [0.5, -0.5]
    assert wide["both"].tolist() == [-0.5, -1.0]
    assert set(table["changes"]) == {7}


@pytest.mark.parametrize(
    ("never", "diverges", "slow", "chosen"),
    [
        ([], [], [], 1.0),
        ([1.0], [], [], 2.0),  # the larger of two that are equally near
        ([1.0, 2.0, 4.0], [], [], 0.5),
        ([4.0, 2.0], [1.0, 0.5], [], 0.25),
        ([], [1.0], [2.0], 0.5),
        ([0.25, 0.5, 1.0, 2.0, 4.0], [], [], None),
    ],
)
def test_the_pilot_chooses_by_its_rule(never, diverges, slow, chosen):
    runs = []
    for scale in (0.25, 0.5, 1.0, 2.0, 4.0):
        for seed in (100, 101):
            changes = 0 if scale in never and seed == 101 else 3  # in every seed, or not at all
            error = 36.0 if scale in slow else 30.0
            outcome = {"test_loss": math.inf} if scale in diverges and seed == 100 else {}
            runs.append(planted_run("sorted_tau", seed, 40.0, changes, scale, error, **outcome))
    table = tables.pilot({"pilot": runs})
    assert table.loc[table["chosen"], "time_scale"].unique().tolist() == [chosen] * (
        chosen is not None
    )
    assert table["chosen"].sum() == (2 if chosen else 0)


def test_runs_of_one_method_make_no_pair():
    runs = {"resnet20": planted([0.1, 0.2])["resnet20"][::2], "deeper": []}
    assert set(tables.curves(runs)["method"]) == {"vanilla"}
    assert tables.pairs(runs).empty
    made = {"table1": tables.table1(runs), "pairs": tables.pairs(runs)}
    assert (made["table1"]["status"] == "not run").all()
    with style.applied():
        assert plots.table1(made).axes[0].texts[0].get_text() == style.NOT_RUN


@pytest.mark.parametrize(("kind", "slope"), [("factorial", -1.0), ("geometric", 0.0)])
def test_planted_series_have_their_slopes(kind, slope):
    orders = np.arange(11)
    norms = 3.0**orders / ([math.factorial(k) for k in orders] if kind == "factorial" else 1)
    rows = pd.DataFrame({"order": orders, "norm": norms, "seed": 0})
    names = {"activation": "tanh", "start": "tied", "weight_scale": 1.0, "depth": 4}
    run = PlantedRun({}, metrics=rows.assign(step=0, terms="chains", **names))
    table = dense_tables.expansion_slopes({"expansion": [run]})
    assert table["slope"].iloc[0] == pytest.approx(slope, abs=1e-10)
