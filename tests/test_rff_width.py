"""The study of finite and infinite width: every experiment, table and figure, by known answers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from resnet_limits.record import Run, read_record
from resnet_limits.studies.rff_width.experiments import WidthProblem

from resnet_limits import style
from resnet_limits.spec import load_study
from resnet_limits.studies.rff_width import plots, tables
from resnet_limits.train import Context, fit

STUDY = "rff_width"
CONTEXT = Context(torch.device("cpu"), None)
EXPERIMENTS = ("width", "embedding", "guarantee")  # test_rff_images.py has the others
TINY = {"steps": 12, "probes": 6, "bound_probes": 3, "draw": [0, 1]}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configuration(experiment, place=0, **changes):
    config = list(load_study(STUDY).runs("smoke", experiment))[place]
    return {**config, "settings": {**config["settings"], **TINY, **changes}}


def problem(config):
    return WidthProblem(SimpleNamespace(**config["settings"]), CONTEXT)


def run(config, folder, checkpoint_seconds=1e9, cls=WidthProblem):
    folder.mkdir(exist_ok=True)
    trained = cls(SimpleNamespace(**config["settings"]), CONTEXT)
    fit(trained, config, folder, checkpoint_seconds)
    return Run(folder, read_record(folder / "record.json"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = {}
    for experiment in EXPERIMENTS:
        count = len(list(load_study(STUDY).runs("smoke", experiment)))
        found[experiment] = [
            run(configuration(experiment, place), tmp_path_factory.mktemp("run"))
            for place in range(count)
        ]
    return found


# Training


def test_every_experiment_trains_and_measures(runs):
    for experiment in runs.values():
        for finished in experiment:
            assert finished.record["outcome"]["state"] == "finished"
            metrics = finished.measurements()
            # Draws of every width, and one network of infinite width.
            last = metrics[metrics["step"] == metrics["step"].max()]
            assert np.isinf(last["width"]).any()
            assert (last["loss"] > 0).all()
            start = metrics[metrics["step"] == 0].set_index(["size", "width", "draw"])["loss"]
            assert (last.set_index(["size", "width", "draw"])["loss"] < start).mean() > 0.5


def test_an_interrupted_training_ends_with_the_same_numbers(tmp_path):
    class Interrupted(WidthProblem):
        def step(self):
            if int(self.updates) == 17:
                raise KeyboardInterrupt
            return super().step()

    config = configuration("width", width=[4, 128], converged=0.01, steps=40)
    undisturbed = run(config, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "b", checkpoint_seconds=0.0, cls=Interrupted)
    resumed = run(config, tmp_path / "b")
    assert resumed.record["timing"]["resumed"] == 1
    pd.testing.assert_frame_equal(undisturbed.measurements(), resumed.measurements())


def test_widths_do_not_disturb_each_other(tmp_path):
    together = run(configuration("width", width=[4, 32], converged=0.3), tmp_path / "a")
    alone = run(configuration("width", width=[32], converged=0.3), tmp_path / "b")
    frames = [
        r.measurements().query("width == 32").reset_index(drop=True) for r in (together, alone)
    ]
    pd.testing.assert_frame_equal(*frames)


def test_too_long_steps_are_recorded_and_counted_as_diverged(tmp_path):
    config = configuration("width", width=[4], step_size=1e4, steps=80)
    diverged = run(config, tmp_path / "run")
    assert diverged.record["outcome"]["state"] == "diverged"
    assert len(diverged.record["outcome"]["diverged"]) == 3
    found = tables.outcomes({"width": [diverged]})
    assert found["diverged"].all()
    assert not found["converged"].any()
    assert tables.rates({"width": [diverged]})["diverged_draws"].sum() == 3
    assert tables.thresholds({"width": [diverged]})["threshold"].isna().all()


def test_convergence_is_recorded_at_its_step(tmp_path):
    found = run(configuration("width", width=[128], converged=0.5, steps=40), tmp_path / "run")
    outcomes = tables.outcomes({"width": [found]})
    assert outcomes["converged"].all()
    assert (outcomes["final_relative_loss"] <= 0.5).all()
    # All have converged long before the last step, and are trained no further.
    assert found.record["outcome"]["steps"] < 40


# Tables and figures


def own_tables():
    found = load_study(STUDY).tables
    return [name for name in found if set(found[name]["experiments"]) <= set(EXPERIMENTS)]


def test_every_table_names_its_data(runs):
    for name in own_tables():
        table = getattr(tables, name)(runs)
        assert set(table["dataset"]) == {"jittered_grid"}, name


def test_every_figure_is_drawn_from_the_tables_it_names(runs):
    study = load_study(STUDY)
    with style.applied():
        for name, figure in study.figures.items():
            if not set(figure["tables"]) <= set(own_tables()):
                continue
            given = {table: getattr(tables, table)(runs) for table in figure["tables"]}
            assert getattr(plots, name)(given).axes


def test_tables_and_figures_of_every_run_alone(runs):
    study = load_study(STUDY)
    alone = [(experiment, run) for experiment, found in runs.items() for run in found]
    for experiment, run in alone:
        given = {name: [] for name in EXPERIMENTS} | {experiment: [run]}
        made = {
            name: getattr(tables, name)(
                {name: given[name] for name in study.tables[name]["experiments"]}
            )
            for name in own_tables()
            if experiment in study.tables[name]["experiments"]
        }
        assert all("dataset" in table for table in made.values())
        with style.applied():
            for name, figure in study.figures.items():
                if set(figure["tables"]) <= set(made):
                    assert getattr(plots, name)(made).axes


def test_bounds_hold_on_every_network(runs):
    kept = tables.pl_kept(runs)
    assert kept["kept"].all()
    assert kept.query("embedding == 'scaling' and size >= 16")["informative"].all()
    assert tables.theorem(runs)["holds"].all()


def test_claims_select_by_columns_that_exist(runs):
    study = load_study(STUDY)
    for claim in study.claims:
        if claim["table"] not in own_tables():
            continue
        table = getattr(tables, claim["table"])(runs)
        assert set(claim.get("select", {})) <= set(table.columns)
