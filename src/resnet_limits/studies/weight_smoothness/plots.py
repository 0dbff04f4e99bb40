"""Weight smoothness, chains over depth: tidy tables to figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from resnet_limits import style
from resnet_limits.style import Tables

WEIGHTS = ("V", "W")
WEIGHT_LOOKS = style.looks(WEIGHTS, skip=1)
MEANS = ("distance_means", "slope_means")
RELU, GELU = "relu", "gelu"


def lipschitz(tables: Tables) -> Figure:
    """Draw the paper's Figure 1 left: largest distance of neighbours over L; and over T."""
    figure, axes = style.panels(3, height=3.4)
    for ax, weight in zip(axes, WEIGHTS, strict=False):
        points, fits = (_of(tables[name], weight, "largest") for name in MEANS)
        _over_depth(ax, points, fits)
        ax.set_ylabel(rf"$\max_{{k,\,t\leq T}}\ \|{weight}_{{k+1}}-{weight}_k\|_F$")
    growth = rows_of(tables["extrapolated"], scaling="code")
    _growth(axes[2], growth)
    style.legend_below(figure, axes[:2], title="iteration $T$", columns=10)
    slopes = [f"{style.span(_of(tables['slope_means'], weight, 'largest')['mean'])} ({weight})"
              for weight in WEIGHTS]  # fmt: skip
    style.say(
        figure,
        f"Over depth, neighbours' largest distance has slopes {', '.join(slopes)}. "
        f"{_against_exponential(growth)}",
        _sample(tables, "right, at the largest depth"),
    )
    return figure


def _against_exponential(growth: pd.DataFrame) -> str:
    """Say how far the constants stay below what the form of Eq. 7 extrapolates."""
    if growth.empty:
        return ""
    last = growth[growth["step"] == growth["step"].max()].set_index(["weight", "kind"])["mean"]
    parts = [
        f"{last[weight, 'measured'] / last[weight, 'exponential']:.1g} ({weight})"
        for weight in WEIGHTS
    ]
    return f"At the end it is {', '.join(parts)} of what Eq. 7's exponential extrapolates."


def _sample(tables: Tables, more: str = "") -> str:
    points = tables["distance_means"]
    numbers = rows_of(points, scaling="code")["n"] if len(points) else []
    words = f"; {more}" if more else ""
    return (
        f"{style.of_runs(numbers)}: {style.averages(numbers)}; lines, fits over the filled "
        f"points{words}."
    )


def depth_limit(tables: Tables) -> Figure:
    """Draw the paper's Figure 1 right: distance to the limit over L, in two norms."""
    labels = {
        "l2": r"$\|{0}^L(\cdot,t)-{0}(\cdot,t)\|_{{L^2}}$",
        "sup": r"$\sup_s\ \|{0}^L(s,t)-{0}(s,t)\|_F$",
    }
    figure, axes = style.grid(2, 2, sharex=True)
    pairs = [(weight, measure) for weight in WEIGHTS for measure in labels]
    found = {}
    for ax, (weight, measure) in zip(axes.flat, pairs, strict=True):
        points, fits = (_of(tables[name], weight, measure) for name in MEANS)
        _over_depth(ax, points, fits)
        ax.set_ylabel(labels[measure].format(weight))
        found[weight, measure] = fits
    for ax in axes[0]:
        ax.set_xlabel("")
    style.legend_below(figure, axes.flat, title="iteration $t$", columns=10)
    ranges = {
        measure: style.span(pd.concat([found[weight, measure] for weight in WEIGHTS])["mean"])
        for measure in labels
    }
    style.say(
        figure,
        f"Weights approach their limit with slopes {ranges['l2']} over depth in L2, and "
        f"{ranges['sup']} in the sup norm.",
        _sample(tables),
    )
    return figure


def state_limit(tables: Tables) -> Figure:
    """Draw distances of hidden states and outputs to the limit's, and to the ODE's solution."""
    figure, axes = style.panels(3, height=3.4)
    labels = {
        "states": (r"$\sup_{s,i}\ \|h^L_{sL}(x_i)-H(s,x_i)\|$", "states"),
        "output": (r"$\sup_i\ \|F^L(x_i)-F(x_i)\|$", "outputs"),
        "ode": (r"$\sup_i\ \|F^L(x_i)-F(x_i)\|$", "outputs with the limit's weights"),
    }
    words = []
    for ax, (measure, (label, name)) in zip(axes, labels.items(), strict=True):
        points, fits = (_of(tables[table], "h", measure) for table in MEANS)
        _over_depth(ax, points, fits, f"{name}\n")
        ax.set_ylabel(label)
        words.append(f"{name} {style.span(fits['mean'])}")
    style.legend_below(figure, axes, title="iteration $t$", columns=10)
    style.say(figure, f"Slopes over depth of distances to the limit: {', '.join(words)}.",
              _sample(tables))  # fmt: skip
    return figure


def softplus(tables: Tables) -> Figure:
    """Draw where smoothness breaks between smooth activations and ReLU."""
    figure, axes = style.panels(3, height=3.5)
    chains, onset = rows_of(tables["softplus_distances"], weight="W"), tables["softplus_onset"]
    slopes = rows_of(tables["softplus_slopes"], weight="W")
    _softplus_chains(axes[0], chains, slopes)
    _softplus_kink(axes[1], tables["softplus_gaps"])
    _softplus_onset(axes[2], onset)
    numbers = [chains["seed"].nunique()] if len(chains) else []
    style.say(
        figure,
        f"{_dense_slopes(slopes)}{_onset_in_words(onset)}",
        f"Left, regression with dense chains, {style.of_runs(numbers)} (thin) and their means; "
        "middle and right, 1 chain of width one each, without randomness.",
    )
    return figure


def _dense_slopes(slopes: pd.DataFrame) -> str:
    if slopes.empty:
        return ""
    average = slopes.groupby(["beta", "activation"])["slope"].mean()
    ends = average.iloc[[0, -1]]
    parts = [f"{slope:.2f} with {activation_name(name)}" for (_, name), slope in ends.items()]
    return f"Over depth, distances of trained neighbours have the slope {', '.join(parts)}. "


def _onset_in_words(onset: pd.DataFrame) -> str:
    known = onset.dropna(subset="beta") if len(onset) else onset
    if known.empty:
        return ""
    row = known.iloc[0]
    return (
        "The β at which the gap across the kink is half of ReLU's has the slope "
        f"{row['slope']:.2f} over depth, β / log β {row['corrected_slope']:.2f}."
    )


@style.panel
def _softplus_chains(ax: Axes, rows: pd.DataFrame, slopes: pd.DataFrame) -> None:
    mean = slopes.groupby("activation")["slope"].mean()
    for activation, look in style.looks(list(rows["activation"].unique())).items():
        curve = rows[rows["activation"] == activation]
        style.runs(ax, curve, "depth", "distance", "seed", look["color"])
        label = f"{activation_name(activation)}: {mean[activation]:.2f}"
        ax.plot(curve.groupby("depth")["distance"].mean(), **look, label=label)
    depth_axis(ax, rows["depth"].unique())
    style.plain_numbers(ax)
    ax.set_ylabel(r"$\max_k\ \|W_{k+1}-W_k\|_F$ after training")
    style.legend_above(ax, "activation: slope")


@style.panel
def _softplus_kink(ax: Axes, rows: pd.DataFrame) -> None:
    finite = rows[np.isfinite(rows["beta"])]
    for depth, look in style.shades(finite["depth"].unique()).items():
        curve = finite[finite["depth"] == depth].sort_values("beta")
        ax.plot(curve["beta_over_depth"], curve["relative"], **look, label=f"$L={depth}$")
    ax.axhline(1, **style.GUIDE)
    style.label_guide(ax, "ReLU", (finite["beta_over_depth"].min(), 1))
    ax.axhline(0.5, color="0.7", linewidth=0.8)
    ax.set(xscale="log", xlabel=r"$\beta/L$", ylabel="gap of neighbours over ReLU's", ylim=(0, 1.1))
    style.legend_above(ax, ncols=2)


@style.panel
def _softplus_onset(ax: Axes, rows: pd.DataFrame) -> None:
    known = rows.dropna(subset="beta")
    names = {
        "beta": rf"$\beta$: {rows['slope'].iloc[0]:.2f}",
        "corrected": rf"$\beta/\log\beta$: {rows['corrected_slope'].iloc[0]:.2f}",
    }
    for column, look in style.looks(list(names), skip=4).items():
        label, depth = names[column], known["depth"].to_numpy(dtype=float)
        ax.plot(depth, known[column], **look | {"linestyle": "none"}, label=label)
        if len(known):
            guide = known[column].iloc[0] * depth / depth[0]
            named = "in proportion to $L$" if column == "corrected" else None
            ax.plot(depth, guide, **style.GUIDE, label=named)
    depth_axis(ax, rows["depth"].unique())
    ax.set_ylabel("value at half of ReLU's gap")
    style.plain_numbers(ax)
    style.legend_above(ax, "at half of ReLU's gap: slope")


def rows_of(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Return the rows with the wanted values; none of a table of which nothing was run."""
    for column, value in wanted.items():
        table = table[table[column] == value] if column in table else table.head(0)
    return table


def activation_name(activation: str) -> str:
    """Return how a figure calls an activation."""
    if activation.startswith("softplus"):
        return rf"softplus, $\beta={activation.removeprefix('softplus')}$"
    return {RELU: "ReLU", GELU: "GELU"}.get(activation, activation)


@style.panel
def _over_depth(ax: Axes, points: pd.DataFrame, fits: pd.DataFrame, what: str = "") -> None:
    """Draw a measure over depth for every time, means with intervals and fitted lines."""
    by_step = fits.set_index("step")
    for step, look in style.ordered(points["step"].unique()).items():
        look = look | {"linestyle": "none", "markersize": 3.5, "linewidth": 0.8}
        rows = points[points["step"] == step]
        for fitted, face in ((True, look["color"]), (False, "white")):
            some = rows[rows["fitted"] == fitted]
            label = f"{step}" if fitted else None
            style.points(ax, some["depth"], some, look, markerfacecolor=face, label=label)
        fit, depth = by_step.loc[step], rows[rows["fitted"]]["depth"]
        line = np.exp(fit["intercept"]) * depth ** fit["mean"]
        ax.plot(depth, line, color=look["color"], linewidth=0.8)
    ax.set_title(f"{what}slopes {style.span(fits['mean'])}")
    depth_axis(ax, points["depth"].unique())
    _guide(ax, points)


def _guide(ax: Axes, points: pd.DataFrame) -> None:
    """Draw 1/L above the curves."""
    top = points[points["step"] == points["step"].max()].sort_values("depth")
    depth = top["depth"].to_numpy(dtype=float)
    line = 2.5 * top["mean"].iloc[0] * depth[0] / depth
    ax.plot(depth, line, **style.GUIDE)
    middle = len(depth) // 2
    place: dict[str, Any] = {"xytext": (4, 3), "textcoords": "offset points"}
    ax.annotate("$1/L$", (depth[middle], line[middle]), color="0.2", **place)


@style.panel
def _growth(ax: Axes, rows: pd.DataFrame) -> None:
    for weight in WEIGHTS:
        look = WEIGHT_LOOKS[weight]
        measured = rows.query("weight == @weight and kind == 'measured'")
        guess = rows.query("weight == @weight and kind == 'exponential'")
        solid = look | {"linestyle": "-"}
        style.points(ax, measured["step"], measured, solid, label=f"${weight}$, measured")
        ax.plot(
            guess["step"],
            guess["mean"],
            color=look["color"],
            marker=look["marker"],
            markerfacecolor="white",
            linewidth=1.0,
            linestyle=style.DASHES[2],
            label=rf"${weight}$, $\beta T e^{{\alpha T}}$",
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="iteration $T$",
        ylabel=r"$L\ \max_{k,\,t\leq T}$ of the distance of neighbours",
        title=f"$L = {rows['depth'].iloc[0]}$",
    )
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(loc="upper left")


def _of(table: pd.DataFrame, weight: str, measure: str) -> pd.DataFrame:
    rows = rows_of(table, scaling="code", weight=weight, measure=measure)
    return rows[rows["mean"] != 0]


def depth_axis(ax: Axes, depths: Iterable[int]) -> None:
    """Make both axes logarithmic, with ticks at the depths."""
    shown = sorted(depths)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(shown, [str(depth) for depth in shown], rotation=60)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(LogLocator(numticks=8))
    ax.set_xlabel("depth $L$")
