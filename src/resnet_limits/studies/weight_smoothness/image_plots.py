"""Weight smoothness, images: tidy tables to figures."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_limits import style
from resnet_limits.studies.weight_smoothness.plots import depth_axis, rows_of
from resnet_limits.style import Tables

ACTIVATIONS = {"identity": "identity", "gelu": "GELU", "relu": "ReLU"}
INITS = {"weight_tied": "weight-tied", "iid": "i.i.d.", "gaussian_process": "Gaussian process"}
CONVOLUTIONS = {"conv1": r"$\mathrm{conv}_1$", "conv2": r"$\mathrm{conv}_2$"}
CELL = ["activation", "init"]
# Solid, since dashes do not show on a rough path; far apart in grey.
CONVOLUTION_LOOKS: dict[str, dict[str, Any]] = {
    "conv1": {"color": style.COLORS[0], "marker": "o", "linestyle": "-"},
    "conv2": {"color": style.COLORS[5], "marker": "^", "linestyle": "-"},
}
ACCURACY: dict[str, Any] = {"color": style.COLORS[3], "marker": "D"}


def table1(tables: Tables) -> Figure:
    """Draw the paper's Table 1: accuracy and roughness of every cell, with verdicts."""
    table, runs = tables["table1"].iloc[::-1], tables["cells"]
    figure, (accuracy, ratio) = style.panels(2, 0.7 + 0.42 * max(2, len(table)), sharey=True)
    y = np.arange(len(table), dtype=float)
    places = {
        cell: y for y, cell in enumerate(zip(table["activation"], table["init"], strict=True))
    }
    runs = runs.assign(
        y=[places[cell] for cell in zip(runs["activation"], runs["init"], strict=True)]
    )
    _points(accuracy, table, runs, "test_accuracy", y, ACCURACY)
    accuracy.set_xlabel("test accuracy in %")
    names = table["activation"].map(ACTIVATIONS) + ", " + table["init"].map(INITS)
    accuracy.set_yticks(y, list(names))
    accuracy.set_ylim(-0.5, len(table) - 0.4)
    for (name, look), shift in zip(CONVOLUTION_LOOKS.items(), (0.15, -0.15), strict=True):
        shifted = runs.assign(y=runs["y"] + shift)
        _points(ratio, table, shifted, f"ratio_{name}", y + shift, look)
    threshold = table["threshold"].iloc[0]
    ratio.axvline(threshold, **style.GUIDE, label=f"called smooth below {threshold:g}")
    ratio.set(xscale="log", xlabel="von Neumann ratio of the trained weights", xlim=(None, 5))
    style.legend_below(figure, [ratio])
    _verdicts(ratio, y, {"ours": table["smooth"], "paper's": table["paper_smooth"]})
    _say_table1(figure, table)
    return figure


def _say_table1(figure: Figure, table: pd.DataFrame) -> None:
    marked = table.dropna(subset="paper_smooth")
    agree = (marked["smooth"] == marked["paper_smooth"].astype(bool)).sum()
    style.say(
        figure,
        f"Weights are smooth, or not, as in the paper in {agree} of "
        f"{style.count(len(marked), 'cell')}.",
        f"{style.of_runs(table['n'])} a cell: {style.averages(table['n'])}; ticks, seeds; numbers, "
        "means.",
    )


def _points(
    ax: Axes,
    table: pd.DataFrame,
    runs: pd.DataFrame,
    value: str,
    y: np.ndarray,
    look: dict[str, Any],
) -> None:
    """Draw means with intervals over seeds, and write the means to the right of these."""
    rows = table.rename(columns={value: "mean", f"{value}_low": "low", f"{value}_high": "high"})
    rows = rows[["mean", "low", "high"]]
    label = CONVOLUTIONS.get(value.removeprefix("ratio_"))
    line = look | {"linestyle": "none"}
    bars = style.interval_bars(rows)
    ax.errorbar(rows["mean"], y, xerr=bars, **line, capsize=2, label=label)
    ax.plot(runs[value], runs["y"] - 0.12, "|", color=look["color"], markersize=4, alpha=0.7)
    ends = rows["high"].fillna(rows["mean"])
    for height, mean, end in zip(y, rows["mean"], ends, strict=True):
        beside: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{mean:.3g}", (end, height), **beside)
    ax.margins(x=0.15)


def _verdicts(ax: Axes, y: np.ndarray, columns: dict[str, pd.Series]) -> None:
    """Write columns of verdicts to the right of a panel."""
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate("smooth?", (1.11, 1), xytext=(0, 14), ha="center", **above)
    for at, (name, verdicts) in zip((1.05, 1.18), columns.items(), strict=True):
        ax.annotate(name, (at, 1), xytext=(0, 2), ha="center", **above)
        for height, verdict in zip(y, verdicts, strict=True):
            place = ax.get_yaxis_transform()
            ax.text(at, height, _verdict(verdict), ha="center", va="center", transform=place)


def _verdict(smooth: Any) -> str:
    return "-" if pd.isna(smooth) else "yes" if smooth else "no"


def cifar_weights(tables: Tables) -> Figure:
    """Draw the paper's Figure 3: an entry of each convolution over layers; all initializations."""
    entries = rows_of(tables["cifar_entries"], entry=0).query("activation != 'identity'")
    if entries.empty:
        return style.not_run()
    activations, inits = (list(entries[axis].unique()) for axis in ("activation", "init"))
    figure, grid = style.grid(len(activations), len(inits), 2.3, sharex=True, sharey=True)
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
    style.legend_below(figure, grid.flat)
    _say_weights(figure, entries)
    return figure


def _say_weights(figure: Figure, entries: pd.DataFrame) -> None:
    """Say how far trained entries range over layers, where most and where least."""
    ends = entries[entries["last"]].groupby(["activation", "init", "convolution"])["value"]
    ranges = (ends.max() - ends.min()).groupby(["activation", "init"]).max().sort_values()
    least, most = (
        f"{ranges[cell]:.2g} ({ACTIVATIONS[cell[0]]}, {INITS[cell[1]]})"
        for cell in (ranges.index[0], ranges.index[-1])
    )
    style.say(
        figure,
        f"Over layers, a trained entry ranges over {least} to {most}.",
        f"1 seed ({entries['seed'].iloc[0]}) of each cell, one random entry of each convolution; "
        "thin, before training.",
    )


def _weights(ax: Axes, rows: pd.DataFrame, cell: pd.Series) -> None:
    for name, look in CONVOLUTION_LOOKS.items():
        curve = rows[rows["convolution"] == name]
        start, end = curve[curve["epoch"] == 0], curve[curve["last"]]
        line, label = look | {"marker": None}, CONVOLUTIONS[name]
        thin = line | {"linewidth": 0.5, "alpha": 0.6}
        ax.plot(start["layer"], start["value"], **thin, label=f"{label}, before training")
        ax.plot(end["layer"], end["value"], **line | {"linewidth": 1.2}, label=f"{label}, after")
    activation, init = rows[["activation", "init"]].iloc[0]
    both = ", ".join(f"{cell[f'ratio_{name}']:.2g}" for name in CONVOLUTIONS)
    ax.set_title(f"{ACTIVATIONS[activation]}, {INITS[init]}: ratios {both}")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def successive_distance(tables: Tables) -> Figure:
    """Draw the paper's Figure 4: mean successive distance by convolution and initialization."""
    table = tables["successive"].query("measure == 'mean_distance'")
    if table.empty:
        return style.not_run()
    activations, inits = (list(table[axis].unique()) for axis in ("activation", "init"))
    figure, axes = style.panels(len(activations), sharey=True)
    for ax, activation in zip(axes, activations, strict=True):
        _distances(ax, table[table["activation"] == activation], inits)
        ax.set_title(ACTIVATIONS[activation])
    axes[0].set_ylabel(r"mean over $k$ of $\|\mathrm{conv}_{i,k+1}-\mathrm{conv}_{i,k}\|_F$")
    style.legend_below(figure, axes)
    style.say(
        figure,
        _tied_over_iid(table[table["last"]]),
        f"{style.of_runs(table['n'])} a cell: {style.averages(table['n'])}; open, before training.",
    )
    return figure


def _tied_over_iid(ends: pd.DataFrame) -> str:
    """Say what part of the i.i.d. networks' distance the weight-tied ones' is, by activation."""
    wide = ends.pivot_table(index="activation", columns="init", values="mean", sort=False)
    if not {"weight_tied", "iid"} <= set(wide):
        return "Mean distance of successive layers."
    parts = [
        f"{ratio:.2g} with {ACTIVATIONS[activation]}"
        for activation, ratio in (wide["weight_tied"] / wide["iid"]).dropna().items()
    ]
    return (
        "After training, weight-tied networks' successive distance over that of i.i.d. ones is "
        f"{', '.join(parts)}."
    )


def _distances(ax: Axes, table: pd.DataFrame, inits: list[str]) -> None:
    """Draw each convolution's distances by initialization, before and after training."""
    for index, (init, look) in enumerate(style.looks(inits, skip=3).items()):
        shift = 1 + 0.14 * (index - (len(inits) - 1) / 2)
        rows = table[(table["init"] == init) & (table["mean"] > 0)]
        for mask, trained in ((rows["epoch"] == 0, False), (rows["last"], True)):
            chosen = rows[mask]
            style.points(
                ax,
                chosen["convolution"].map(list(CONVOLUTIONS).index) + shift,
                chosen,
                look,
                linestyle="none",
                markerfacecolor=look["color"] if trained else "white",
                label=INITS[init] if trained else None,
            )
    ax.set_xticks([1, 2], ["$i=1$", "$i=2$"])
    ax.set(xlim=(0.6, 2.4), yscale="log", xlabel="convolution")
    style.plain_numbers(ax)


def smoothness_over_depth(tables: Tables) -> Figure:
    """Draw von Neumann ratios over depth, and how outputs change at twice the depth."""
    figure, (ratio, change) = style.panels(2, height=3.4)
    points, slopes = tables["over_depth"], tables["depth_slopes"]
    _over_depth(ratio, rows_of(points, measure="ratio"), slopes, (-2, -1, 0))
    _over_depth(change, rows_of(points, measure="change"), slopes, (-1, 0))
    if len(points):
        ratio.set_ylabel("von Neumann ratio of the trained weights")
        change.set_ylabel("relative change of the outputs at depth $2L$")
    seeds = points.groupby([*CELL, "depth"])["seed"].nunique() if len(points) else []
    message = f"the von Neumann ratio has slopes {_slopes_in_words(slopes, 'ratio')}."
    style.say(
        figure,
        f"Over depth, {message}" if len(slopes) else "No network was trained at three depths.",
        f"{style.of_runs(seeds)} (thin) and their geometric means.",
    )
    return figure


def _slopes_in_words(slopes: pd.DataFrame, measure: str) -> str:
    average = rows_of(slopes, measure=measure).groupby(CELL, sort=False)["slope"].mean()
    return ", ".join(
        f"{slope:.2f} ({ACTIVATIONS[activation]}, {INITS[init]})"
        for (activation, init), slope in average.items()
    )


@style.panel
def _over_depth(
    ax: Axes, rows: pd.DataFrame, slopes: pd.DataFrame, guides: tuple[int, ...]
) -> None:
    slopes = rows_of(slopes, measure=rows["measure"].iloc[0]).groupby(CELL)["slope"].mean()
    cells = list(dict.fromkeys(zip(rows["activation"], rows["init"], strict=True)))
    for cell, look in style.looks(cells, skip=1).items():
        here = rows[(rows["activation"] == cell[0]) & (rows["init"] == cell[1])]
        style.runs(ax, here, "depth", "value", "seed", look["color"])
        mean = np.exp(np.log(here["value"]).groupby(here["depth"]).mean())
        label = f"{ACTIVATIONS[cell[0]]}, {INITS[cell[1]]}: slope {slopes[cell]:.2f}"
        ax.plot(mean, **look, label=label)
    depth_axis(ax, rows["depth"].unique())
    first, last = rows["depth"].min(), rows["depth"].max()
    top = rows["value"].max()
    for power in guides:
        ends = [top, top * (last / first) ** power]
        ax.plot([first, last], ends, **style.GUIDE)
        text = rf"$L^{{{power}}}$" if power else "constant"
        ax.annotate(text, (last, ends[1]), xytext=(7, -3), textcoords="offset points")
    style.plain_numbers(ax)
    style.legend_above(ax)
