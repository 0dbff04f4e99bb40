"""Two Spirals, the study: training, pairing of seeds, tables of planted rates, figures."""

import numpy as np
import pandas as pd
import pytest
import torch

from resnet_limits.probes import evenly_spaced
from resnet_limits.spec import load_study
from resnet_limits.studies.two_spirals import tables
from resnet_limits.testing import assert_run_resumes
from tests.studies import (
    PlantedRun,
    configuration,
    draw_figures,
    each_alone,
    make_tables,
    problem,
    smoke_runs,
)

STUDY = load_study("two_spirals")
SIZES = np.array([32, 128, 512, 2048])
N_TEST = 2**20  # planted errors are whole numbers of test points
STEPS, PROBES = 1000, 40


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every smoke run after a few steps, by experiment."""
    folder, short = tmp_path_factory.mktemp("results"), {"steps": 6}
    return smoke_runs("two_spirals", folder, rate=short, depth=short)


def test_every_variant_trains_a_few_steps(runs):
    for run in [*runs["rate"], *runs["depth"]]:
        assert run.record.outcome.state == "finished"
        assert run.record.outcome.steps == 6


@pytest.mark.parametrize("field", ["constant", "per_step", "frozen", "removed"])
def test_resumed_training_ends_with_the_same_bits(tmp_path, field):
    assert_run_resumes(configuration("two_spirals", "rate", field, steps=8), tmp_path)


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
    assert tables._last(table, ["member"])["step"].tolist() == [9, 0]


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
    found = tables.rates({"rate": [constant, removed]})
    slopes = found.set_index(["field", "seeds", "method"])["slope"]
    for method in ("least squares", "binomial"):
        assert slopes["constant", "paper", method] == pytest.approx(-1, abs=1e-4)
        assert slopes["constant", "all", method] < -1.05  # the fourth seed falls like n^-2
        assert slopes["removed", "all", method] == pytest.approx(-0.25, abs=1e-4)
    assert len(found) == 8


def test_decay_recovers_a_planted_exponential_rate():
    steps = np.array(evenly_spaced(STEPS, PROBES))
    falling = np.where(steps <= 500, np.exp(-0.02 * steps), 1.0)
    error = np.where(steps == 750, 0.01, 0.4)
    good = member(step=steps, train_loss=falling, train_error=error)
    early = member(step=[1, 3], train_loss=1e6, train_error=0.4)  # log-spaced: in no fit
    growing = member(step=steps, train_loss=1.0 + steps, train_error=0.02)
    run = planted(metrics=pd.concat([good, early, growing.assign(seed=1)]))
    decaying, other = tables.decay({"rate": [run]}).to_dict("records")
    assert decaying["rate"] == pytest.approx(0.02)
    assert decaying["r_squared"] == pytest.approx(1)
    assert (decaying["first_step"], decaying["last_step"]) == (0, 500)
    assert decaying["linear"] and decaying["nearly_zero_error"]
    assert not other["linear"] and not other["nearly_zero_error"]


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
