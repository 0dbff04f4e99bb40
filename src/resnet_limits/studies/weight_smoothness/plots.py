"""Weight smoothness: tidy tables to figures."""

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
ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU"}
FILLS: dict[str, dict[str, Any]] = {"relu": {}, "gelu": {"markerfacecolor": "white"}}
OUTSIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def lipschitz(tables: Tables) -> Figure:
    """Draw the paper's Figure 1 left: largest distance of neighbours over L; and over T."""
    figure, axes = style.panels(3, width=10.0, height=3.6)
    for ax, weight in zip(axes, WEIGHTS, strict=False):
        points, fits = (_of(tables[name], weight, "largest") for name in MEANS)
        _over_depth(ax, points, fits, "iteration $T$\n(slope)")
        ax.set_ylabel(rf"$\max_{{k,\,t\leq T}}\ \|{weight}_{{k+1}}-{weight}_k\|_F$")
    _growth(axes[2], tables["extrapolated"].query("scaling == 'code'"))
    return figure


def depth_limit(tables: Tables) -> Figure:
    """Draw the paper's Figure 1 right: distance to the limit over L, in two norms."""
    figure = plt.figure(figsize=(9.0, 6.6))
    axes = figure.subplots(2, 2).flat
    labels = {
        "l2": r"$\|{0}^L(\cdot,t)-{0}(\cdot,t)\|_{{L^2}}$",
        "sup": r"$\sup_s\ \|{0}^L(s,t)-{0}(s,t)\|_F$",
    }
    pairs = [(weight, measure) for weight in WEIGHTS for measure in labels]
    for ax, (weight, measure) in zip(axes, pairs, strict=True):
        points, fits = (_of(tables[name], weight, measure) for name in MEANS)
        _over_depth(ax, points, fits, "iteration $t$\n(slope)")
        ax.set_ylabel(labels[measure].format(weight))
    return figure


def long_time(tables: Tables) -> Figure:
    """Draw the paper's Figure 2: entries over layers, and loss; then constants and quotient."""
    figure = plt.figure(figsize=(9.5, 5.8))
    (entry_v, entry_w, aside), (loss, constants, quotient) = figure.subplots(2, 3)
    for ax, weight in zip((entry_v, entry_w), WEIGHTS, strict=True):
        _entry(ax, tables["entries"].query("weight == @weight and entry == 0"), weight)
    aside.axis("off")
    handles, labels = entry_w.get_legend_handles_labels()
    aside.legend(
        handles, labels, title="after iteration", fontsize=8, title_fontsize=8, loc="center left"
    )
    curves, decay = tables["curves"], tables["decay"]
    _loss(loss, curves, decay)
    _constants(constants, curves)
    _quotient(quotient, curves, decay)
    return figure


def relu_counterexample(tables: Tables) -> Figure:
    """Draw gaps after training over depth, and over time at the largest depth."""
    gaps = tables["gaps"]
    figure, (over_depth, over_time) = style.panels(2, width=9.5, height=3.6)
    _gaps_over_depth(over_depth, gaps.query("last"), tables["gap_slopes"])
    _gaps_over_time(over_time, gaps.query("deepest and step > 0"))
    handles, labels = over_depth.get_legend_handles_labels()
    over_time.legend(handles, labels, fontsize=7, **OUTSIDE)
    return figure


@style.panel
def _over_depth(ax: Axes, points: pd.DataFrame, fits: pd.DataFrame, legend: str) -> None:
    """Draw a measure over depth for every time, means with intervals and fitted lines."""
    _lines(ax, points, fits.set_index("step"))
    _step_legend(ax, legend, fits.sort_values("step"))
    _guide(ax, points)


def _lines(ax: Axes, points: pd.DataFrame, fits: pd.DataFrame) -> None:
    for (step, color), marker in zip(
        style.ordered(points["step"].unique()).items(), _cycled(style.MARKERS), strict=False
    ):
        rows = points[points["step"] == step]
        ax.errorbar(
            rows["depth"],
            rows["mean"],
            yerr=style.interval_bars(rows),
            color=color,
            marker=marker,
            markersize=3.5,
            linestyle="none",
            linewidth=0.8,
            capsize=1.5,
        )
        fit = fits.loc[step]
        line = np.exp(fit["intercept"]) * rows["depth"] ** fit["mean"]
        ax.plot(rows["depth"], line, color=color, linewidth=0.8)
    _depth_axis(ax, points["depth"].unique())


def _step_legend(ax: Axes, title: str, fits: pd.DataFrame) -> None:
    """List times beside the panel, latest first as the curves lie, with mean slopes."""
    colors, markers = style.ordered(fits["step"]), _cycled(style.MARKERS)
    handles = [
        ax.plot(
            [],
            [],
            color=colors[step],
            marker=marker,
            markersize=3.5,
            linewidth=0.8,
            label=f"{step} ({slope:.2f})",
        )[0]
        for step, slope, marker in zip(fits["step"], fits["mean"], markers, strict=False)
    ]
    ax.legend(
        handles=handles[::-1],
        title=title,
        fontsize=6.5,
        title_fontsize=6.5,
        handlelength=1.2,
        **OUTSIDE,
    )


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
        ylabel=r"$L\ \max_{k,\,t\leq T}\ \|Z_{k+1}-Z_k\|_F$",
        title=f"$L = {depth}$",
    )
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize=6.5, title="$Z$", title_fontsize=6.5, loc="upper left")


def _entry(ax: Axes, rows: pd.DataFrame, weight: str) -> None:
    entry = rows.iloc[0]
    colors = style.ordered(rows["step"].unique())
    looks = zip(colors.items(), _cycled(style.MARKERS), _cycled(style.DASHES), strict=False)
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


def _loss(ax: Axes, curves: pd.DataFrame, decay: pd.DataFrame) -> None:
    for (seed, look), (_, fit) in zip(_seeds(curves).items(), decay.iterrows(), strict=True):
        rows = curves[curves["seed"] == seed]
        ax.plot(rows["step"], rows["loss"], **look, label=f"seed {seed}: $r^2$ {_r2(fit)}")
        if np.isfinite(fit["rate"]):
            steps = np.array([fit["first_step"], fit["last_step"]])
            line = np.exp(fit["intercept"] - fit["rate"] * steps)
            ax.plot(steps, line, color="0.5", linewidth=3, alpha=0.4, zorder=1)
    ax.set(yscale="log", xlabel="iteration", ylabel="loss")
    ax.locator_params(axis="x", nbins=4)
    ax.legend(fontsize=6.5, title="fit of second half", title_fontsize=6.5)


def _r2(fit: pd.Series) -> str:
    return f"{fit['r_squared']:.4f}"


def _constants(ax: Axes, curves: pd.DataFrame) -> None:
    for weight in WEIGHTS:
        for number, (_, rows) in enumerate(curves.query("step > 1").groupby("seed")):
            ax.plot(
                rows["step"],
                rows[f"{weight}_lipschitz"],
                color=WEIGHT_LOOKS[weight]["color"],
                linestyle=WEIGHT_LOOKS[weight]["linestyle"],
                linewidth=0.9,
                label=None if number else f"$Z={weight}$",
            )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="iteration",
        ylabel=r"$L\ \max_k\ \|Z_{k+1}-Z_k\|_F$",
    )
    ax.legend(fontsize=6.5, title="every seed", title_fontsize=6.5)


def _quotient(ax: Axes, curves: pd.DataFrame, decay: pd.DataFrame) -> None:
    rows = curves.query("step > 0")
    for seed, look in _seeds(curves).items():
        curve = rows[rows["seed"] == seed]
        ax.plot(curve["step"], curve["quotient"], **look, label=f"seed {seed}")
    smallest = decay["smallest_quotient"].min()
    ax.axhline(smallest, **style.GUIDE)
    ax.annotate(
        f"smallest: {smallest:.2g}",
        (0.03, smallest),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=6.5,
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="iteration",
        ylabel=r"$L\,\|\nabla\ell\|^2/\ell$",
    )
    ax.legend(fontsize=6.5)


def _gaps_over_depth(ax: Axes, rows: pd.DataFrame, slopes: pd.DataFrame) -> None:
    for activation, name in ACTIVATIONS.items():
        for target, look in _targets(rows).items():
            curve = rows.query("activation == @activation and target == @target")
            slope = slopes.query("activation == @activation and target == @target")["slope"].iloc[0]
            label = f"{name}, $y={target:g}$: slope {slope:.2f}"
            look = look | FILLS[activation] | {"linestyle": "none"}
            ax.plot(curve["depth"], curve["gap"], **look, label=label)
    for number, (target, look) in enumerate(_targets(rows).items()):
        curve = rows[(rows["activation"] == "relu") & (rows["target"] == target)]
        labels = ("ReLU, closed form", "the same, depth infinite") if number == 0 else (None, None)
        ax.plot(
            curve["depth"], curve["trained_gap"], color=look["color"], linewidth=1, label=labels[0]
        )
        ax.plot(curve["depth"], curve["limit_gap"], **style.GUIDE, label=labels[1])
    depths = np.array(sorted(rows["depth"].unique()))
    start = style.GUIDE | {"linestyle": style.DASHES[2]}
    ax.plot(depths, 2 / depths, **start, label="2/L, gap at the start")
    _depth_axis(ax, depths)
    ax.set_ylabel(r"$\max_k\ |w_{k+1}-w_k|$ after training")


def _gaps_over_time(ax: Axes, rows: pd.DataFrame) -> None:
    for target, look in _targets(rows).items():
        curves = rows[rows["target"] == target].groupby("activation")
        for activation, dashes in zip(ACTIVATIONS, ("none", style.DASHES[1]), strict=True):
            curve = curves.get_group(activation)
            line = {"linestyle": dashes, "linewidth": 0.8, "markevery": 2}
            ax.plot(curve["time"], curve["gap"], **look | FILLS[activation] | line)
        limit = curves.get_group("relu")
        ax.plot(limit["time"], limit["limit_gap"], **style.GUIDE)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="time $t$ of the gradient flow",
        ylabel=r"$\max_k\ |w_{k+1}-w_k|$",
        title=f"$L = {rows['depth'].iloc[0]}$",
    )


def _targets(rows: pd.DataFrame) -> dict[float, dict[str, Any]]:
    return style.looks(sorted(rows["target"].unique()))


def _seeds(curves: pd.DataFrame) -> dict[int, dict[str, Any]]:
    looks = style.looks(sorted(curves["seed"].unique()))
    return {seed: look | {"marker": None, "linewidth": 1.2} for seed, look in looks.items()}


def _of(table: pd.DataFrame, weight: str, measure: str) -> pd.DataFrame:
    wanted = {"scaling": "code", "weight": weight, "measure": measure}
    return table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1) & (table["mean"] != 0)]


def _cycled(values: Sequence[Any]) -> list[Any]:
    return [*values] * 4


def _depth_axis(ax: Axes, depths: Iterable[int]) -> None:
    shown = sorted(depths)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(shown, [str(depth) for depth in shown], rotation=60)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(LogLocator(numticks=8))
    ax.set_xlabel("depth $L$")
