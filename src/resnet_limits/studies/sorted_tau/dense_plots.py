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


def expansion(tables: Tables) -> Figure:
    """Draw norms of the terms by order at the largest depth, and what is left out."""
    table = tables["expansion"].query("deepest and order > 0")
    figure, axes = style.panels(3, width=9.5, height=3.3)
    for ax, activation in zip(axes[:2], ("tanh", "identity"), strict=True):
        _norms(ax, table[table["activation"] == activation])
    axes[0].set_ylabel("norm of the term $T_k$")
    style.legend_once(axes[:2], title="means; bands: 95 %", fontsize=6, title_fontsize=6)
    _remainders(axes[2], table[table["activation"] == "tanh"])
    return figure


@style.panel
def _norms(ax: Axes, table: pd.DataFrame) -> None:
    _terms(ax, table, "norm")
    untrained = table[(table["start"] == "tied") & ~table["trained"]]
    guide = untrained.groupby("order")["factorial"].mean()
    ax.plot(guide, **style.GUIDE, label="$||T_1|| / k!$")
    ax.set(yscale="log", xlabel="order $k$", title=_title(table))


@style.panel
def _remainders(ax: Axes, table: pd.DataFrame) -> None:
    _terms(ax, table, "remainder")
    ax.set(yscale="log", xlabel="highest order kept", title="tanh")
    ax.set_ylabel("left out, relative to $X^L - X^0$")


def _title(table: pd.DataFrame) -> str:
    activation, depth = table[["activation", "depth"]].iloc[0]
    name = "linear blocks" if activation == "identity" else activation
    return f"{name}, $L = {depth}$"


def _terms(ax: Axes, table: pd.DataFrame, column: str) -> None:
    """Draw a column's means over orders with bands, before and after training."""
    for start, trained in product(STARTS, (False, True)):
        rows = table[(table["start"] == start) & (table["trained"] == trained)]
        points, look = rows.drop_duplicates("order"), STARTS[start]
        points = points[points[f"{column}_mean"] > 0]
        low = points[f"{column}_low"].clip(lower=points[f"{column}_mean"] / 10)
        high, color = points[f"{column}_high"], look["color"]
        ax.fill_between(points["order"], low, high, color=color, alpha=0.15)
        ax.plot(
            points["order"],
            points[f"{column}_mean"],
            **look,
            markerfacecolor="white" if trained else color,
            label=_label(start, trained),
        )


def _label(start: str, trained: bool) -> str:
    return f"{start}, {'trained' if trained else 'at the start'}"


def gradient_scale(tables: Tables) -> Figure:
    """Draw the adjoint over depth after training, its extremes over L, and gradients over L."""
    adjoint = tables["adjoint"].query("activation == 'tanh' and trained and start == 'tied'")
    gradients = tables["gradients"].query("activation == 'tanh'")
    figure, axes = style.panels(3, width=9.5, height=3.3)
    _adjoints(axes[0], adjoint)
    _extremes(axes[1], gradients.query("trained"))
    _ratios(axes[2], gradients)
    return figure


@style.panel
def _adjoints(ax: Axes, table: pd.DataFrame) -> None:
    for depth, look in style.looks(sorted(table["depth"].unique())).items():
        rows = table[table["depth"] == depth]
        every = max(1, len(rows) // 6)
        ax.plot(rows["time"], rows["mean"], **look, markevery=every, label=f"$L = {depth}$")
    ax.set(
        xlabel="time $t = l / L$",
        ylabel=r"$||p(\cdot, t)||\; /\; ||p(\cdot, 1)||$",
        title="adjoint, layers alike at the start, trained",
    )
    ax.legend(title="mean over seeds", fontsize=6.5, title_fontsize=6.5)


@style.panel
def _extremes(ax: Axes, rows: pd.DataFrame) -> None:
    names = {"adjoint_most": "greatest", "adjoint_least": "least", "adjoint_bound": "guaranteed"}
    for (column, label), look in zip(names.items(), style.looks(list(names)).values(), strict=True):
        ax.plot(rows["depth"], rows[column], ".", color=look["color"], alpha=0.3, markersize=3)
        ax.plot(rows.groupby("depth")[column].median(), **look, label=label)
    ax.set(xscale="log", yscale="log", xlabel="layers $L$", ylabel="relative to the end")
    ax.set_title("extremes of the adjoint over depth, trained")
    _depths(ax, rows)
    ax.legend(title="median and networks", loc="lower right", fontsize=6.5, title_fontsize=6.5)


@style.panel
def _ratios(ax: Axes, rows: pd.DataFrame) -> None:
    for start, trained in product(STARTS, (False, True)):
        chosen = rows[(rows["start"] == start) & (rows["trained"] == trained)]
        look = STARTS[start]
        ax.plot(
            chosen.groupby("depth")["gradient_ratio"].median(),
            **look,
            markerfacecolor="white" if trained else look["color"],
            label=_label(start, trained),
        )
        x, y = chosen["depth"], chosen["gradient_ratio"]
        ax.plot(x, y, ".", color=look["color"], alpha=0.3, markersize=3)
    ax.axhline(1, **style.GUIDE)
    ax.set(xscale="log", yscale="log", xlabel="layers $L$", title="gradients over roots of losses")
    ax.set_ylabel("deep over two-layer")
    _depths(ax, rows)
    ax.set_ylim(bottom=rows["gradient_ratio"].min() / 4)  # room for the legend
    ax.legend(title="median and networks", loc="lower left", fontsize=6, title_fontsize=6)


def _depths(ax: Axes, rows: pd.DataFrame) -> None:
    depths = sorted(rows["depth"].unique())
    ax.set_xticks(depths, [str(depth) for depth in depths])
    ax.set_xticks([], minor=True)
    style.plain_numbers(ax)
