"""Sorted tau, dense networks: tidy tables to figures."""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits import style
from resnet_limits.style import Tables

STARTS: dict[str, dict[str, Any]] = {
    "tied": {"color": style.COLORS[2], "marker": "^", "linestyle": style.DASHES[1]},
    "iid": {"color": style.COLORS[1], "marker": "o", "linestyle": "-"},
}
NAMES = {"tied": "tied layers", "iid": "i.i.d. layers"}
TERMS = {
    "chains": "chains that the paper counts",
    "complete": "complete terms, $(k-1)!$ times as many",
}
ACTIVATIONS = {"tanh": "-", "sin": style.DASHES[2]}


def expansion(tables: Tables) -> Figure:
    """Draw norms of the terms by order at the start, chains and complete, relative to the first."""
    table = tables["expansion"].query("weight_scale == 1 and order > 0 and not trained")
    figure, axes = style.panels(2, width=8.2, height=3.8, sharey=True)
    for ax, (name, title) in zip(axes, TERMS.items(), strict=True):
        _norms(ax, table[table["terms"] == name], title)
    axes[0].set_ylabel("norm of term $k$ over that of term 1")
    style.legend_once(
        axes, title=_seeds(table, "mean, 95 %"), loc="lower left", fontsize=7, title_fontsize=7
    )
    return figure


def _seeds(table: pd.DataFrame, what: str) -> str:
    return f"{what}; $n = {table['seeds'].max():.0f}$ seeds" if len(table) else ""


@style.panel
def _norms(ax: Axes, table: pd.DataFrame, title: str) -> None:
    for (activation, dash), start in product(ACTIVATIONS.items(), STARTS):
        rows = table[(table["start"] == start) & (table["activation"] == activation)]
        if rows.empty:
            continue
        first = rows["norm_mean"].iloc[0]
        look = STARTS[start] | {"linestyle": dash}
        low = rows["norm_low"].clip(lower=rows["norm_mean"] / 10) / first
        ax.fill_between(
            rows["order"], low, rows["norm_high"] / first, color=look["color"], alpha=0.15
        )
        label = f"{activation}, {NAMES[start]}"
        ax.plot(rows["order"], rows["norm_mean"] / first, **look, label=label)
    guide = table.groupby("order")["factorial"].mean()
    ax.plot(guide / guide.iloc[0], color="0.2", linewidth=2.2, zorder=5, label="$1 / k!$")
    ax.set(yscale="log", xlabel="order $k$")
    ax.set_title(f"{title}, $L = {table['depth'].max()}$", fontsize=9)


def remainder(tables: Tables) -> Figure:
    """Draw what the complete terms up to an order leave out, at every weight scale."""
    table = tables["expansion"].query("terms == 'complete' and order > 0 and not trained")
    figure, axes = style.panels(2, width=8.2, height=3.8, sharey=True)
    for ax, activation in zip(axes, ACTIVATIONS, strict=True):
        _remainders(ax, table[table["activation"] == activation], activation)
    axes[0].set_ylabel("left out, relative to $X^L - X^0$")
    style.legend_once(
        axes, title=_seeds(table, "mean, 95 %"), loc="lower left", fontsize=6.5, title_fontsize=6.5
    )
    return figure


@style.panel
def _remainders(ax: Axes, table: pd.DataFrame, title: str) -> None:
    dashes = dict(zip(sorted(table["weight_scale"].unique()), style.DASHES, strict=False))
    for start, (scale, dash) in product(STARTS, dashes.items()):
        rows = table[(table["start"] == start) & (table["weight_scale"] == scale)]
        look = STARTS[start] | {"linestyle": dash}
        low = rows["remainder_low"].clip(lower=rows["remainder_mean"] / 10)
        ax.fill_between(rows["order"], low, rows["remainder_high"], color=look["color"], alpha=0.15)
        label = f"{NAMES[start]}, weight scale {scale:g}"
        ax.plot(rows["order"], rows["remainder_mean"], **look, label=label)
    ax.axhline(1, **style.GUIDE)
    ax.set(yscale="log", xlabel="highest order kept")
    ax.set_title(f"{title}, $L = {table['depth'].max()}$", fontsize=9)


def gradient_scale(tables: Tables) -> Figure:
    """Draw the adjoint over depth after training, its extremes, and gradients at equal losses."""
    figure, axes = style.panels(3, width=10.5, height=3.6)
    _adjoints(axes[0], tables["adjoint"].query("trained and start == 'tied'"))
    _extremes(axes[1], tables["extremes"].query("trained"))
    _ratios(axes[2], tables["matched_gradients"])
    return figure


@style.panel
def _adjoints(ax: Axes, table: pd.DataFrame) -> None:
    for depth, look in style.looks(sorted(table["depth"].unique())).items():
        rows = table[table["depth"] == depth]
        every = max(1, len(rows) // 6)
        ax.plot(rows["time"], rows["mean"], **look, markevery=every, label=f"$L = {depth}$")
    ax.set(xlabel="time $t = l / L$", ylabel=r"$||p(\cdot, t)||$ over $||p(\cdot, 1)||$")
    ax.set_title("adjoint over depth, tied start, trained", fontsize=9)
    ax.legend(title=_seeds(table, "mean"), fontsize=6.5, title_fontsize=6.5)


@style.panel
def _extremes(ax: Axes, rows: pd.DataFrame) -> None:
    names = {"adjoint_most": "greatest", "adjoint_least": "least", "adjoint_bound": "guaranteed"}
    for (column, label), look in zip(names.items(), style.looks(list(names)).values(), strict=True):
        ax.plot(rows["depth"], rows[column], ".", color=look["color"], alpha=0.3, markersize=3)
        ax.plot(rows.groupby("depth")[column].median(), **look, label=label)
    ax.set(xscale="log", yscale="log", xlabel="layers $L$", ylabel="relative to the end")
    ax.set_title("extremes of the adjoint, trained", fontsize=9)
    _depths(ax, rows)
    ax.legend(
        title=f"median and networks; $n = {rows['seed'].nunique()}$ seeds",
        loc="lower right", fontsize=6.5, title_fontsize=6.5,
    )  # fmt: skip


@style.panel
def _ratios(ax: Axes, rows: pd.DataFrame) -> None:
    for start, look in STARTS.items():
        chosen = rows[rows["start"] == start]
        for progress, alpha in ((0.0, 0.45), (1.0, 1.0)):
            level = chosen[chosen["progress"] == progress]
            when = "loss at the start" if progress == 0 else "lowest loss of both"
            ax.plot(
                level.groupby("depth")["ratio"].median(),
                **look,
                markerfacecolor="white" if progress == 0 else look["color"],
                alpha=alpha,
                label=f"{NAMES[start]}, {when}",
            )
        ax.plot(chosen["depth"], chosen["ratio"], ".", color=look["color"], alpha=0.2, markersize=3)
    ax.axhline(1, **style.GUIDE)
    ax.set(xscale="log", yscale="log", xlabel="layers $L$")
    ax.set_ylabel("gradient of the deep over the two-layer")
    ax.set_title("gradients at equal losses, both trained", fontsize=9)
    _depths(ax, rows)
    low, high = rows["ratio"].min(), rows["ratio"].max()
    ax.set_ylim(min(low, 0.5) / 2, max(high, 2) * 1.3)  # room for the legend
    style.plain_numbers(ax)
    ax.legend(
        title=f"median and networks at all levels; $n = {rows['seed'].nunique()}$ seeds",
        loc="lower left", fontsize=6, title_fontsize=6,
    )  # fmt: skip


def _depths(ax: Axes, rows: pd.DataFrame) -> None:
    depths = sorted(rows["depth"].unique())
    ax.set_xticks(depths, [str(depth) for depth in depths])
    ax.set_xticks([], minor=True)
    style.plain_numbers(ax)
