"""Sorted tau, dense networks: tidy tables to figures."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits import style
from resnet_limits.stats import means
from resnet_limits.style import Tables

# A start has a colour, and open or filled marks; all else has dashes and marks of its own.
STARTS: dict[str, dict[str, Any]] = {
    "tied": {"color": style.COLORS[2]},
    "iid": {"color": style.COLORS[1], "markerfacecolor": "white"},
}
NAMES = {"tied": "tied layers", "iid": "i.i.d. layers"}
TERMS = {
    "chains": "chains that the paper counts",
    "complete": "complete terms, $(k-1)!$ times as many",
}
ACTIVATIONS = ("tanh", "sin")
FACTORIAL = -0.5  # slopes below are nearer to 1/k! than to a geometric series


def expansion(tables: Tables) -> Figure:
    """Draw norms of the terms by order at the start, chains and complete, relative to the first."""
    table = tables["expansion"].query("weight_scale == 1 and order > 0 and not trained")
    figure, axes = style.panels(2, height=3.3, sharey=True)
    for ax, (name, title) in zip(axes, TERMS.items(), strict=True):
        _norms(ax, table[table["terms"] == name], title)
    axes[0].set_ylabel("norm of term $k$ over that of term 1")
    style.legend_below(figure, axes, columns=5)
    slopes = tables["expansion_slopes"].query(
        "weight_scale == 1 and not trained and start == 'tied' and activation == 'tanh'"
    )
    style.say(figure, _decay(slopes), _sample(table, ", weight scale 1"))
    return figure


def _decay(slopes: pd.DataFrame) -> str:
    """Say how the ratio of successive terms falls with their order."""
    rows = means(slopes, "terms", "slope").set_index("terms")
    if set(TERMS) - set(rows.index):
        return "Terms of the expansion."
    found = {name: style.interval(*rows.loc[name, ["mean", "low", "high"]]) for name in TERMS}
    how = {
        name: style.side(
            rows.loc[name, "low"], rows.loc[name, "high"], FACTORIAL,
            "decay like 1/k! or faster", "do not decay like 1/k!", "may decay like 1/k!",
        )
        for name in TERMS
    }  # fmt: skip
    return (
        f"The chains {how['chains']} (slope of successive ratios {found['chains']}), the complete "
        f"terms {how['complete']} ({found['complete']}): tanh, tied layers; 1/k! has -1, a "
        "geometric series 0."
    )


def _sample(table: pd.DataFrame, more: str = "") -> str:
    seeds = table["seeds"] if len(table) else []
    depth = f"; L = {table['depth'].max():.0f}" if len(table) else ""
    return f"{style.of_runs(seeds)}: {style.averages(seeds)}{depth}{more}."


@style.panel
def _norms(ax: Axes, table: pd.DataFrame, title: str) -> None:
    looks = _looks(ACTIVATIONS)
    for activation, start in product(ACTIVATIONS, STARTS):
        rows = table[(table["start"] == start) & (table["activation"] == activation)]
        if rows.empty:
            continue
        first = rows["norm_mean"].iloc[0]
        look = looks[activation] | STARTS[start]
        low = rows["norm_low"].clip(lower=rows["norm_mean"] / 10) / first
        ax.fill_between(
            rows["order"], low, rows["norm_high"] / first, color=look["color"], alpha=0.15, lw=0
        )
        label = f"{activation}, {NAMES[start]}"
        ax.plot(rows["order"], rows["norm_mean"] / first, **look, label=label)
    guide = table.groupby("order")["factorial"].mean()
    ax.plot(guide / guide.iloc[0], color="0.2", linewidth=2.2, zorder=5, label="$1 / k!$")
    ax.set(yscale="log", xlabel="order $k$", title=title)


def _looks(names: Any) -> dict[Any, dict[str, Any]]:
    """Give each name dashes and a mark, and leave its colour to the start."""
    return {
        name: {"marker": mark, "linestyle": dashes}
        for name, mark, dashes in zip(names, style.MARKERS, style.DASHES, strict=False)
    }


def remainder(tables: Tables) -> Figure:
    """Draw what the complete terms up to an order leave out, at every weight scale."""
    table = tables["expansion"].query("terms == 'complete' and order > 0 and not trained")
    figure, axes = style.panels(2, height=3.3, sharey=True)
    for ax, activation in zip(axes, ACTIVATIONS, strict=True):
        _remainders(ax, table[table["activation"] == activation], activation)
    axes[0].set_ylabel("left out, relative to $X^L - X^0$")
    style.legend_below(figure, axes, columns=3)
    style.say(figure, _left_out(table), _sample(table))
    return figure


def _left_out(table: pd.DataFrame) -> str:
    """Say where keeping more orders leaves more out."""
    cases = ["activation", "start", "weight_scale"]
    ordered = table.sort_values("order").dropna(subset="remainder_mean").groupby(cases)
    ends = ordered["remainder_mean"].agg(["first", "last"])
    grows = ends[ends["last"] > ends["first"]]
    message = (
        f"In {len(grows)} of {len(ends)} cases, all terms up to order {table['order'].max():.0f} "
        "leave out more than the first alone"
    )
    if len(grows):
        activation, start, scale = grows["last"].idxmax()
        message += (
            f", at most {grows['last'].max():.2g} times $X^L - X^0$ ({activation}, {NAMES[start]}, "
            f"weight scale {scale:g})"
        )
    return message + "."


@style.panel
def _remainders(ax: Axes, table: pd.DataFrame, title: str) -> None:
    scales = _looks(sorted(table["weight_scale"].unique()))
    for start, scale in product(STARTS, scales):
        rows = table[(table["start"] == start) & (table["weight_scale"] == scale)]
        look = scales[scale] | STARTS[start]
        low = rows["remainder_low"].clip(lower=rows["remainder_mean"] / 10)
        high = rows["remainder_high"]
        ax.fill_between(rows["order"], low, high, color=look["color"], alpha=0.15, lw=0)
        label = f"{NAMES[start]}, weight scale {scale:g}"
        ax.plot(rows["order"], rows["remainder_mean"], **look, label=label)
    ax.axhline(1, **style.GUIDE)
    ax.set(yscale="log", xlabel="highest order kept", title=title)


def gradient_scale(tables: Tables) -> Figure:
    """Draw the adjoint over depth after training, its extremes, and gradients at equal losses."""
    figure, axes = style.panels(3, height=3.8)
    extremes, gradients = tables["extremes"].query("trained"), tables["matched_gradients"]
    _adjoints(axes[0], tables["adjoint"].query("trained and start == 'tied'"))
    _extremes(axes[1], extremes)
    _ratios(axes[2], gradients)
    if len(extremes) and len(gradients):
        least, most = extremes["adjoint_least"].min(), extremes["adjoint_most"].max()
        low, high = gradients["ratio"].min(), gradients["ratio"].max()
        style.say(
            figure,
            f"From L = {extremes['depth'].min()} to {extremes['depth'].max()} layers, the adjoint "
            f"stays within {least:.2g} to {most:.2g} of its end in every network, and the deep "
            f"network's gradient within {low:.2g} to {high:.2g} of the two-layer network's.",
            f"{style.of_runs([extremes['seed'].nunique()])}; left, means with ranges of seeds; "
            "middle and right, medians, and every network (dots; right, at all levels of the "
            "loss); both networks trained.",
        )
    return figure


@style.panel
def _adjoints(ax: Axes, table: pd.DataFrame) -> None:
    for depth, look in style.shades(table["depth"].unique()).items():
        rows = table[table["depth"] == depth]
        every = max(1, len(rows) // 6)
        bars = np.array([rows["mean"] - rows["min"], rows["max"] - rows["mean"]])
        ax.errorbar(
            rows["time"], rows["mean"], bars, **look, markevery=every, errorevery=every,
            capsize=1.5, elinewidth=0.7, label=f"$L = {depth}$",
        )  # fmt: skip
    ax.set(xlabel="time $t = l / L$", ylabel=r"$||p(\cdot, t)||$ over $||p(\cdot, 1)||$")
    style.legend_above(ax, "adjoint, tied layers", ncols=2)


@style.panel
def _extremes(ax: Axes, rows: pd.DataFrame) -> None:
    names = {"adjoint_most": "greatest", "adjoint_least": "least", "adjoint_bound": "guaranteed"}
    looks = _looks(names)
    for (start, own), (column, name) in product(STARTS.items(), names.items()):
        chosen = rows[rows["start"] == start]
        _dots(ax, chosen, column, own["color"], start)
        label = f"{name}, {NAMES[start].removesuffix(' layers')}"
        line = chosen.groupby("depth")[column].median()
        ax.plot(line, **looks[column] | own, label=label)
    ax.set(xscale="log", yscale="log", xlabel="layers $L$", ylabel="relative to the end")
    _depths(ax, rows)
    style.legend_above(ax, "adjoint's extremes over depth", ncols=2, columnspacing=0.8)


def _dots(ax: Axes, rows: pd.DataFrame, column: str, color: str, start: str) -> None:
    """Draw every network, beside its start's median."""
    x = rows["depth"] * (1.12 if start == "tied" else 1 / 1.12)
    ax.plot(x, rows[column], ".", color=color, alpha=0.3, markersize=2.5)


@style.panel
def _ratios(ax: Axes, rows: pd.DataFrame) -> None:
    looks = _looks(levels := {0.0: "start", 1.0: "lowest loss"})
    for start, own in STARTS.items():
        chosen = rows[rows["start"] == start]
        _dots(ax, chosen, "ratio", own["color"], start)
        for progress, when in levels.items():
            line = chosen[chosen["progress"] == progress].groupby("depth")["ratio"].median()
            label = f"{NAMES[start].removesuffix(' layers')}, {when}"
            ax.plot(line, **looks[progress] | own, label=label)
    ax.axhline(1, **style.GUIDE)
    ax.set(xscale="log", yscale="log", xlabel="layers $L$")
    ax.set_ylabel("gradient, deep over two-layer")
    ax.set_ylim(min(0.5, 0.9 * rows["ratio"].min()), max(2, 1.1 * rows["ratio"].max()))
    _depths(ax, rows)
    style.legend_above(ax, "gradients at equal losses", ncols=2, columnspacing=0.8)


def _depths(ax: Axes, rows: pd.DataFrame) -> None:
    depths = np.array(sorted(rows["depth"].unique()))
    ax.set_xticks(depths, [str(depth) for depth in depths])
    ax.set_xticks([], minor=True)
    style.plain_numbers(ax)
