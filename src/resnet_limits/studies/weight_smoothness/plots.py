"""Weight smoothness, chains over depth: tidy tables to figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
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
    figure, axes = style.panels(3, width=11.0, height=3.9)
    for ax, weight in zip(axes, WEIGHTS, strict=False):
        points, fits = (_of(tables[name], weight, "largest") for name in MEANS)
        _over_depth(ax, points, fits)
        ax.set_ylabel(rf"$\max_{{k,\,t\leq T}}\ \|{weight}_{{k+1}}-{weight}_k\|_F$")
    _growth(axes[2], tables["extrapolated"].query("scaling == 'code'"))
    _time_legend(figure, axes, "iteration $T$")
    return figure


def depth_limit(tables: Tables) -> Figure:
    """Draw the paper's Figure 1 right: distance to the limit over L, in two norms."""
    figure = plt.figure(figsize=(9.0, 7.0))
    axes = list(figure.subplots(2, 2, sharex=True).flat)
    labels = {
        "l2": r"$\|{0}^L(\cdot,t)-{0}(\cdot,t)\|_{{L^2}}$",
        "sup": r"$\sup_s\ \|{0}^L(s,t)-{0}(s,t)\|_F$",
    }
    pairs = [(weight, measure) for weight in WEIGHTS for measure in labels]
    for ax, (weight, measure) in zip(axes, pairs, strict=True):
        points, fits = (_of(tables[name], weight, measure) for name in MEANS)
        _over_depth(ax, points, fits)
        ax.set_ylabel(labels[measure].format(weight))
    _time_legend(figure, axes, "iteration $t$")
    return figure


def state_limit(tables: Tables) -> Figure:
    """Draw distances of hidden states and outputs to the limit's, and to the ODE's solution."""
    figure, axes = style.panels(3, width=11.0, height=3.9)
    labels = {
        "states": r"$\sup_{s,i}\ \|h^L_{sL}(x_i)-H(s,x_i)\|$",
        "output": r"$\sup_i\ \|F^L(x_i)-F(x_i)\|$",
        "ode": r"$\sup_i\ \|F^L(x_i)-F(x_i)\|$, the limit's weights",
    }
    for ax, (measure, label) in zip(axes, labels.items(), strict=True):
        points, fits = (_of(tables[name], "h", measure) for name in MEANS)
        _over_depth(ax, points, fits)
        ax.set_ylabel(label)
    _time_legend(figure, axes, "iteration $t$")
    return figure


def softplus(tables: Tables) -> Figure:
    """Draw where smoothness breaks between smooth activations and ReLU."""
    figure, (chains, kink, onset) = style.panels(3, width=11.0, height=3.7)
    _softplus_chains(chains, rows_of(tables["softplus_distances"], weight="W"), tables)
    _softplus_kink(kink, tables["softplus_gaps"])
    _softplus_onset(onset, tables["softplus_onset"])
    return figure


@style.panel
def _softplus_chains(ax: Axes, rows: pd.DataFrame, tables: Tables) -> None:
    slopes = tables["softplus_slopes"].query("weight == 'W'").groupby("activation")["slope"].mean()
    for activation, look in style.looks(list(rows["activation"].unique())).items():
        curve = rows[rows["activation"] == activation]
        label = f"{activation_name(activation)}: slope {slopes[activation]:.2f}"
        bars = style.interval_bars(curve)
        ax.errorbar(curve["depth"], curve["mean"], yerr=bars, **look, capsize=1.5, label=label)
    depth_axis(ax, rows["depth"].unique())
    ax.set_ylabel(r"$\max_k\ \|W_{k+1}-W_k\|_F$ after training")
    ax.legend(fontsize=7)


@style.panel
def _softplus_kink(ax: Axes, rows: pd.DataFrame) -> None:
    finite = rows[np.isfinite(rows["beta"])]
    for depth, look in style.looks(sorted(finite["depth"].unique())).items():
        curve = finite[finite["depth"] == depth].sort_values("beta")
        ax.plot(curve["beta_over_depth"], curve["relative"], **look, label=f"$L={depth}$")
    ax.axhline(1, **style.GUIDE)
    style.label_guide(ax, "ReLU", (finite["beta_over_depth"].min(), 1))
    ax.set(xscale="log", xlabel=r"$\beta/L$", ylabel="gap of neighbours over ReLU's")
    ax.legend(fontsize=7)


@style.panel
def _softplus_onset(ax: Axes, rows: pd.DataFrame) -> None:
    known = rows.dropna(subset="beta")
    names = {
        "beta": rf"$\beta$: slope {rows['slope'].iloc[0]:.2f}",
        "corrected": rf"$\beta/\log\beta$: slope {rows['corrected_slope'].iloc[0]:.2f}",
    }
    for column, look in style.looks(list(names)).items():
        label, depth = names[column], known["depth"].to_numpy(dtype=float)
        ax.plot(depth, known[column], **look | {"linestyle": "none"}, label=label)
        if len(known):
            ax.plot(depth, known[column].iloc[0] * depth / depth[0], **style.GUIDE)
    depth_axis(ax, rows["depth"].unique())
    ax.set_ylabel(r"at half of ReLU's gap (lines: in proportion to $L$)")
    style.plain_numbers(ax)
    ax.legend(fontsize=7)


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
def _over_depth(ax: Axes, points: pd.DataFrame, fits: pd.DataFrame) -> None:
    """Draw a measure over depth for every time, means with intervals and fitted lines."""
    by_step = fits.set_index("step")
    for step, look in _time_looks(points["step"].unique()).items():
        rows = points[points["step"] == step]
        for fitted, face in ((True, look["color"]), (False, "white")):
            some = rows[rows["fitted"] == fitted]
            ax.errorbar(
                some["depth"],
                some["mean"],
                yerr=style.interval_bars(some),
                **look | {"linestyle": "none"},
                markerfacecolor=face,
                capsize=1.5,
                label=f"{step}" if fitted else None,
            )
        fit, depth = by_step.loc[step], rows[rows["fitted"]]["depth"]
        line = np.exp(fit["intercept"]) * depth ** fit["mean"]
        ax.plot(depth, line, color=look["color"], linewidth=0.8)
    slopes = fits["mean"].agg(["min", "max"])
    ax.set_title(f"slopes {slopes['min']:.2f} to {slopes['max']:.2f}", fontsize=8)
    depth_axis(ax, points["depth"].unique())
    _guide(ax, points)


def _time_looks(steps: Iterable[int]) -> dict[float, dict[str, Any]]:
    looks = zip(style.ordered(steps).items(), _cycled(style.MARKERS), strict=False)
    return {
        step: {"color": color, "marker": marker, "markersize": 3.5, "linewidth": 0.8}
        for (step, color), marker in looks
    }


def _time_legend(figure: Figure, axes: Iterable[Axes], title: str) -> None:
    """List the times once, above the panels."""
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        times = [
            (handle, label)
            for handle, label in zip(handles, labels, strict=True)
            if label.isdigit()
        ]
        if times:
            figure.legend(
                *zip(*times, strict=True),
                title=title,
                loc="outside upper center",
                ncol=len(times),
                fontsize=7,
                title_fontsize=7,
            )
            return


def _guide(ax: Axes, points: pd.DataFrame) -> None:
    """Draw 1/L above the curves."""
    top = points[points["step"] == points["step"].max()].sort_values("depth")
    depth = top["depth"].to_numpy(dtype=float)
    line = 2.5 * top["mean"].iloc[0] * depth[0] / depth
    ax.plot(depth, line, **style.GUIDE)
    middle = len(depth) // 2
    ax.annotate(
        "1/L",
        (depth[middle], line[middle]),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=7,
        color="0.2",
    )


@style.panel
def _growth(ax: Axes, rows: pd.DataFrame) -> None:
    for weight in WEIGHTS:
        look = WEIGHT_LOOKS[weight]
        measured = rows.query("weight == @weight and kind == 'measured'")
        guess = rows.query("weight == @weight and kind == 'exponential'")
        ax.errorbar(
            measured["step"],
            measured["mean"],
            yerr=style.interval_bars(measured),
            **look | {"linestyle": "-"},
            capsize=2,
            label=f"${weight}$, measured",
        )
        ax.plot(
            guess["step"],
            guess["mean"],
            color=look["color"],
            linewidth=1.0,
            linestyle=style.DASHES[2],
            label=rf"${weight}$, $\beta T e^{{\alpha T}}$",
        )
    depth = rows["depth"].iloc[0]
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="iteration $T$",
        ylabel=r"$L\ \max_{k,\,t\leq T}$ of the distance of neighbours",
        title=f"$L = {depth}$",
    )
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize=6.5, loc="upper left")


def _of(table: pd.DataFrame, weight: str, measure: str) -> pd.DataFrame:
    rows = rows_of(table, scaling="code", weight=weight, measure=measure)
    return rows[rows["mean"] != 0]


def _cycled(values: Sequence[Any]) -> list[Any]:
    return [*values] * 4


def depth_axis(ax: Axes, depths: Iterable[int]) -> None:
    """Make both axes logarithmic, with ticks at the depths."""
    shown = sorted(depths)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(shown, [str(depth) for depth in shown], rotation=60)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(LogLocator(numticks=8))
    ax.set_xlabel("depth $L$")
