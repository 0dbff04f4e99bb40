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


def start(tables: Tables) -> Figure:
    """Draw the smallest eigenvalue at the start over the number of particles, and its limit."""
    figure, axes = style.panels(2, width=7.0, height=3.2)
    _start_ratios(axes[0], tables["start_means"])
    _limits(axes[1], tables["start"])
    return figure


@style.panel
def _start_ratios(ax: Axes, table: pd.DataFrame) -> None:
    looks = style.looks(sorted(table["n_train"].unique()))
    for size, rows in table.groupby("n_train"):
        bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
        ax.errorbar(
            rows["particles"], rows["mean"], bars, **looks[size], capsize=2, label=f"$n = {size}$"
        )
    ax.axhline(1, **style.GUIDE)
    style.label_guide(ax, "limit", (table["particles"].min(), 1))
    ax.set(xscale="log", xlabel="particles $K$", ylim=(0, None))
    ax.set_ylabel(r"$\lambda_{\min}(G_2)$ at the start over $\Lambda$")
    ax.legend(title=f"{table['n'].max()} seeds", fontsize=7, title_fontsize=7)


@style.panel
def _limits(ax: Axes, table: pd.DataFrame) -> None:
    table = table[table["particles"] == table["particles"].max()]
    rounding = table["limit_min"] / table["resolution"]
    ax.scatter(table["n_train"], table["limit_min"], s=14, color=style.COLORS[1], label="data sets")
    floor = rounding.groupby(table["n_train"]).max()
    ax.plot(floor, **style.GUIDE, label="rounding error")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="training points $n$",
        ylabel=r"limit $\Lambda$ of $\lambda_{\min}(G_2)$",
    )
    sizes = sorted(table["n_train"].unique())
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.legend(title=f"{table['seed'].nunique()} seeds", fontsize=7, title_fontsize=7)


def theory(tables: Tables) -> Figure:
    """Draw eigenvalues, loss and distances along the gradient flow."""
    table = tables["flow"]
    if table.empty:
        return style.not_run()
    largest = table[table["particles"] == table["particles"].max()]
    figure, axes = style.panels(3, width=10.0, height=3.4)
    looks = style.looks(sorted(largest["scaling"].unique()))
    _own_ratios(axes[0], largest[largest["step"] > 0], looks)
    _losses(axes[1], largest[largest["step"] > 0], looks)
    _end_distances(axes[2], largest[largest["step"] == largest["step"].max()])
    count, seeds = largest["particles"].iloc[0], largest["seed"].nunique()
    figure.suptitle(f"{count} particles, {seeds} seeds", fontsize=9)
    return figure


@style.panel
def _own_ratios(ax: Axes, table: pd.DataFrame, looks: dict[float, dict[str, Any]]) -> None:
    for scaling, rows in table.groupby("scaling"):
        look = looks[scaling]
        for _, run in rows.groupby(["n_train", "seed"]):
            ax.plot(run["step"], run["own_ratio"], color=look["color"], alpha=0.2, linewidth=0.6)
        ax.plot(rows.groupby("step")["own_ratio"].median(), **look, label=f"{scaling:g}")
    ax.axhline(0.5, **style.GUIDE, label="1/2 (Lemma 4.4)")
    sizes = ", ".join(str(size) for size in sorted(table["n_train"].unique()))
    ax.set(xscale="log", yscale="log", xlabel="gradient step", title=f"$n$ = {sizes}")
    ax.set_ylabel(r"$\lambda_{\min}(G_2)$ relative to the start")
    style.plain_numbers(ax)
    ax.legend(title=r"$\alpha\beta$ (median; thin: networks)", fontsize=6.5, title_fontsize=6.5)


@style.panel
def _losses(ax: Axes, table: pd.DataFrame, looks: dict[float, dict[str, Any]]) -> None:
    size = table["n_train"].min()
    table = table[table["n_train"] == size]
    table = table.assign(bound=table["loss_start"] * np.exp(-table["proven_rate"] * table["time"]))
    for scaling, rows in table.groupby("scaling"):
        averages = rows.groupby("step")[["loss", "bound"]].mean()
        ax.plot(averages["loss"], **looks[scaling], label=f"{scaling:g}")
        ax.plot(averages["bound"], color=looks[scaling]["color"], linewidth=0.9, linestyle="--")
    ax.set(xscale="log", yscale="log", xlabel="gradient step", title=f"$n$ = {size}")
    ax.set(ylabel="training loss (dashed: bound)", ylim=(1e-6, 2))
    ax.legend(title=r"$\alpha\beta$ (mean)", fontsize=6.5, title_fontsize=6.5)


@style.panel
def _end_distances(ax: Axes, table: pd.DataFrame) -> None:
    points = means(table, ["n_train", "scaling"], "distance")
    looks = style.looks(sorted(points["n_train"].unique()), skip=1)
    for size, rows in points.groupby("n_train"):
        bars = style.interval_bars(rows)
        ax.errorbar(
            rows["scaling"], rows["mean"], bars, **looks[size], capsize=2, label=f"$n = {size}$"
        )
    scaling = np.array(sorted(points["scaling"].unique()))
    top = points["mean"].max()
    ax.plot(scaling, 1.5 * top * scaling[0] / scaling, **style.GUIDE, label="slope $-1$")
    ax.set(xscale="log", yscale="log", xlabel=r"$\alpha\beta$")
    ax.set_ylabel("RMS distance of particles at the end")
    style.plain_numbers(ax)
    ax.legend(fontsize=6.5)


def particles(tables: Tables) -> Figure:
    """Draw the smallest eigenvalue over training, relative to the limit, over particles."""
    table = tables["descent"]
    if table.empty:
        return style.not_run()
    sizes = sorted(table["n_train"].unique())
    figure, axes = style.panels(len(sizes), width=2.4 * len(sizes) + 1, height=3.0, sharey=True)
    points = means(table, ["n_train", "scaling", "particles"], "smallest_ratio")
    looks = style.looks(sorted(table["scaling"].unique()))
    counts = sorted(table["particles"].unique())
    for ax, size in zip(axes, sizes, strict=True):
        for index, (scaling, rows) in enumerate(
            points[points["n_train"] == size].groupby("scaling")
        ):
            bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
            label = f"{scaling:g}"
            ax.errorbar(
                rows["particles"] * 1.1 ** (index - (len(looks) - 1) / 2),
                rows["mean"],
                bars,
                **looks[scaling],
                capsize=2,
                label=label,
            )
        ax.axhline(0.5, **style.GUIDE)
        ax.set(xscale="log", xlabel="particles $K$", title=f"$n = {size}$", ylim=(0, None))
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()
    style.label_guide(axes[0], "1/2 (Lemma 4.4)", (points["particles"].min(), 0.5))
    axes[0].set_ylabel(r"smallest $\lambda_{\min}(G_2)$ over $\Lambda$")
    title = rf"$\alpha\beta$, {points['n'].max()} seeds"
    axes[-1].legend(title=title, fontsize=6.5, title_fontsize=6.5)
    return figure


def solvers(tables: Tables) -> Figure:
    """Draw how far the batched engine is from torchdyn, and Euler from the ODE."""
    figure, axes = style.panels(2, width=7.0, height=3.2)
    _differences(axes[0], tables["solvers"])
    _gaps(axes[1], tables["solver_gaps"])
    return figure


@style.panel
def _differences(ax: Axes, table: pd.DataFrame) -> None:
    looks = style.looks(sorted(table["depth"].unique()))
    for (depth, seed), run in table.groupby(["depth", "seed"]):
        label = f"$L = {depth}$" if seed == table["seed"].min() else None
        ax.plot(run["step"], run["difference"].clip(lower=1e-17), **looks[depth], label=label)
    ax.set(yscale="log", xlabel="Adam step", ylim=(5e-18, 1e-5))
    ax.set_ylabel("relative difference of losses\nbatched engine, torchdyn's Euler")
    ax.legend(title=f"{table['seed'].nunique()} seeds", fontsize=6.5, title_fontsize=6.5, ncols=2)


@style.panel
def _gaps(ax: Axes, table: pd.DataFrame) -> None:
    names = {False: "at the start", True: "after training"}
    looks = style.looks(list(names))
    for last, rows in table.groupby("last"):
        bars = style.interval_bars(rows)
        ax.errorbar(rows["depth"], rows["mean"], bars, **looks[last], capsize=2, label=names[last])
    depths = np.array(sorted(table["depth"].unique()))
    top = table["mean"].max()
    ax.plot(depths, 1.3 * top * depths[0] / depths, **style.GUIDE, label="slope $-1$")
    ax.set(xscale="log", yscale="log", xlabel="Euler steps $L$")
    ax.set_xticks(depths, [str(depth) for depth in depths])
    ax.minorticks_off()
    ax.set_ylabel("RMS distance of outputs\nEuler's solver, adaptive solver")
    ax.legend(title=f"{table['n'].max()} seeds", fontsize=7, title_fontsize=7)
