"""Runs of studies, trained for a few steps or planted, and what is made of them."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from matplotlib.text import Text

from resnet_limits import style
from resnet_limits.layout import Layout
from resnet_limits.problem import Context
from resnet_limits.runs import read_run
from resnet_limits.settings import build, to_json
from resnet_limits.spec import load_study
from resnet_limits.train import fit

CPU = Context(torch.device("cpu"), Path("data"))


def configuration(study, experiment, run=0, **changes):
    """Return a smoke run's configuration, by its id or its index, with other settings."""
    runs = load_study(study).experiment(experiment, "smoke").runs()
    config = runs[run] if isinstance(run, str) else list(runs.values())[run]
    settings = to_json(config.settings) | changes
    return replace(config, settings=build(type(config.settings), settings, experiment))


def problem(study, experiment, run=0, **changes):
    """Return a smoke run's problem on the CPU, with other settings."""
    return _problem(configuration(study, experiment, run, **changes))


def _problem(config):
    study = load_study(config.key.study)
    name = study.experiments[config.key.experiment].problem
    return study.load("problems", name)(config.settings, CPU)


def train(problem, steps):
    """Train a problem as `fit` does; return every step's losses, ``(steps, members)``."""
    losses = []
    for _ in range(steps):
        problem.optimizer.zero_grad()
        losses.append(problem.loss_and_grad().clone())
        problem.optimizer.step()
        if problem.scheduler is not None:
            problem.scheduler.step()
    return torch.stack(losses)


def finished(config, folder):
    """Train a run to its end and read it."""
    where = Layout(folder).run(config.key)
    fit(_problem(config), config, "", where, checkpoint_seconds=float("inf"))
    return read_run(where, config)


def smoke_runs(study, folder, experiments=None, **changes):
    """Train all smoke runs of some experiments; changes are settings by experiment."""
    spec = load_study(study)
    return {
        experiment: [
            finished(configuration(study, experiment, run, **changes.get(experiment, {})), folder)
            for run in spec.experiment(experiment, "smoke").runs()
        ]
        for experiment in experiments or spec.experiments
    }


def each_alone(runs):
    """Yield runs as if each were the only one that has finished."""
    for experiment, found in runs.items():
        for run in found:
            yield {experiment: [run]}


class PlantedRun:
    """A finished run whose probes measured what is given."""

    protocol = ("paper", "")

    def __init__(self, settings, diverged=(), **measured):
        self.settings = settings
        self.record = SimpleNamespace(
            outcome=SimpleNamespace(diverged=list(diverged)), data=SimpleNamespace(name="planted")
        )
        self.measured = measured

    def has(self, probe):
        return probe in self.measured

    def measurements(self, probe="metrics"):
        return self.measured[probe].copy()


def make_table(study, name, runs):
    """Return a table by its name; experiments that are not among the runs have none."""
    spec = load_study(study)
    of = {experiment: runs.get(experiment, []) for experiment in spec.tables[name].experiments}
    return spec.load("tables", name)(of)


def make_tables(study, runs):
    """Return all tables, by name, of which some run is there."""
    return {
        name: make_table(study, name, runs)
        for name, table in load_study(study).tables.items()
        if any(runs.get(experiment) for experiment in table.experiments)
    }


def draw_figures(study, tables):
    """Draw all figures, by name, of which some table is there, as `drawing.draw_figure` does.

    Each is checked for what holds of every figure.
    """
    spec, drawn = load_study(study), {}
    with style.applied():
        for name, figure in spec.figures.items():
            given = {t: tables.get(t, pd.DataFrame(columns=["dataset"])) for t in figure.tables}
            if not all(table.empty for table in given.values()):
                drawn[name] = spec.load("plots", name)(given)
                drawn[name].draw_without_rendering()
                check_figure(drawn[name])
    return drawn


RUNS = re.compile(r"\d+ (seed|network|process|pair|draw|data set|chain|run)")


def check_figure(figure):
    """Check width, letters and words of a figure, and that no axis of errors goes below 0."""
    assert figure.get_figwidth() == style.WIDTH
    assert {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()} == {style.FONT}
    for ax in figure.axes:
        for label, limits in ((ax.get_xlabel(), ax.get_xlim()), (ax.get_ylabel(), ax.get_ylim())):
            if re.fullmatch(r"(training |test )?(0-1 )?error( in %)?", label):
                assert limits[0] >= 0, label
    if len(figure.axes) == 1 and not figure.axes[0].axison:
        return  # a notice
    check_words(style.words(figure))
    check_layout(figure)


def check_words(words):
    """Check that a figure says in words what it shows, and of how many runs."""
    assert words["message"].endswith("."), words
    assert not re.search(r"\b(nan|inf|None)\b", words["message"] + words["sample"]), words
    assert RUNS.search(words["sample"]), words


def check_layout(figure):
    """Check that words, panels and legends lie in the figure, and none on another."""
    style.frame(figure, "data: some")
    figure.draw_without_rendering()
    whole, parts = figure.bbox.padded(2), [*figure.texts, *figure.axes, *figure.legends]
    boxes = [part.get_tightbbox().padded(-1) for part in parts if part.get_visible()]
    for box in boxes:
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, (whole, box)
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1, (whole, box)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other), (one, other)
