"""Two Spirals: tables and figures of all runs, and of every run alone."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from resnet_limits.record import Run, read_record

from resnet_limits import style, train
from resnet_limits.spec import load_study
from resnet_limits.studies.two_spirals import plots, tables

STUDY = load_study("two_spirals")
RUNS = [(config["experiment"], config["run"]) for config in STUDY.runs("smoke")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every smoke run after a few steps, by experiment."""
    folder, found = tmp_path_factory.mktemp("results"), {}
    for config in STUDY.runs("smoke"):
        short = config | {"settings": config["settings"] | {"steps": 6}}
        where = folder / config["experiment"] / config["run"]
        train.train(short, where, train.Context(torch.device("cpu"), Path()), 1e9)
        run = Run(where, read_record(where / "record.json"))
        found.setdefault(config["experiment"], []).append(run)
    return found


def make(runs):
    """Return the tables of the experiments that have runs, by name."""
    return {
        name: getattr(tables, name)({name: runs[name] for name in table["experiments"]})
        for name, table in STUDY.tables.items()
        if any(runs[name] for name in table["experiments"])
    }


def draw(made):
    with style.applied():
        for name, figure in STUDY.figures.items():
            if set(figure["tables"]) <= set(made):
                getattr(plots, name)(made).draw_without_rendering()


def test_tables_and_figures_of_all_runs(runs):
    made = make(runs)
    assert set(made) == set(STUDY.tables)
    for table in made.values():
        assert len(table)
        assert set(table["dataset"]) == {"two_spirals"}
    draw(made)


@pytest.mark.parametrize(("experiment", "run"), RUNS)
def test_tables_and_figures_of_every_run_alone(runs, experiment, run):
    alone = [other for other in runs[experiment] if other.folder.name == run]
    made = make({name: [] for name in runs} | {experiment: alone})
    assert all("dataset" in table for table in made.values())
    draw(made)


def test_a_run_that_ended_early_keeps_its_last_row():
    table = pd.DataFrame({"member": ["a", "a", "b"], "step": [0, 9, 0]})
    assert tables._last(table, ["member"])["step"].tolist() == [9, 0]
