"""The study of finite and infinite width: every experiment, table and figure, by known answers."""

import numpy as np
import pandas as pd
import pytest

from resnet_limits.spec import load_study
from resnet_limits.studies.rff_width import tables
from resnet_limits.testing import assert_run_resumes
from tests.studies import (
    configuration,
    draw_figures,
    each_alone,
    finished,
    make_tables,
    smoke_runs,
)

STUDY = load_study("rff_width")
EXPERIMENTS = ("width", "embedding", "guarantee")  # test_rff_images.py has the others
TINY = {"steps": 12, "probes": 6, "bound_probes": 3, "draw": [0, 1]}
OWN_TABLES = [n for n, table in STUDY.tables.items() if set(table.experiments) <= set(EXPERIMENTS)]


def width(**changes):
    """Return a configuration of the smallest run, with other settings."""
    return configuration("rff_width", "width", **(TINY | changes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return smoke_runs("rff_width", folder, EXPERIMENTS, **dict.fromkeys(EXPERIMENTS, TINY))


# Training


def test_every_experiment_trains_and_measures(runs):
    for experiment in runs.values():
        for run in experiment:
            assert run.record.outcome.state == "finished"
            metrics = run.measurements()
            # Draws of every width, and one network of infinite width.
            last = metrics[metrics["step"] == metrics["step"].max()]
            assert np.isinf(last["width"]).any()
            assert (last["loss"] > 0).all()
            start = metrics[metrics["step"] == 0].set_index(["size", "width", "draw"])["loss"]
            assert (last.set_index(["size", "width", "draw"])["loss"] < start).mean() > 0.5


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    # One of the ensembles converges before the last interruption.
    config = width(width=[4, 128], converged=0.01, steps=40)
    assert_run_resumes(config, tmp_path, after=[1, 17])


def test_widths_do_not_disturb_each_other(tmp_path):
    together = finished(width(width=[4, 32], converged=0.3), tmp_path / "a")
    alone = finished(width(width=[32], converged=0.3), tmp_path / "b")
    frames = [
        r.measurements().query("width == 32").reset_index(drop=True) for r in (together, alone)
    ]
    pd.testing.assert_frame_equal(*frames)


def test_too_long_steps_are_recorded_and_counted_as_diverged(tmp_path):
    diverged = finished(width(width=[4], step_size=1e4, steps=80), tmp_path)
    assert diverged.record.outcome.state == "diverged"
    assert len(diverged.record.outcome.diverged) == 3
    found = tables.outcomes({"width": [diverged]})
    assert found["diverged"].all()
    assert not found["converged"].any()
    assert tables.rates({"width": [diverged]})["diverged_draws"].sum() == 3
    assert tables.thresholds({"width": [diverged]})["threshold"].isna().all()


def test_convergence_is_recorded_at_its_step(tmp_path):
    found = finished(width(width=[128], converged=0.5, steps=40), tmp_path)
    outcomes = tables.outcomes({"width": [found]})
    assert outcomes["converged"].all()
    assert (outcomes["final_relative_loss"] <= 0.5).all()
    # All have converged long before the last step, and are trained no further.
    assert found.record.outcome.steps < 40


# Tables and figures


@pytest.fixture(scope="module")
def made(runs):
    return make_tables("rff_width", runs)


def test_every_table_names_its_data(made):
    assert set(made) == set(OWN_TABLES)
    for name, table in made.items():
        assert set(table["dataset"]) == {"jittered_grid"}, name


def test_every_figure_is_drawn(made):
    drawn = draw_figures("rff_width", made)
    assert set(drawn) == {n for n, f in STUDY.figures.items() if set(f.tables) <= set(OWN_TABLES)}
    assert all(figure.axes for figure in drawn.values())


@pytest.mark.slow
def test_tables_and_figures_of_every_run_alone(runs):
    for alone in each_alone(runs):
        some = make_tables("rff_width", alone)
        assert all("dataset" in table for table in some.values())
        draw_figures("rff_width", some)


def test_bounds_hold_on_every_network(made):
    kept = made["pl_kept"]
    assert kept["kept"].all()
    assert kept.query("embedding == 'scaling' and size >= 16")["informative"].all()
    assert made["theorem"]["holds"].all()


def test_claims_select_by_columns_that_exist(made):
    for claim in STUDY.claims:
        if claim.table in made:
            assert set(claim.select) <= set(made[claim.table].columns)
