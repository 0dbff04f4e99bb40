"""Weight smoothness, chains trained for long: tidy tables to figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits import style
from resnet_limits.studies.weight_smoothness.plots import WEIGHT_LOOKS, WEIGHTS, depth_axis, rows_of
from resnet_limits.style import Tables

# Colours of their own: V and W have two.
RATE_LOOKS = style.looks(["quotient", "plateau", "least_quotient"], skip=3)
RATES = {"plateau": "limit of the rate", "smallest_quotient": "smallest quotient"}


def long_time(tables: Tables) -> Figure:
    """Draw the paper's Figure 2: entries over layers, and loss; then constants and quotient."""
    curves, decay = tables["curves"], tables["decay"]
    shown = tables["entries"]
    figure = plt.figure(figsize=(style.WIDTH, 2 * style.HEIGHT))
    axes = figure.subplot_mosaic("VVVWWW;LLCCQQ")
    for weight in WEIGHTS:
        _entry(axes[weight], rows_of(shown, weight=weight, entry=0), weight)
    style.legend_below(figure, [axes["V"]], title="top: after iteration", columns=8)
    # Of the depths that were trained, Figure 2's.
    depth = (shown if len(shown) else curves)["depth"].iloc[0]
    curves, decay = (rows_of(table, depth=depth) for table in (curves, decay))
    _loss(axes["L"], curves)
    _constants(axes["C"], curves)
    _quotient(axes["Q"], curves, decay)
    if len(decay):
        style.say(figure, _settled(decay), _sample(curves, depth))
    return figure


def _settled(decay: pd.DataFrame) -> str:
    """Say what the second half of the training changes."""
    constants = [f"{decay[f'{weight}_ratio'].median():.2f} ({weight})" for weight in WEIGHTS]
    loss = 10 ** decay["log_relative_loss"].median()
    positive = f"{(decay['plateau'] > 0).sum()} of {style.count(len(decay), 'seed')}"
    return (
        f"The loss ends at {loss:.1g} of its start, with a local rate whose fitted limit is "
        f"positive in {positive}; Lipschitz constants at the end are {', '.join(constants)} of "
        "those at half of the training."
    )


def _sample(curves: pd.DataFrame, depth: int) -> str:
    return (
        f"{style.of_runs([curves['seed'].nunique()])} (thin) and their medians; top, entries of "
        f"the first seed; L = {depth}."
    )


def uniform_in_depth(tables: Tables) -> Figure:
    """Draw the constants of long training over depth, and the smallest quotient over width."""
    figure, (constants, rates, width) = style.panels(3, height=3.2)
    decay, over_width = tables["decay"], tables["overparametrization"]
    looks = {f"{weight}_constant": (f"${weight}$", WEIGHT_LOOKS[weight]) for weight in WEIGHTS}
    _over_depth(constants, decay, looks)
    rate_looks = [RATE_LOOKS["plateau"], RATE_LOOKS["quotient"]]
    _over_depth(rates, decay, {
        column: (name, look)
        for (column, name), look in zip(RATES.items(), rate_looks, strict=True)
    })  # fmt: skip
    if len(decay):
        constants.set_ylabel(r"$L\ \max_k\ \|Z_{k+1}-Z_k\|_F$ at the end")
        rates.set_ylabel("rate")
    _over_width(width, over_width)
    seeds = decay.groupby("depth")["seed"].nunique() if len(decay) else []
    others = over_width.groupby("width")["seed"].nunique() if len(over_width) else []
    style.say(
        figure,
        f"{_over_depth_in_words(tables['depth_constants'])} {_over_width_in_words(over_width)}",
        f"Left and middle, {style.of_runs(seeds)}, right {style.of_runs(others)} (thin lines, "
        "dots), and their medians.",
    )
    return figure


def _over_depth_in_words(slopes: pd.DataFrame) -> str:
    names = {"V_constant": "V", "W_constant": "W", "plateau": "rate"}
    found = slopes.groupby("constant")["slope"].mean() if len(slopes) else {}
    parts = [f"{found[key]:.2f} ({name})" for key, name in names.items() if key in found]
    if not parts:
        return "Too few depths for slopes over depth."
    return f"After long training, slopes over depth are {', '.join(parts)}."


def _over_width_in_words(table: pd.DataFrame) -> str:
    """Say at which widths the quotient stays above half of the start's."""
    if table.empty:
        return "The width was not varied."
    kept = table.groupby("width_over_samples")["kept"].min() > 0.5
    widths = [f"{ratio:g}" for ratio in kept.index[kept]]
    where = f"at m/n = {', '.join(widths)}" if widths else "at no width"
    return f"The quotient stays above half of the start's least on every seed {where}."


@style.panel
def _entry(ax: Axes, rows: pd.DataFrame, weight: str) -> None:
    entry = rows.iloc[0]
    for step, look in style.ordered(rows["step"].unique()).items():
        curve = rows[rows["step"] == step]
        look = look | {"markevery": 8, "markersize": 3.5, "linewidth": 1.1}
        ax.plot(curve["layer"], curve["value"], **look, label=f"{step}")
    index = f"{entry['row'] + 1},{entry['column'] + 1}"
    ax.set(xlabel="layer $k$", ylabel=rf"entry ({index}) of ${weight}_k$")


@style.panel
def _loss(ax: Axes, curves: pd.DataFrame) -> None:
    _seeds_and_median(ax, curves, "loss", {"color": style.COLORS[0]})
    ax.set(yscale="log", xlabel="iteration", ylabel="loss")
    ax.locator_params(axis="x", nbins=4)
    style.plain_numbers(ax)


def _seeds_and_median(
    ax: Axes, rows: pd.DataFrame, column: str, look: dict[str, Any], label: str | None = None
) -> None:
    style.runs(ax, rows, "step", column, "seed", look["color"])
    ax.plot(rows.groupby("step")[column].median(), **look, markevery=10, label=label)


@style.panel
def _constants(ax: Axes, curves: pd.DataFrame) -> None:
    rows = curves.query("step > 1")
    for weight in WEIGHTS:
        _seeds_and_median(ax, rows, f"{weight}_lipschitz", WEIGHT_LOOKS[weight], f"${weight}$")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="iteration",
        ylabel=r"$L\ \max_k\ \|Z_{k+1}-Z_k\|_F$",
    )
    ax.legend()


@style.panel
def _quotient(ax: Axes, curves: pd.DataFrame, decay: pd.DataFrame) -> None:
    _seeds_and_median(ax, curves.query("step > 0"), "quotient", RATE_LOOKS["quotient"], "quotient")
    for number, (_, fit) in enumerate(decay.dropna(subset="plateau").iterrows()):
        ends = [fit["first_step"], fit["last_step"]]
        look = RATE_LOOKS["plateau"] | {"marker": None, "linewidth": 1.0}
        label = None if number else "limit of its fit"
        ax.plot(ends, [fit["plateau"]] * 2, **look, label=label)
    ax.set(xscale="log", yscale="log", xlabel="iteration", ylabel=r"$L\,\|\nabla\ell\|^2/\ell$")
    style.plain_numbers(ax)
    ax.legend()


@style.panel
def _over_depth(ax: Axes, rows: pd.DataFrame, looks: dict[str, tuple[str, dict[str, Any]]]) -> None:
    for column, (name, look) in looks.items():
        style.runs(ax, rows, "depth", column, "seed", look["color"], marker=".")
        ax.plot(rows.groupby("depth")[column].median(), **look, label=name)
    depth_axis(ax, rows["depth"].unique())
    style.plain_numbers(ax)
    style.legend_above(ax, ncols=2)


@style.panel
def _over_width(ax: Axes, rows: pd.DataFrame) -> None:
    names = {
        "smallest_quotient": ("smallest while training", RATE_LOOKS["quotient"]),
        "least_quotient": ("least at the start, of any targets", RATE_LOOKS["least_quotient"]),
    }
    for shift, (column, (name, look)) in zip((0.96, 1.04), names.items(), strict=True):
        shown = rows[rows[column] > 0]
        x = shown["width_over_samples"] * shift
        ax.plot(x, shown[column], ".", color=look["color"], markersize=3, alpha=0.6)
        line = shown.groupby("width_over_samples")[column].median()
        ax.plot(line.index * shift, line, **look, label=name)
    ratios = np.sort(rows["width_over_samples"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    ax.set(yscale="log", xlabel="width over samples, $m/n$", ylabel="quotient")
    ax.axvline(1, **style.GUIDE)
    style.plain_numbers(ax)
    style.legend_above(ax)
