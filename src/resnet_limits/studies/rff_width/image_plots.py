"""Finite and infinite width, images: tidy tables to figures."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from resnet_limits import style
from resnet_limits.style import Tables

LABELS = {"rkhs": "RKHS", "shl": "SHL"}
ROWS = {"train_loss": "training loss", "test_error": "test error in %"}
MARKERS_SHOWN = 8  # on a curve


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
    looks = style.looks(sorted(table[by].unique()))
    for column, ((pretraining, model), rows) in zip(axes.T, groups, strict=True):
        same = theirs[(theirs["pretraining"] == pretraining) & (theirs["model"] == model)]
        for ax, measure in zip(column, ROWS, strict=True):
            for value, look in looks.items():
                _theirs(ax, same[same[by] == value], measure, look)
                _ours(ax, rows[rows[by] == value], measure, look)
            ax.set_yscale("log")
            style.plain_numbers(ax)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_xlabel("epoch" if ax.get_subplotspec().is_last_row() else "")
        column[0].set_title(_title(table, model, pretraining))
    for ax, label in zip(axes[:, 0], ROWS.values(), strict=True):
        ax.set_ylabel(label)
    _legend(figure, table, theirs, looks, lines or by)
    return figure


def _axes(columns: list[int]) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes, a row for each measure; equal columns share their y axes.

    The panels of a single column stand side by side.
    """
    if len(columns) == 1:
        figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), squeeze=False)
        return figure, axes.T
    count = len(columns)
    figure, axes = plt.subplots(2, count, figsize=(2.0 + 2.1 * count, 4.6), sharex="col")
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
    theirs = theirs[theirs["dataset"] == ("mnist" if "channels" in table else "cifar10")]
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
    """Draw the mean over seeds with bars from the least to the largest."""
    spread = rows.groupby("epoch")[measure].agg(["mean", "min", "max"]).dropna()
    if spread.empty:
        return
    every = max(1, len(spread) // MARKERS_SHOWN)
    bars = [spread["mean"] - spread["min"], spread["max"] - spread["mean"]]
    ax.errorbar(
        spread.index, spread["mean"], yerr=bars, errorevery=every, markevery=every,
        markersize=3.5, linewidth=1.2, capsize=1.5, elinewidth=0.8,
        color=look["color"], marker=look["marker"],
    )  # fmt: skip


def _theirs(ax: Axes, rows: pd.DataFrame, measure: str, look: dict[str, Any]) -> None:
    """Draw the authors' mean, and a band of one standard deviation to both sides."""
    rows = rows.dropna(subset=[f"{measure}_mean"]) if len(rows) else rows
    if rows.empty:
        return
    middle, spread = rows[f"{measure}_mean"], rows[f"{measure}_sd"].fillna(0)
    color = look["color"]
    low = (middle - spread).clip(lower=middle / 10)
    ax.fill_between(rows["epoch"], low, middle + spread, color=color, alpha=0.2, lw=0)
    ax.plot(rows["epoch"], middle, color=color, linestyle=style.DASHES[2], linewidth=1.1)


def _legend(
    figure: Figure,
    table: pd.DataFrame,
    theirs: pd.DataFrame,
    looks: dict[Any, dict[str, Any]],
    lines: str,
) -> None:
    unit = lines.removesuffix("s")
    handles: list[Any] = [
        Line2D([], [], color=look["color"], marker=look["marker"], markersize=3.5,
               label=f"{value} {unit if value == 1 else lines}")
        for value, look in looks.items()
    ]  # fmt: skip
    seeds = table["seed"].nunique()
    bars = ", least to largest" if seeds > 1 else ""
    ours = f"ours, n = {seeds}{bars}"
    handles.append(Line2D([], [], color="0.3", marker="|", label=ours))
    if len(theirs):
        few, most = int(theirs["runs"].min()), int(theirs["runs"].max())
        count = f"{most}" if few == most else f"{few} to {most}"
        handles.append(Line2D([], [], color="0.3", linestyle=style.DASHES[2],
                              label=f"authors', n = {count}"))  # fmt: skip
        handles.append(Patch(color="0.3", alpha=0.2, lw=0, label="and one standard deviation"))
    figure.legend(handles=handles, loc="outside right center", fontsize=7)
