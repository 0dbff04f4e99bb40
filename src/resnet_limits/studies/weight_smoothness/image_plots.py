"""Weight smoothness, images: tidy tables to figures."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from resnet_limits import style
from resnet_limits.studies.weight_smoothness.plots import depth_axis, rows_of
from resnet_limits.style import Tables

ACTIVATIONS = {"identity": "identity", "gelu": "GELU", "relu": "ReLU"}
INITS = {"weight_tied": "weight-tied", "iid": "i.i.d.", "gaussian_process": "Gaussian process"}
CONVOLUTIONS = {"conv1": r"$\mathrm{conv}_1$", "conv2": r"$\mathrm{conv}_2$"}
CONVOLUTION_LOOKS = style.looks(list(CONVOLUTIONS), skip=1)


def table1(tables: Tables) -> Figure:
    """Draw the paper's Table 1: accuracy and roughness of every cell, with verdicts."""
    table = tables["table1"].iloc[::-1]
    height = 0.9 + 0.4 * max(2, len(table))
    figure, (accuracy, ratio) = style.panels(2, width=9.5, height=height, sharey=True)
    y = np.arange(len(table), dtype=float)
    _points(accuracy, table, "test_accuracy", y, style.looks(["test"])["test"])
    accuracy.set_xlabel("test accuracy (%)")
    names = table["activation"].map(ACTIVATIONS) + ", " + table["init"].map(INITS)
    accuracy.set_yticks(y, list(names))
    accuracy.set_ylim(-0.5, len(table) - 0.5)
    for (name, look), shift in zip(CONVOLUTION_LOOKS.items(), (0.14, -0.14), strict=True):
        _points(ratio, table, f"ratio_{name}", y + shift, look)
    ratio.axvline(table["threshold"].iloc[0], **style.GUIDE, label="threshold")
    ratio.set(xscale="log", xlabel="von Neumann ratio of the trained weights", xlim=(None, 4))
    ratio.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)
    _verdicts(ratio, y, {"ours": table["smooth"], "paper's": table["paper_smooth"]})
    return figure


def _points(ax: Axes, table: pd.DataFrame, value: str, y: np.ndarray, look: dict[str, Any]) -> None:
    """Draw means with intervals, and write the means to the right of these."""
    rows = table.rename(columns={value: "mean", f"{value}_low": "low", f"{value}_high": "high"})
    rows = rows[["mean", "low", "high"]]
    label = CONVOLUTIONS.get(value.removeprefix("ratio_"))
    ax.errorbar(
        rows["mean"],
        y,
        xerr=style.interval_bars(rows),
        **look | {"linestyle": "none"},
        capsize=2,
        label=label,
    )
    ends = rows["high"].fillna(rows["mean"])
    for height, mean, end in zip(y, rows["mean"], ends, strict=True):
        beside: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{mean:.3g}", (end, height), fontsize=6.5, **beside)
    ax.margins(x=0.12)


def _verdicts(ax: Axes, y: np.ndarray, columns: dict[str, pd.Series]) -> None:
    """Write columns of verdicts to the right of a panel."""
    look: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "fontsize": 8, "ha": "center"}
    ax.text(1.11, len(y) - 0.1, "smooth?", **look)
    for at, (name, verdicts) in zip((1.05, 1.17), columns.items(), strict=True):
        ax.text(at, len(y) - 0.5, name, **look)
        for height, verdict in zip(y, verdicts, strict=True):
            ax.text(at, height, _verdict(verdict), va="center", **look)


def _verdict(smooth: Any) -> str:
    return "-" if pd.isna(smooth) else "yes" if smooth else "no"


def cifar_weights(tables: Tables) -> Figure:
    """Draw the paper's Figure 3: an entry of each convolution over layers; all initializations."""
    entries = rows_of(tables["cifar_entries"], entry=0).query("activation != 'identity'")
    if entries.empty:
        return style.not_run()
    activations, inits = (list(entries[axis].unique()) for axis in ("activation", "init"))
    figure = plt.figure(figsize=(3.2 * len(inits), 2.5 * len(activations) + 0.4))
    grid = figure.subplots(len(activations), len(inits), squeeze=False, sharex=True, sharey=True)
    cells = tables["table1"].set_index(["activation", "init"])
    for ax, cell in zip(grid.flat, product(activations, inits), strict=True):
        rows = entries[(entries["activation"] == cell[0]) & (entries["init"] == cell[1])]
        if rows.empty:
            style.mark_not_run(ax)
        else:
            _weights(ax, rows, cells.loc[cell])
    for ax in grid[-1]:
        ax.set_xlabel("layer $k$")
    for ax in grid[:, 0]:
        ax.set_ylabel("an entry of the convolution")
    legend_above(figure, grid.flat)
    return figure


def legend_above(figure: Figure, axes: Iterable[Axes]) -> None:
    """Put the legend of the first panel that has one above all panels."""
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper center", ncol=len(labels), fontsize=7)
            return


def _weights(ax: Axes, rows: pd.DataFrame, cell: pd.Series) -> None:
    for name, look in CONVOLUTION_LOOKS.items():
        curve = rows[rows["convolution"] == name]
        start, end = curve[curve["epoch"] == 0], curve[curve["last"]]
        line, label = look | {"marker": None}, CONVOLUTIONS[name]
        thin = line | {"linewidth": 0.5, "alpha": 0.6}
        ax.plot(start["layer"], start["value"], **thin, label=f"{label}, before training")
        ax.plot(end["layer"], end["value"], **line | {"linewidth": 1.2}, label=f"{label}, after")
    activation, init = rows[["activation", "init"]].iloc[0]
    both = "   ".join(
        f"{label}: {cell[f'ratio_{name}']:.2g}" for name, label in CONVOLUTIONS.items()
    )
    ax.set_title(f"{ACTIVATIONS[activation]}, {INITS[init]}\nratio of {both}", fontsize=7.5)
    ax.tick_params(labelsize=7)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def successive_distance(tables: Tables) -> Figure:
    """Draw the paper's Figure 4: mean successive distance by convolution and initialization."""
    table = tables["successive"].query("measure == 'mean_distance'")
    activations, inits = (list(table[axis].unique()) for axis in ("activation", "init"))
    size = {"width": 1.2 + 2.0 * len(activations), "height": 3.2}
    figure, axes = style.panels(len(activations), sharey=True, **size)
    for ax, activation in zip(axes, activations, strict=True):
        _distances(ax, table[table["activation"] == activation], inits)
        ax.set_title(ACTIVATIONS[activation])
    axes[0].set_ylabel(r"mean over $k$ of $\|\mathrm{conv}_{i,k+1}-\mathrm{conv}_{i,k}\|_F$")
    figure.legend(
        *axes[-1].get_legend_handles_labels(),
        loc="outside upper center",
        ncol=3,
        fontsize=7,
        title="start (open: before training)",
        title_fontsize=7,
    )
    return figure


def _distances(ax: Axes, table: pd.DataFrame, inits: list[str]) -> None:
    """Draw each convolution's distances by initialization, before and after training."""
    for index, (init, look) in enumerate(style.looks(inits).items()):
        shift = 1 + 0.12 * (index - (len(inits) - 1) / 2)
        rows = table[(table["init"] == init) & (table["mean"] > 0)]
        for mask, trained in ((rows["epoch"] == 0, False), (rows["last"], True)):
            points = rows[mask]
            ax.errorbar(
                points["convolution"].map(list(CONVOLUTIONS).index) + shift,
                points["mean"],
                yerr=style.interval_bars(points),
                color=look["color"],
                marker=look["marker"],
                markerfacecolor=look["color"] if trained else "white",
                linestyle="none",
                capsize=2,
                label=INITS[init] if trained else None,
            )
    ax.set_xticks([1, 2], ["$i=1$", "$i=2$"])
    ax.set(xlim=(0.6, 2.4), yscale="log", xlabel="convolution")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def smoothness_over_depth(tables: Tables) -> Figure:
    """Draw von Neumann ratios over depth, and how outputs change at twice the depth."""
    figure, (ratio, change) = style.panels(2, width=9.0, height=3.7)
    points = tables["over_depth"]
    _over_depth(ratio, rows_of(points, measure="ratio"), tables, (-2, -1, 0))
    _over_depth(change, rows_of(points, measure="change"), tables, (-1, 0))
    if len(points):
        ratio.set_ylabel("von Neumann ratio of the trained weights")
        change.set_ylabel("relative change of the outputs at depth $2L$")
    return figure


@style.panel
def _over_depth(ax: Axes, rows: pd.DataFrame, tables: Tables, guides: tuple[int, ...]) -> None:
    slopes = tables["depth_slopes"]
    slopes = slopes[slopes["measure"] == rows["measure"].iloc[0]]
    slopes = slopes.groupby(["activation", "init"])["slope"].mean()
    cells = list(dict.fromkeys(zip(rows["activation"], rows["init"], strict=True)))
    for cell, look in style.looks(cells, skip=1).items():
        here = rows[(rows["activation"] == cell[0]) & (rows["init"] == cell[1])]
        name = f"{ACTIVATIONS[cell[0]]}, {INITS[cell[1]]}: slope {slopes[cell]:.2f}"
        for number, (_, curve) in enumerate(here.sort_values("depth").groupby("seed")):
            label = None if number else name
            ax.plot(curve["depth"], curve["value"], **look | {"linewidth": 0.9}, label=label)
    depth_axis(ax, rows["depth"].unique())
    first, last = rows["depth"].min(), rows["depth"].max()
    top = rows["value"].max()
    for power in guides:
        ends = [top, top * (last / first) ** power]
        ax.plot([first, last], ends, **style.GUIDE)
        text = rf"$L^{{{power}}}$" if power else "constant"
        ax.annotate(text, (last, ends[1]), xytext=(3, -2), textcoords="offset points", fontsize=7)
    style.plain_numbers(ax)
    ax.legend(fontsize=7, loc="lower left")
