"""Two Spirals in the setting of the paper's theory, and by torchdyn: tidy tables to figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits import style
from resnet_limits.stats import means
from resnet_limits.style import Tables

FLAT = 1e-17  # differences of 0 are drawn here


def start(tables: Tables) -> Figure:
    """Draw the smallest eigenvalue at the start over the number of particles, and its limit."""
    table, points = tables["start"], tables["start_means"]
    figure, axes = style.panels(2)
    looks = style.looks(sorted(points["n_train"].unique()))
    _start_ratios(axes[0], points, looks)
    _limits(axes[1], table, looks)
    style.legend_below(figure, axes[:1], columns=4)
    if len(points):
        largest = points[points["n_train"] == points["n_train"].max()]
        few, many = largest.iloc[0], largest.iloc[-1]
        style.say(
            figure,
            f"With {few['n_train']} training points, the smallest eigenvalue at the start is "
            f"{style.interval(*few[['mean', 'low', 'high']])} of its limit with "
            f"{few['particles']} particles, and "
            f"{style.interval(*many[['mean', 'low', 'high']])} with {many['particles']}.",
            f"{style.of_runs(points['n'])}; {style.averages(points['n'])}; right, every data set.",
        )
    return figure


@style.panel
def _start_ratios(ax: Axes, table: pd.DataFrame, looks: dict[int, dict[str, Any]]) -> None:
    for index, (size, rows) in enumerate(table.groupby("n_train")):
        x = rows["particles"] * 1.08 ** (index - (len(looks) - 1) / 2)
        bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
        ax.errorbar(x, rows["mean"], bars, **looks[size], capsize=2, label=f"$n = {size}$")
    ax.axhline(1, **style.GUIDE)
    style.label_guide(ax, "limit", (table["particles"].min(), 1))
    ax.set(xscale="log", xlabel="particles $K$", ylim=(0, None))
    _ticks(ax, table["particles"])
    ax.set_ylabel(r"$\lambda_{\min}(G_2)$ at the start over $\Lambda$")


@style.panel
def _limits(ax: Axes, table: pd.DataFrame, looks: dict[int, dict[str, Any]]) -> None:
    table = table[table["particles"] == table["particles"].max()]
    rounding = table["limit_min"] / table["resolution"]
    for size, rows in table.groupby("n_train"):
        spread = np.linspace(0.93, 1.07, len(rows))
        look = looks[size] | {"linestyle": "none", "markersize": 3.5}
        ax.plot(size * spread, rows["limit_min"], **look)
    floor = rounding.groupby(table["n_train"]).max()
    ax.plot(floor, **style.GUIDE)
    style.label_guide(ax, "rounding error", (floor.index[0], floor.iloc[0]))
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="training points $n$",
        ylabel=r"limit $\Lambda$ of $\lambda_{\min}(G_2)$",
    )
    ax.set_ylim(floor.min() / 10, None)
    _ticks(ax, table["n_train"])


def _ticks(ax: Axes, values: pd.Series) -> None:
    """Put ticks at the values of a log axis, and nowhere else."""
    shown = sorted(values.unique())
    ax.set_xticks(shown, [f"{value:g}" for value in shown])
    ax.minorticks_off()


def theory(tables: Tables) -> Figure:
    """Draw eigenvalues, loss and distances along the gradient flow."""
    table = tables["flow"]
    if table.empty:
        return style.not_run()
    largest = table[table["particles"] == table["particles"].max()]
    figure, axes = style.panels(3, height=3.1)
    looks = style.looks(sorted(largest["scaling"].unique()))
    moved = largest[largest["step"] > 0]
    _own_ratios(axes[0], moved, looks)
    _losses(axes[1], moved, looks)
    ends = largest[largest["step"] == largest["step"].max()]
    _end_distances(axes[2], ends)
    style.legend_below(figure, axes[:2], columns=len(looks) + 1)
    _say_theory(figure, moved, ends)
    return figure


def _say_theory(figure: Figure, moved: pd.DataFrame, ends: pd.DataFrame) -> None:
    scaling = moved["scaling"].max()
    lowest = moved.loc[moved["scaling"] == scaling, "own_ratio"].min()
    logs = np.log(ends.groupby("scaling")["distance"].mean())
    slope = np.polyfit(np.log(logs.index), logs, 1)[0] if len(logs) > 1 else np.nan
    number = moved[["n_train", "seed"]].drop_duplicates()
    style.say(
        figure,
        f"At αβ = {scaling:g} the smallest eigenvalue of $G_2$ never falls below "
        f"{lowest:.2f} of its start (Lemma 4.4: 1/2); over αβ, the distance that "
        f"particles move has the slope {slope:.2f}.",
        f"{style.of_runs([moved['seed'].nunique()])}, {moved['particles'].iloc[0]} particles; "
        f"left, medians of {style.count(len(number), 'network')} each (thin); middle, means and "
        f"seeds (thin); right, {style.averages([moved['seed'].nunique()])}.",
    )


@style.panel
def _own_ratios(ax: Axes, table: pd.DataFrame, looks: dict[float, dict[str, Any]]) -> None:
    for scaling, rows in table.groupby("scaling"):
        look = looks[scaling]
        style.runs(ax, rows, "step", "own_ratio", ["n_train", "seed"], look["color"], alpha=0.2)
        label = rf"$\alpha\beta = {scaling:g}$"
        ax.plot(rows.groupby("step")["own_ratio"].median(), **look, label=label)
    ax.axhline(0.5, **style.GUIDE)
    style.label_guide(ax, "1/2 (Lemma 4.4)", (table["step"].min(), 0.5))
    sizes = ", ".join(str(size) for size in sorted(table["n_train"].unique()))
    ax.set(xscale="log", yscale="log", xlabel="gradient step", title=f"$n$ = {sizes}")
    ax.set_ylim(0.2, None)
    ax.set_ylabel(r"$\lambda_{\min}(G_2)$ relative to the start")
    style.plain_numbers(ax)


@style.panel
def _losses(ax: Axes, table: pd.DataFrame, looks: dict[float, dict[str, Any]]) -> None:
    size = table["n_train"].min()
    table = table[table["n_train"] == size]
    table = table.assign(bound=table["loss_start"] * np.exp(-table["proven_rate"] * table["time"]))
    for scaling, rows in table.groupby("scaling"):
        style.runs(ax, rows, "step", "loss", "seed", looks[scaling]["color"])
        ax.plot(rows.groupby("step")["loss"].mean(), **looks[scaling])
    # In gradient steps, whose length is in proportion to 1 / beta^2, the bounds are the same.
    bound = table.groupby("step")["bound"].mean()
    ax.plot(bound, **style.GUIDE | {"zorder": 3}, label="bound (Theorem 4.7)")
    ax.set(xscale="log", yscale="log", xlabel="gradient step", title=f"$n$ = {size}")
    ax.set(ylabel="training loss", ylim=(1e-6, 2))


@style.panel
def _end_distances(ax: Axes, table: pd.DataFrame) -> None:
    points = means(table, ["n_train", "scaling"], "distance")
    looks = style.shades(points["n_train"].unique())
    for index, (size, rows) in enumerate(points.groupby("n_train")):
        x = rows["scaling"] * 1.08 ** (index - (len(looks) - 1) / 2)
        style.points(ax, x, rows, looks[size], label=f"$n = {size}$")
    scaling = np.array(sorted(points["scaling"].unique()))
    top = points["mean"].max()
    ax.plot(scaling, 1.5 * top * scaling[0] / scaling, **style.GUIDE, label="slope $-1$")
    ax.set(xscale="log", yscale="log", xlabel=r"$\alpha\beta$")
    _ticks(ax, points["scaling"])
    ax.set_ylabel("RMS distance of particles at the end")
    ax.set_ylim(points["mean"].min() / 8, None)  # room for the legend
    style.plain_numbers(ax)
    ax.legend(loc="lower left")


def particles(tables: Tables) -> Figure:
    """Draw the smallest eigenvalue over training, relative to the limit, over particles."""
    table = tables["descent"]
    if table.empty:
        return style.not_run()
    sizes = sorted(table["n_train"].unique())
    figure, axes = style.panels(len(sizes), sharey=True)
    points = means(table, ["n_train", "scaling", "particles"], "smallest_ratio")
    looks = style.looks(sorted(table["scaling"].unique()))
    for ax, size in zip(axes, sizes, strict=True):
        _smallest_ratios(ax, points[points["n_train"] == size], looks)
        ax.set_title(f"$n = {size}$")
    axes[0].set_ylim(0, 1.05 * points["high"].max())
    style.label_guide(axes[0], "1/2 (Lemma 4.4)", (points["particles"].min(), 0.5))
    axes[0].set_ylabel(r"smallest $\lambda_{\min}(G_2)$ over $\Lambda$")
    style.legend_below(figure, axes[:1], columns=len(looks))
    best = points[points["scaling"] == points["scaling"].max()]
    best = best[best["particles"] == best["particles"].max()]
    above = (best["low"] > 0.5).sum()
    row = best.iloc[0]
    style.say(
        figure,
        f"At αβ = {row['scaling']:g} with {row['particles']:.0f} particles, the smallest "
        f"eigenvalue stays above half of the limit at {above} of {len(best)} sizes (limits above "
        f"1/2); means are {best['mean'].min():.2f} to {best['mean'].max():.2f} of it.",
        f"{style.of_runs(points['n'])}; {style.averages(points['n'])}.",
    )
    return figure


def _smallest_ratios(ax: Axes, points: pd.DataFrame, looks: dict[float, dict[str, Any]]) -> None:
    for index, (scaling, rows) in enumerate(points.groupby("scaling")):
        x = rows["particles"] * 1.14 ** (index - (len(looks) - 1) / 2)
        bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
        label = rf"$\alpha\beta = {scaling:g}$"
        ax.errorbar(x, rows["mean"], bars, **looks[scaling], capsize=2, label=label)
    ax.axhline(0.5, **style.GUIDE)
    ax.set(xscale="log", xlabel="particles $K$")
    _ticks(ax, points["particles"])


def solvers(tables: Tables) -> Figure:
    """Draw how far the batched engine is from torchdyn, and Euler from the ODE."""
    table, gaps = tables["solvers"], tables["solver_gaps"]
    figure, axes = style.panels(2)
    _differences(axes[0], table)
    _gaps(axes[1], gaps, table)
    if len(table):
        style.say(
            figure,
            "Losses of the batched engine and of torchdyn's Euler solver differ by "
            f"{table['difference'].max():.0e} of themselves at most; the distance from the "
            f"adaptive solver has the slope {_slope(gaps):.2f} in L after training.",
            f"{style.of_runs([table['seed'].nunique()])}; left, every network (no difference at "
            f"{FLAT:.0e}); right, {style.averages(gaps['n'])}, and seeds (thin).",
        )
    return figure


def _slope(gaps: pd.DataFrame) -> float:
    ends = gaps[gaps["last"].astype(bool)]
    return float(np.polyfit(np.log(ends["depth"]), np.log(ends["mean"]), 1)[0])


@style.panel
def _differences(ax: Axes, table: pd.DataFrame) -> None:
    looks = style.shades(table["depth"].unique())
    for (depth, seed), run in table.groupby(["depth", "seed"]):
        label = f"$L = {depth}$" if seed == table["seed"].min() else None
        look = looks[depth] | {"markersize": 3.5, "linewidth": 0.9}
        ax.plot(run["step"], run["difference"].clip(lower=FLAT), **look, label=label)
    ax.set(yscale="log", xlabel="Adam step")
    ax.set_ylim(FLAT / 3, 100 * max(FLAT, table["difference"].max()))
    ax.set_ylabel("relative difference of losses\nbatched engine, torchdyn's Euler")
    ax.legend(ncols=2, loc="upper left")


@style.panel
def _gaps(ax: Axes, table: pd.DataFrame, runs: pd.DataFrame) -> None:
    names = {False: "at the start", True: "after training"}
    looks = style.looks(list(names), skip=1)
    for last, rows in table.groupby("last"):
        every = runs[runs["last"]] if last else runs[runs["step"] == 0]
        style.runs(ax, every, "depth", "to_adaptive", "seed", looks[last]["color"])
        style.points(ax, rows["depth"], rows, looks[last], label=names[last])
    depths = np.array(sorted(table["depth"].unique()))
    top = table["mean"].max()
    ax.plot(depths, 1.3 * top * depths[0] / depths, **style.GUIDE, label="slope $-1$")
    ax.set(xscale="log", yscale="log", xlabel="Euler steps $L$")
    _ticks(ax, table["depth"])
    ax.set_ylabel("RMS distance of outputs\nEuler's solver, adaptive solver")
    ax.legend()
