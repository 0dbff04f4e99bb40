"""The study of finite and infinite width: every experiment, table and figure, by known answers."""

import numpy as np
import pandas as pd
import pytest
import torch

from resnet_limits.spec import load_study
from resnet_limits.studies.rff_width import tables
from resnet_limits.testing import assert_run_resumes
from tests.studies import (
    PlantedRun,
    configuration,
    draw_figures,
    finished,
    make_tables,
    problem,
    smoke_runs,
    train,
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


def test_step_sizes_go_by_each_networks_own_kernel_matrix():
    made = problem("rff_width", "width", width=[1, 128], draw=[0, 1], samples=8, stability=0.5)
    constants = made.list_constants()
    narrow, wide = (constants.query("width == @r") for r in (1, 128))
    relative = constants["step_size"] * constants["output_norm"] ** 2 / 8
    assert (relative * constants["start_largest"] <= 0.5 + 1e-12).all()
    # One feature has all of the trace, N, on two eigenvalues.
    assert (narrow["start_largest"] >= 4).all()
    assert (narrow["step_size"] <= 8 * 0.5 / 4).all()
    assert (wide["step_size"] == 8 * 0.25).all()


def test_one_step_moves_weights_by_the_members_step_size():
    made = problem("rff_width", "width", width=[1], draw=[0, 1])
    ensemble = made.ensembles[0]
    ensemble.model.loss_and_grad()
    gradient = ensemble.model.gradient.clone()
    train(made, 1)
    assert len(set(ensemble.step_sizes.tolist())) == 2
    expected = -gradient * ensemble.step_sizes.to(gradient)[:, None, None, None]
    torch.testing.assert_close(ensemble.model.weights, expected)


def test_data_sets_have_features_of_their_own():
    first, other = (
        problem("rff_width", "width", width=[4], draw=[0], data_seed=seed) for seed in (0, 1)
    )
    assert not torch.equal(first.inputs, other.inputs)
    frequencies = [made.ensembles[0].model._frequencies for made in (first, other)]
    assert not torch.equal(*frequencies)


def test_too_long_steps_are_recorded_and_counted_as_diverged(tmp_path):
    long = {"step_size": 1e4, "stability": 1e4}
    diverged = finished(width(width=[4], steps=80, **long), tmp_path)
    assert diverged.record.outcome.state == "diverged"
    assert len(diverged.record.outcome.diverged) == 3
    found = tables.outcomes({"width": [diverged]})
    assert found["diverged"].all()
    assert not found["converged"].any()
    assert tables.rates({"width": [diverged]})["diverged_networks"].sum() == 3
    assert tables.thresholds({"width": [diverged]})["threshold"].isna().all()


def test_convergence_is_recorded_at_its_step(tmp_path):
    found = finished(width(width=[128], converged=0.5, steps=40), tmp_path)
    outcomes = tables.outcomes({"width": [found]})
    assert outcomes["converged"].all()
    assert (outcomes["final_relative_loss"] <= 0.5).all()
    # All have converged long before the last step, and are trained no further.
    assert found.record.outcome.steps < 40


# Tables and figures


def test_tables_and_figures_of_all_runs(runs):
    made = make_tables("rff_width", runs)
    assert set(made) == set(OWN_TABLES)
    for name, table in made.items():
        assert set(table["dataset"]) == {"jittered_grid"}, name
    drawn = draw_figures("rff_width", made)
    assert set(drawn) == {n for n, f in STUDY.figures.items() if set(f.tables) <= set(OWN_TABLES)}
    assert all(figure.axes for figure in drawn.values())


def test_tables_and_figures_of_every_run_alone(runs):
    for experiment, found in runs.items():
        for run in found:
            made = make_tables("rff_width", {experiment: [run]})
            assert all("dataset" in table for table in made.values())
            draw_figures("rff_width", made)


def test_bounds_hold_on_every_network(runs):
    kept = tables.pl_kept(runs)
    assert kept["excess"].max() < 1 + 1e-5
    assert kept.query("embedding == 'scaling' and size >= 16")["informative"].all()
    theorem = tables.theorem(runs)
    assert theorem["applies"].any()
    assert theorem.loc[theorem["applies"], ["worst", "norm_ratio"]].max().max() < 1 + 1e-6


def test_kappa_is_within_one_of_its_limit_for_many_features(runs):
    found = tables.kappas(runs)
    assert not found.query("width == 2")["within"].all()
    assert found.query("width == 256 and kernel == 'gaussian'")["within"].all()
    assert not found.duplicated(["kernel", "data_seed", "width", "draw"]).any()


def planted_gaps(exponent):
    """Plant runs whose smallest eigenvalue is off by a power of the width."""
    widths = [2.0, 64.0, 128.0, 256.0, 512.0]
    rows = pd.DataFrame({"width": widths, "draw": 0, "size": 1.0, "step": 0})
    rows = pd.concat([rows, rows.assign(draw=1)], ignore_index=True)
    factor = (1 + 0.1 * rows["draw"]).where(rows["width"] > 2, 100)
    bounds = rows.assign(gap=factor * rows["width"] ** exponent, smallest=1.0, exact=1.0)
    settings = {"kernel": "gaussian", "samples": 8, "embedding": "scaling", "depth": 1, "steps": 1}
    runs = []
    for seed in (0, 1):
        run = PlantedRun({**settings, "data_seed": seed}, bounds=bounds, constants=rows)
        run.protocol = ("paper", "")
        runs.append(run)
    return {"width": runs}


def test_exponents_of_eigenvalue_errors_are_fitted_where_features_are_many():
    found = tables.eigenvalue_slopes(planted_gaps(-0.7)).query("when == 'start'")
    assert found["data_seed"].tolist() == [0, 1]
    assert (found["least_width"] == 64).all()
    assert found["slope"].tolist() == pytest.approx([-0.7, -0.7])
    assert found["excess"].tolist() == pytest.approx([-0.2, -0.2])


def test_exponents_of_left_sides(runs):
    found = tables.left_sides(runs).set_index("embedding")
    assert found.loc["scaling", "slope"] == pytest.approx(-1, abs=0.01)
    assert found.loc["lifting", "slope"] < -0.25


def test_wide_counts_draws(runs):
    found = tables.wide(runs)
    # N = 4: 32 and 128 features, N = 8: 128; two data sets, two draws.
    assert found.groupby("samples")["networks"].unique().map(list).to_dict() == {4: [2], 8: [1]}
    assert len(found) == 8


def test_claims_select_by_columns_that_exist(runs):
    made = make_tables("rff_width", runs)
    for claim in STUDY.claims:
        if claim.table in made:
            assert set(claim.select) <= set(made[claim.table].columns)
