"""Finite and infinite width, images: tidy tables to figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_limits import style
from resnet_limits.style import Tables

LABELS = {"rkhs": "RKHS", "shl": "SHL"}
ROWS = {"train_loss": "training loss", "test_error": "test error in %"}
MARKERS_SHOWN = 8  # on a curve
OURS: dict[str, Any] = {"linestyle": "-", "linewidth": 1.2, "markersize": 3.5}
THEIRS: dict[str, Any] = {
    "linestyle": style.DASHES[2],
    "linewidth": 1.1,
    "markersize": 3.5,
    "markerfacecolor": "white",
}


def mnist_layers(tables: Tables) -> Figure:
    """Draw training loss and test error of both models, by layers and pretraining."""
    return _grid(tables["mnist_curves"], "mnist_layers", tables["authors_curves"], "layers")


def mnist_channels(tables: Tables) -> Figure:
    """Draw training loss and test error of RKHS residuals by channels."""
    return _grid(tables["mnist_curves"], "mnist_channels", tables["authors_curves"], "channels")


def cifar(tables: Tables) -> Figure:
    """Draw training loss and test error of both models, by blocks of the third stage."""
    table = tables["cifar_curves"].assign(pretraining=0)
    return _grid(table, "cifar", tables["authors_curves"], "layers", lines="blocks")


def _grid(
    table: pd.DataFrame, experiment: str, theirs: pd.DataFrame, by: str, lines: str = ""
) -> Figure:
    """Draw two panels for each model and pretraining, and in them a curve for each value."""
    if table.empty or (table := table[table["experiment"] == experiment]).empty:
        return style.not_run()
    theirs = _same_networks(theirs, table)
    groups: Any = table.groupby(["pretraining", "model"])
    figure, axes = _axes([pretraining for (pretraining, _), _ in groups])
    looks = style.ordered(table[by].unique())
    for column, ((pretraining, model), rows) in zip(axes.T, groups, strict=True):
        same = theirs[(theirs["pretraining"] == pretraining) & (theirs["model"] == model)]
        for ax, measure in zip(column, ROWS, strict=True):
            for value, look in looks.items():
                _theirs(ax, same[same[by] == value], measure, look)
                _ours(ax, rows[rows[by] == value], measure, look)
            ax.set_yscale("log")
            style.plain_numbers(ax)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set_xlabel("epoch" if ax.get_subplotspec().is_last_row() else "")
        column[0].set_title(_title(table, model, pretraining))
    for ax, label in zip(axes[:, 0], ROWS.values(), strict=True):
        ax.set_ylabel(label)
    _name_lines(axes[0, 0], looks, lines or by, len(theirs) > 0)
    style.legend_below(figure, axes[0, :1], columns=len(looks) + 2)
    style.say(figure, _against_theirs(table), _sample(table, theirs))
    return figure


def _axes(columns: list[int]) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes, a row for each measure; equal columns share their y axes.

    The panels of a single column stand side by side.
    """
    if len(columns) == 1:
        figure, axes = style.grid(1, 2)
        return figure, axes.T
    figure, axes = style.grid(2, len(columns), 2.4, sharex="col")
    for row in axes:
        for index, column in enumerate(columns):
            first = columns.index(column)
            if first < index:
                row[index].sharey(row[first])
                row[index].tick_params(labelleft=False)
    return figure, axes


def _same_networks(theirs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return the authors' rows of the networks that were run, up to the last epoch of ours.

    What does not tell networks of a data set apart has no value in their table.
    """
    if theirs.empty or "channels" not in theirs:
        return pd.DataFrame(columns=["model", "layers", "channels", "pretraining", "epoch"])
    theirs = theirs[theirs["authors_dataset"] == ("mnist" if "channels" in table else "cifar10")]
    theirs = theirs.fillna({"pretraining": 0})
    point = [name for name in ("model", "layers", "channels", "pretraining") if name in table]
    reached = table.groupby(point)["epoch"].max().rename("reached").reset_index()
    theirs = theirs.merge(reached, on=point)
    return theirs[theirs["epoch"] <= theirs["reached"]]


def _title(table: pd.DataFrame, model: str, pretraining: int) -> str:
    if table["pretraining"].nunique() == 1 and not pretraining:
        return LABELS[model]
    return f"{LABELS[model]}, " + ("pretrained" if pretraining else "random") + " maps"


def _ours(ax: Axes, rows: pd.DataFrame, measure: str, look: dict[str, Any]) -> None:
    """Draw every seed, and the mean."""
    rows = rows.dropna(subset=measure)
    if rows.empty:
        return
    style.runs(ax, rows, "epoch", measure, "seed", look["color"])
    mean = rows.groupby("epoch")[measure].mean()
    every = max(1, len(mean) // MARKERS_SHOWN)
    ax.plot(mean, markevery=every, **look | OURS)


def _theirs(ax: Axes, rows: pd.DataFrame, measure: str, look: dict[str, Any]) -> None:
    """Draw the authors' mean, and a band of one standard deviation to both sides."""
    rows = rows.dropna(subset=[f"{measure}_mean"]) if len(rows) else rows
    if rows.empty:
        return
    middle, spread = rows[f"{measure}_mean"], rows[f"{measure}_sd"].fillna(0)
    low = (middle - spread).clip(lower=middle / 10)
    ax.fill_between(rows["epoch"], low, middle + spread, color=look["color"], alpha=0.2, lw=0)
    every = max(1, len(rows) // MARKERS_SHOWN)
    ax.plot(rows["epoch"], middle, markevery=(every // 2, every), **look | THEIRS)


def _name_lines(
    ax: Axes, looks: dict[float, dict[str, Any]], lines: str, with_theirs: bool
) -> None:
    """Label lines by their value and by whose they are, without drawing anything."""
    for value, look in looks.items():
        ax.plot([], [], **look | OURS, label=style.count(value, lines.removesuffix("s")))
    grey = {"color": "0.3"}
    ax.plot([], [], **grey | OURS, label="ours")
    if with_theirs:
        ax.plot([], [], **grey | THEIRS, label="authors'")


def _against_theirs(table: pd.DataFrame) -> str:
    """Say how far test errors at the end are from the authors', where they have any."""
    network = [name for name in ("model", "layers", "channels", "pretraining") if name in table]
    last = table[table["epoch"] == table.groupby(network)["epoch"].transform("max")]
    averages = last.groupby(network)[["test_error", "error_difference"]].mean()
    difference = averages["error_difference"].dropna()
    data = ", ".join(map(style.dataset, table["dataset"].unique()))
    ends = (
        f"{data}, epoch {last['epoch'].max()}: test errors are {_percent(averages['test_error'])}"
    )
    if difference.empty:
        return f"{ends}; the authors have no such runs."
    points = style.span(difference)
    return f"{ends}, the authors' differ by {points} points (ours minus theirs)."


def _percent(values: pd.Series) -> str:
    return f"{style.span(values, 1)} %"


def _sample(table: pd.DataFrame, theirs: pd.DataFrame) -> str:
    ours = f"Ours: {style.of_runs([table['seed'].nunique()])} (thin) and their means."
    if theirs.empty:
        return ours
    runs = style.of_runs(theirs["runs"].agg(["min", "max"]), "run")
    return f"{ours} Authors': means of {runs} with one standard deviation (bands)."
