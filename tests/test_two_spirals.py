"""Two Spirals, the study: training, pairing of seeds, tables of planted rates, figures."""

import numpy as np
import pandas as pd
import pytest
import torch

from resnet_limits.probes import evenly_spaced
from resnet_limits.spec import load_study
from resnet_limits.studies.two_spirals import particle_tables, tables
from resnet_limits.studies.two_spirals.particle_problems import smallest_eigenvalue
from resnet_limits.testing import assert_run_resumes
from tests.studies import (
    PlantedRun,
    configuration,
    draw_figures,
    each_alone,
    make_tables,
    problem,
    smoke_runs,
    train,
)

STUDY = load_study("two_spirals")
SIZES = np.array([32, 128, 512, 2048])
N_TEST = 2**20  # planted errors are whole numbers of test points
STEPS, PROBES = 1000, 40


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every smoke run after a few steps, by experiment."""
    folder, short = tmp_path_factory.mktemp("results"), {"steps": 6}
    shortened = dict.fromkeys(("rate", "depth", "noise", "matched", "theory"), short)
    return smoke_runs("two_spirals", folder, **shortened)


def test_every_variant_trains_a_few_steps(runs):
    steps = {"start": 0, "solvers": 2}
    for experiment, found in runs.items():
        for run in found:
            assert run.record.outcome.state == "finished"
            assert run.record.outcome.steps == steps.get(experiment, 6)


@pytest.mark.parametrize("field", ["constant", "per_step", "frozen", "removed"])
def test_resumed_training_ends_with_the_same_bits(tmp_path, field):
    assert_run_resumes(configuration("two_spirals", "rate", field=field, steps=8), tmp_path)


@pytest.mark.parametrize(("experiment", "steps"), [("theory", 6), ("solvers", 3)])
def test_resumed_theory_and_solvers_end_with_the_same_bits(tmp_path, experiment, steps):
    assert_run_resumes(configuration("two_spirals", experiment, steps=steps), tmp_path)


def test_seeds_share_particles_at_every_scale_and_size():
    made = problem("two_spirals", "theory", n_train=[4, 8], beta=[1.0, 9.0], seed=[5, 6])
    for part in made.start:
        for other in range(2, 8, 2):
            torch.testing.assert_close(part[other : other + 2], part[:2])
    assert torch.equal(made.sets[0].x[:2], made.sets[0].x[2:])


def test_inputs_of_the_theory_are_bounded_by_the_norm_asked_for():
    made = problem("two_spirals", "theory", noise=0.0, n_train=[512], beta=[1.0], input_norm=0.5)
    norms = made.sets[0].x[:, :2].norm(dim=1)
    assert 0.45 < norms.max() <= 0.5


def test_loss_follows_the_derivative_of_proposition_4_2():
    made = problem("two_spirals", "theory", alpha=0.6)
    for _ in range(2):
        rows = made.measure()
        np.testing.assert_allclose(rows["measured_rate"], rows["predicted_rate"], rtol=1e-4)
        train(made, 5)


def test_a_small_step_lowers_every_loss_at_the_predicted_rate():
    made = problem("two_spirals", "theory", step_size=1e-5)
    predicted = made.measure()["predicted_rate"].to_numpy() * made.step_size.numpy()
    losses = train(made, 2)
    np.testing.assert_allclose((losses[0] - losses[1]).numpy(), predicted, rtol=1e-3)


def test_members_that_diverge_have_no_eigenvalue():
    grams = torch.stack([torch.eye(3), torch.full((3, 3), torch.inf)])
    assert smallest_eigenvalue(grams)[0] == 1 and smallest_eigenvalue(grams)[1].isnan()


def test_matched_output_layers_train_as_many_weights():
    constant = problem("two_spirals", "rate", "constant").model.parameters.values()
    removed = problem("two_spirals", "matched", "removed").model.parameters.values()
    counts = [sum(weights[0].numel() for weights in model) for model in (constant, removed)]
    assert counts == [182 + 1, 185]


def test_seeds_share_weights_and_test_points_across_variants():
    one = problem("two_spirals", "depth", "depth10")
    other = problem("two_spirals", "depth", "depth20", n_train=[32, 64])
    count = len(one.settings.seed)
    assert torch.equal(one.model.field_inner, other.model.field_inner[count:])
    assert torch.equal(one.test_x, other.test_x[:count])
    assert torch.equal(one.sets[0].x, other.sets[1].x)


def test_tables_and_figures_of_all_runs(runs):
    made = make_tables("two_spirals", runs)
    assert set(made) == set(STUDY.tables)
    for table in made.values():
        assert len(table)
        assert set(table["dataset"]) == {"two_spirals"}
    assert set(draw_figures("two_spirals", made)) == set(STUDY.figures)


@pytest.mark.slow
def test_tables_and_figures_of_every_run_alone(runs):
    for alone in each_alone(runs):
        made = make_tables("two_spirals", alone)
        assert all("dataset" in table for table in made.values())
        draw_figures("two_spirals", made)


def test_a_run_that_ended_early_keeps_its_last_row():
    table = pd.DataFrame({"member": ["a", "a", "b"], "step": [0, 9, 0]})
    assert tables.last_rows(table, ["member"])["step"].tolist() == [9, 0]


def planted(field="constant", **measured):
    settings = {"field": field, "n_test": N_TEST, "steps": STEPS, "probes": PROBES}
    return PlantedRun(settings, **measured)


def last_errors(errors):
    """Return measurements at the last step, from a seed's test errors at every size."""
    rows = {"step": STEPS, "n_train": SIZES}
    frames = [pd.DataFrame({**rows, "seed": seed, "test_error": e}) for seed, e in errors.items()]
    return pd.concat(frames, ignore_index=True)


def member(**columns):
    """Return the measurements of one network."""
    return pd.DataFrame({"n_train": 32, "seed": 0, **columns})


def test_rates_recover_planted_powers_from_the_seeds_they_name():
    paper = {seed: factor / SIZES for seed, factor in enumerate((8.0, 4.0, 2.0))}
    slow = {seed: factor / SIZES**0.25 for seed, factor in enumerate((0.8, 0.6, 0.7, 0.5))}
    constant = planted(metrics=last_errors(paper | {3: 256 / SIZES**2.0}))
    removed = planted("removed", metrics=last_errors(slow))
    found = tables.rates({"rate": [constant], "matched": [removed]})
    slopes = found.set_index(["variant", "seeds", "method"])["slope"]
    for method in ("least squares", "binomial"):
        assert slopes["constant", "paper", method] == pytest.approx(-1, abs=1e-4)
        assert slopes["constant", "all", method] < -1.05  # the fourth seed falls like n^-2
        assert slopes["removed_wide", "all", method] == pytest.approx(-0.25, abs=1e-4)
    assert len(found) == 8


def test_decay_recovers_a_planted_exponential_rate():
    steps = np.array(evenly_spaced(STEPS, PROBES))
    falling = np.where(steps <= 500, np.exp(-0.02 * steps), 1.0)
    error = np.where(steps == STEPS, 0.01, 0.4)
    good = member(step=steps, train_loss=falling, train_error=error)
    early = member(step=[1, 3], train_loss=1e6, train_error=0.4)  # log-spaced: in no fit
    growing = member(step=steps, train_loss=1.0 + steps, train_error=error[::-1])
    run = planted(metrics=pd.concat([good, early, growing.assign(seed=1)]))
    decaying, other = tables.decay({"rate": [run]}).to_dict("records")
    assert decaying["rate"] == pytest.approx(0.02)
    assert decaying["r_squared"] == pytest.approx(1)
    assert (decaying["first_step"], decaying["last_step"]) == (0, 500)
    assert decaying["falls"] and decaying["nearly_zero_error"]
    assert not other["falls"] and not other["nearly_zero_error"]


def test_gram_marks_members_whose_ratio_falls_below_one_half():
    steps = [0, 10, STEPS]
    kept = member(step=steps, g_min=[3.0, 1.5, 1.6])
    lost = member(step=steps, g_min=[0.2, 0.09, 0.2]).assign(seed=1)  # and recovers
    runs = [planted(gram=pd.concat([kept, lost])), planted("removed")]
    table = tables.gram({"rate": runs})
    last = table[table["last"]].set_index("seed")
    assert len(table) == 6 and (last["step"] == STEPS).all()
    assert last["smallest_ratio"].tolist() == pytest.approx([0.5, 0.45])
    assert last["kept"].tolist() == [True, False]


def test_local_slopes_show_where_a_rate_changes():
    base = np.array([0.4, 0.4, 0.1, 0.025])  # flat, then n^-1 twice
    errors = {seed: base * factor for seed, factor in enumerate((0.8, 1.0, 1.2))}
    runs = {"rate": [planted(metrics=last_errors(errors))], "matched": []}
    found = tables.local_slopes(runs)
    assert found["mean"].tolist() == pytest.approx([0, -1, -1])
    # Seeds differ by a factor that all sizes share: no uncertainty.
    np.testing.assert_allclose(found["high"], found["low"], atol=1e-12)
    assert found["middle"].tolist() == pytest.approx(np.sqrt(SIZES[1:] * SIZES[:-1]))
    errors[2] = base * [1.2, 1.2, 1.2, 2.4]
    varying = tables.local_slopes({**runs, "rate": [planted(metrics=last_errors(errors))]})
    assert (varying["high"] - varying["low"]).iloc[-1] > 0.1


def test_scaled_errors_of_a_square_root_rate_are_constant():
    errors = {seed: factor / SIZES**0.5 for seed, factor in enumerate((1.0, 2.0))}
    found = tables.errors({"rate": [planted(metrics=last_errors(errors))], "matched": []})
    assert found["scaled_mean"].tolist() == pytest.approx([1.5] * 8)


def test_noise_takes_the_constant_field_of_rate_along():
    def run(field, width):
        measured = {"metrics": last_errors({0: 1 / SIZES})}
        return PlantedRun({"field": field, "n_test": N_TEST, "noise": width}, **measured)

    runs = {"rate": [run("constant", 0.4), run("removed", 0.4)], "noise": [run("constant", 0.1)]}
    found = tables.noise_rates(runs)
    assert found["noise"].tolist() == [0.1, 0.4]
    assert found["slope"].tolist() == pytest.approx([-1, -1], abs=1e-4)


def flow_run(**changes):
    """Return a run of one network along the flow, two steps."""
    rows = {
        "step": [0, 10, 20],
        "n_train": 4,
        "beta": 8.0,
        "seed": 0,
        "step_size": 0.1,
        "loss": [1.0, 0.5, 0.25],
        "g2_min": [0.8, 0.3, 0.6],
        "g_min": [1.0, 0.9, 1.2],
        "limit_min": 0.5,
        "field_distance": [0.0, 3.0, 0.6],
        "head_distance": [0.0, 4.0, 0.8],
        "predicted_rate": [1.0, 1.0, 1.0],
        "measured_rate": [1.0, 1.01, 1.0],
    }
    return PlantedRun({"particles": 64, "alpha": 0.5}, metrics=pd.DataFrame(rows | changes))


def test_descent_recovers_planted_ratios_distances_and_bounds():
    (row,) = particle_tables.descent({"theory": [flow_run()]}).to_dict("records")
    assert row["scaling"] == 4
    assert row["smallest_ratio"] == pytest.approx(0.6)
    assert row["smallest_own_ratio"] == pytest.approx(0.375)
    assert row["distance"] == pytest.approx(1) and row["divergence"] == pytest.approx(0.5)
    assert row["mismatch"] == pytest.approx(0.01)
    rate = 4 * 8.0**2 * 0.25 / 4  # of the bound; the loss halves per unit of time
    assert row["proven_decay"] == pytest.approx(2 * rate)
    assert row["least_decay"] == pytest.approx(np.log(2) / rate)


def test_a_loss_that_falls_as_fast_as_its_bound_has_a_least_decay_of_one():
    rate = 4 * 8.0**2 * 0.25 / 4
    run = flow_run(loss=np.exp(-rate * np.array([0.0, 1.0, 2.0])))
    found = particle_tables.descent({"theory": [run]})["least_decay"].iloc[0]
    assert found == pytest.approx(1)


def test_start_is_relative_to_the_limit_and_to_rounding():
    measured = pd.DataFrame(
        {
            "step": 0,
            "n_train": 8,
            "seed": [0, 1],
            "g2_min": [0.5, 3.0],
            "limit_min": 2.0,
            "g_max": 4.0,
        }
    )
    found = particle_tables.start({"start": [PlantedRun({"particles": 64}, metrics=measured)]})
    assert found["ratio"].tolist() == [0.25, 1.5]
    assert found["deviation"].tolist() == [0.75, 0.5]
    assert found["resolution"].iloc[0] == pytest.approx(2 / (8 * 4 * 2**-52))


def test_solvers_differ_by_the_batched_engines_loss():
    rows = pd.DataFrame(
        {
            "step": [0] * 3 + [5] * 3,
            "solver": ["batched", "euler", "adaptive"] * 2,
            "depth": 10,
            "seed": 0,
            "loss": [1.0, 1.0, 2.0, 1.1, 1.0, 2.0],
            "to_adaptive": [0.1, 0.1, 0.0, 0.3, 0.3, 0.0],
        }
    )
    found = particle_tables.solvers({"solvers": [PlantedRun({}, metrics=rows)]})
    assert found["difference"].tolist() == pytest.approx([0, 0.1])
    assert found["last"].tolist() == [False, True]
    assert found["to_adaptive"].tolist() == [0.1, 0.3]


def test_torchdyn_trains_the_same_networks(runs):
    assert particle_tables.solvers(runs)["difference"].max() < 1e-9


def test_tables_carry_the_protocol_on_to_what_claims_select():
    rows = pd.DataFrame({"dataset": ["a", "a"], "protocol": ["paper", "paper"]})
    assert tables.marks(rows) == {"dataset": "a", "protocol": "paper"}
    assert tables.marks(rows[["dataset"]]) == {"dataset": "a"}
