"""Weight smoothness, chains trained for long: tidy tables to figures."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits import style
from resnet_limits.studies.weight_smoothness.plots import WEIGHT_LOOKS, WEIGHTS, depth_axis, rows_of
from resnet_limits.style import Tables

THIN: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.8}


def long_time(tables: Tables) -> Figure:
    """Draw the paper's Figure 2: entries over layers, and loss; then constants and quotient."""
    curves, decay = tables["curves"], tables["decay"]
    shown = tables["entries"]
    figure = plt.figure(figsize=(9.5, 6.4))
    axes = figure.subplot_mosaic("VVVWWW;LLCCQQ")
    for weight in WEIGHTS:
        _entry(axes[weight], rows_of(shown, weight=weight, entry=0), weight)
    handles = axes["V"].get_legend_handles_labels()
    if handles[0]:
        figure.legend(
            *handles,
            title="after iteration",
            loc="outside upper center",
            ncol=8,
            fontsize=7,
            title_fontsize=7,
        )
    # Of the depths that were trained, Figure 2's.
    depth = (shown if len(shown) else curves)["depth"].iloc[0]
    curves, decay = (rows_of(table, depth=depth) for table in (curves, decay))
    _loss(axes["L"], curves)
    _constants(axes["C"], curves)
    _quotient(axes["Q"], curves, decay)
    return figure


def uniform_in_depth(tables: Tables) -> Figure:
    """Draw the constants of long training over depth, and the smallest quotient over width."""
    figure, (constants, rates, width) = style.panels(3, width=10.5, height=3.4)
    decay = tables["decay"]
    looks = {f"{weight}_constant": (f"${weight}$", WEIGHT_LOOKS[weight]) for weight in WEIGHTS}
    _over_depth(constants, decay, looks)
    rate_looks = style.looks(["plateau", "smallest_quotient"])
    names = {"plateau": "plateau of the rate", "smallest_quotient": "smallest quotient"}
    _over_depth(rates, decay, {key: (names[key], look) for key, look in rate_looks.items()})
    if len(decay):
        constants.set_ylabel(r"$L\ \max_k\ \|Z_{k+1}-Z_k\|_F$ at the end")
        rates.set_ylabel("rate")
    _over_width(width, tables["overparametrization"])
    return figure


@style.panel
def _entry(ax: Axes, rows: pd.DataFrame, weight: str) -> None:
    entry = rows.iloc[0]
    colors = style.ordered(rows["step"].unique())
    looks = zip(
        colors.items(), itertools.cycle(style.MARKERS), itertools.cycle(style.DASHES), strict=False
    )
    for (step, color), marker, dashes in looks:
        curve = rows[rows["step"] == step]
        ax.plot(
            curve["layer"],
            curve["value"],
            color=color,
            marker=marker,
            markevery=8,
            markersize=3.5,
            linestyle=dashes,
            linewidth=1.1,
            label=f"{step}",
        )
    index = f"{entry['row'] + 1},{entry['column'] + 1}"
    ax.set(xlabel="layer $k$", ylabel=rf"entry ({index}) of ${weight}_k$")


@style.panel
def _loss(ax: Axes, curves: pd.DataFrame) -> None:
    for _, rows in curves.groupby("seed"):
        ax.plot(rows["step"], rows["loss"], color=style.COLORS[1], **THIN)
    ax.set(yscale="log", xlabel="iteration", ylabel="loss")
    ax.set_title(f"{curves['seed'].nunique()} seeds", fontsize=8)
    ax.locator_params(axis="x", nbins=4)
    style.plain_numbers(ax)


@style.panel
def _constants(ax: Axes, curves: pd.DataFrame) -> None:
    for weight in WEIGHTS:
        look = {key: WEIGHT_LOOKS[weight][key] for key in ("color", "linestyle")}
        for number, (_, rows) in enumerate(curves.query("step > 1").groupby("seed")):
            label = None if number else f"${weight}$"
            ax.plot(rows["step"], rows[f"{weight}_lipschitz"], **look, **THIN, label=label)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="iteration",
        ylabel=r"$L\ \max_k\ \|Z_{k+1}-Z_k\|_F$",
    )
    ax.legend(fontsize=7)


@style.panel
def _quotient(ax: Axes, curves: pd.DataFrame, decay: pd.DataFrame) -> None:
    for number, (_, rows) in enumerate(curves.query("step > 0").groupby("seed")):
        label = None if number else "quotient"
        ax.plot(rows["step"], rows["quotient"], color=style.COLORS[1], **THIN, label=label)
    for number, (_, fit) in enumerate(decay.dropna(subset="plateau").iterrows()):
        ends = [fit["first_step"], fit["last_step"]]
        look: dict[str, Any] = {"color": style.COLORS[2], "linestyle": style.DASHES[1]}
        label = None if number else "its limit by the fit"
        ax.plot(ends, [fit["plateau"]] * 2, **look, label=label)
    ax.set(xscale="log", yscale="log", xlabel="iteration", ylabel=r"$L\,\|\nabla\ell\|^2/\ell$")
    style.plain_numbers(ax)
    ax.legend(fontsize=7)


@style.panel
def _over_depth(ax: Axes, rows: pd.DataFrame, looks: dict[str, tuple[str, dict[str, Any]]]) -> None:
    for column, (name, look) in looks.items():
        for number, (_, curve) in enumerate(rows.sort_values("depth").groupby("seed")):
            label = None if number else name
            ax.plot(curve["depth"], curve[column], **look | {"linewidth": 0.8}, label=label)
    depth_axis(ax, rows["depth"].unique())
    style.plain_numbers(ax)
    ax.legend(fontsize=7)


@style.panel
def _over_width(ax: Axes, rows: pd.DataFrame) -> None:
    names = {"smallest_quotient": "smallest while training", "least_quotient": "least at the start"}
    for shift, (column, look) in zip((0.97, 1.03), style.looks(list(names)).items(), strict=True):
        shown = rows[rows[column] > 0]
        line = shown.groupby("width_over_samples")[column].median()
        ax.plot(line.index * shift, line, color=look["color"], linestyle=look["linestyle"])
        look = look | {"linestyle": "none", "alpha": 0.7}
        ax.plot(shown["width_over_samples"] * shift, shown[column], **look, label=names[column])
    ratios = np.sort(rows["width_over_samples"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    ax.set(yscale="log", xlabel="width over samples, $m/n$", ylabel="quotient")
    ax.axvline(1, **style.GUIDE)
    style.plain_numbers(ax)
    ax.legend(fontsize=7)
