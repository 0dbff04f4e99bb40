"""Weight smoothness, chains across ReLU's kink: tidy tables to figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits import style
from resnet_limits.studies.weight_smoothness.plots import depth_axis
from resnet_limits.style import Tables

ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU"}
FILLS: dict[str, dict[str, Any]] = {"relu": {}, "gelu": {"markerfacecolor": "white"}}


def relu_counterexample(tables: Tables) -> Figure:
    """Draw gaps after training over depth, and over time at the largest depth."""
    gaps, slopes = tables["gaps"], tables["gap_slopes"]
    figure, (over_depth, over_time) = style.panels(2, height=3.4)
    last = gaps.query("last")
    _gaps_over_depth(over_depth, last, slopes)
    _gaps_over_time(over_time, gaps.query("deepest and step > 0"))
    style.legend_below(figure, [over_depth], columns=3)
    words = [
        f"{style.span(slopes.loc[slopes['activation'] == activation, 'slope'])} with {name}"
        for activation, name in ACTIVATIONS.items()
    ]
    number = len(last[["activation", "target"]].drop_duplicates())
    style.say(
        figure,
        f"Over depth, the gap of trained neighbours has slopes {', '.join(words)}.",
        f"{style.count(number, 'chain')} of width one at each depth, one sample, without "
        "randomness; slopes from the depths of the theorems on (L at least 16).",
    )
    return figure


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
        labels = ("ReLU, closed form", "ReLU, infinite depth") if number == 0 else (None, None)
        ax.plot(
            curve["depth"], curve["trained_gap"], color=look["color"], linewidth=1, label=labels[0]
        )
        ax.plot(curve["depth"], curve["limit_gap"], **style.GUIDE, label=labels[1])
    depths = np.array(sorted(rows["depth"].unique()))
    start = style.GUIDE | {"linestyle": style.DASHES[2]}
    ax.plot(depths, 2 / depths, **start, label="$2/L$, gap at the start")
    depth_axis(ax, depths)
    ax.set_ylabel(r"$\max_k\ |w_{k+1}-w_k|$ after training")


def _gaps_over_time(ax: Axes, rows: pd.DataFrame) -> None:
    for target, look in _targets(rows).items():
        curves = rows[rows["target"] == target].groupby("activation")
        for activation in ACTIVATIONS:
            curve = curves.get_group(activation)
            line = {"linestyle": "none", "markevery": 2}
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
