"""Two Spirals: tidy tables to figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from resnet_limits import style
from resnet_limits.style import Tables

LABELS = {
    "constant": "constant in depth",
    "per_step": "one per step",
    "frozen": "not trained",
    "removed": "no residual part",
}
LOOKS = style.looks(list(LABELS))
FLOOR = 1e-5  # below the error axis, for intervals that reach 0
REGIONS = ("#F6D5BE", "#CFE3F1")
TRAINED = ("constant", "per_step")
SEEDS: dict[str, dict[str, Any]] = {
    "all": {"color": style.COLORS[1], "marker": "o", "linestyle": "-"},
    "paper": {"color": style.COLORS[2], "marker": "^", "linestyle": style.DASHES[1]},
}


def rate(tables: Tables) -> Figure:
    """Draw the paper's Figure 1: test error over n with fits, for both trained fields."""
    figure, axes = style.panels(2, width=7.0, height=3.4, sharey=True)
    errors, rates = tables["errors"], tables["rates"].query("method == 'least squares'")
    for ax, field in zip(axes, TRAINED, strict=True):
        _error_over_size(ax, errors[errors["field"] == field], rates[rates["field"] == field])
    axes[0].set_ylabel("test 0-1 error")
    return figure


@style.panel
def _error_over_size(ax: Axes, errors: pd.DataFrame, rates: pd.DataFrame) -> None:
    for index, (seeds, look) in enumerate(SEEDS.items()):
        points = errors[errors["seeds"] == seeds]
        ax.errorbar(
            points["n_train"] * 1.06 ** (index - 0.5),
            points["mean"],
            yerr=style.interval_bars(points, floor=FLOOR),
            color=look["color"],
            marker=look["marker"],
            linestyle="none",
            linewidth=1,
            capsize=2,
        )
        _fit(ax, points, rates[rates["seeds"] == seeds].iloc[0], look)
    n = errors["n_train"].unique()
    top = errors.query("seeds == 'all'")["mean"].iloc[0]
    ax.plot(n, top * (n / n[0]) ** -0.5, **style.GUIDE, label=r"$n^{-1/2}$ (the paper's bound)")
    _log_axes(ax, n)
    ax.set(xlabel="training points $n$", title=f"field {LABELS[errors['field'].iloc[0]]}")
    ax.legend(loc="lower left", fontsize=6.5)


def _fit(ax: Axes, points: pd.DataFrame, row: pd.Series, look: dict[str, Any]) -> None:
    if not np.isfinite(row["slope"]):
        return
    n = points["n_train"].to_numpy(dtype=float)
    label = (
        f"{points['n'].max()} seeds: slope {row['slope']:.2f}\n"
        f"[{row['low']:.2f}, {row['high']:.2f}], p = {row['p_value']:.1g}"
    )
    ax.plot(
        n,
        np.exp(row["intercept"]) * n ** row["slope"],
        color=look["color"],
        linestyle=look["linestyle"],
        label=label,
    )


def training(tables: Tables) -> Figure:
    """Draw loss and errors over training for each size, field constant in depth."""
    curves = tables["curves"].query("field == 'constant' and step > 0")
    if curves.empty:
        return style.not_run()
    figure, axes = style.panels(3, width=8.5, height=3.2)
    colors = style.ordered(curves["n_train"].unique())
    for ax, (column, label) in zip(
        axes,
        [
            ("train_loss", "training loss"),
            ("train_error", "training 0-1 error"),
            ("test_error", "test 0-1 error"),
        ],
        strict=True,
    ):
        means = curves.groupby(["n_train", "step"])[column].mean()
        for size, color in colors.items():
            ax.plot(means[size], color=color, label=f"{size}")
        ax.set(xscale="log", xlabel="Adam step", ylabel=label)
    axes[0].set_yscale("log")
    axes[1].set_title(f"field {LABELS['constant']}")
    axes[2].legend(title="mean over seeds, $n =$", ncols=2, fontsize=6, title_fontsize=6.5)
    return figure


def gram(tables: Tables) -> Figure:
    """Draw smallest eigenvalues relative to the start, and the distance of the particles."""
    table, curves = tables["gram"], tables["curves"]
    figure, axes = style.panels(3, width=9.0, height=3.2)
    axes[1].sharey(axes[0])
    looks = style.looks(sorted(table["n_train"].unique()))
    for ax, field in zip(axes[:2], TRAINED, strict=True):
        _ratios(ax, table[table["field"] == field], looks)
    axes[0].set_ylabel(r"$\lambda_{\min}(G)$ relative to step 0")
    style.legend_once(axes[:2], title="median and seeds", fontsize=6.5, title_fontsize=6.5)
    _distances(axes[2], curves[curves["field"].isin(TRAINED)])
    return figure


@style.panel
def _ratios(ax: Axes, table: pd.DataFrame, looks: dict[int, dict[str, Any]]) -> None:
    for size, rows in table[table["step"] > 0].groupby("n_train"):
        look = looks[size]
        for _, run in rows.groupby("seed"):
            ax.plot(run["step"], run["ratio"], color=look["color"], alpha=0.25, linewidth=0.7)
        median = rows.groupby("step")["ratio"].median()
        ax.plot(median, color=look["color"], linestyle=look["linestyle"], label=f"$n = {size}$")
    ax.axhline(0.5, **style.GUIDE)
    style.label_guide(ax, "1/2 (Lemma 4.4)", (1, 0.5))
    title = f"field {LABELS[table['field'].iloc[0]]}"
    ax.set(xscale="log", yscale="log", xlabel="Adam step", title=title)


@style.panel
def _distances(ax: Axes, curves: pd.DataFrame) -> None:
    largest = curves["n_train"].max()
    rows = curves[(curves["n_train"] == largest) & (curves["step"] > 0)]
    for field in _present(rows, TRAINED):
        for column, part, marker in (
            ("field_distance", "field", "o"),
            ("head_distance", "output layer", "^"),
        ):
            means = rows[rows["field"] == field].groupby("step")[column].mean()
            look = LOOKS[field]
            ax.plot(
                means,
                color=look["color"],
                linestyle=look["linestyle"],
                marker=marker,
                markevery=8,
                label=f"{part} ({LABELS[field]})",
            )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="Adam step",
        ylabel="RMS distance from start",
        title=f"particles, $n = {largest}$",
    )
    ax.legend(fontsize=6)


def ablation(tables: Tables) -> Figure:
    """Draw test error over n for every variant of the field."""
    figure, (ax,) = style.panels(width=5.0, height=3.4)
    errors = tables["errors"].query("seeds == 'all'")
    rates = tables["rates"].query("seeds == 'all' and method == 'least squares'").set_index("field")
    for field in _present(errors, LABELS):
        points, row = errors[errors["field"] == field], rates.loc[field]
        ax.errorbar(
            points["n_train"] * 1.02 ** (list(LABELS).index(field) - 1.5),
            points["mean"],
            yerr=style.interval_bars(points, floor=FLOOR),
            **LOOKS[field],
            capsize=2,
            label=f"{LABELS[field]}: slope {_interval(row)}",
        )
    _log_axes(ax, errors["n_train"].unique())
    ax.set(xlabel="training points $n$", ylabel="test 0-1 error")
    ax.legend(title="vector field", fontsize=7, title_fontsize=7)
    return figure


def depth(tables: Tables) -> Figure:
    """Draw test error over the number of Euler steps."""
    table = tables["depths"]
    figure, (ax,) = style.panels(width=4.0, height=3.0)
    for _, run in table.groupby("seed"):
        run = run.sort_values("depth")
        ax.plot(run["depth"], run["test_error"], color="0.75", linewidth=0.7, zorder=1)
    points = tables["depth_errors"]
    ax.errorbar(
        points["depth"],
        points["mean"],
        yerr=style.interval_bars(points, floor=FLOOR),
        color=style.COLORS[1],
        marker="o",
        capsize=3,
        label="mean over seeds, 95 %",
    )
    ax.set_xscale("log", base=2)
    ax.set_xticks(points["depth"], [str(depth) for depth in points["depth"]])
    ax.set(xlabel="Euler steps $L$", ylabel="test 0-1 error", ylim=(0, None))
    ax.set_title(f"$n = {table['n_train'].iloc[0]}$")
    ax.legend(fontsize=7)
    return figure


def decision_boundary(tables: Tables) -> Figure:
    """Draw the learnt regions of the constant field for a few sizes."""
    boundary, samples = tables["boundary"], tables["samples"]
    if boundary.empty:
        return style.not_run()
    sizes = sorted(boundary["n_train"].unique())
    figure, axes = style.panels(len(sizes), width=2.5 * len(sizes), height=3.2, sharey=True)
    for ax, size in zip(axes, sizes, strict=True):
        rows = boundary[boundary["n_train"] == size]
        grid = rows.pivot(index="x2", columns="x1", values="output")
        surface = (grid.columns, grid.index, grid)
        ax.contourf(*surface, levels=[-np.inf, 0, np.inf], colors=REGIONS)
        ax.contour(*surface, levels=[0], colors="0.3", linewidths=0.6)
        points = samples[samples["n_train"] == size]
        for label, marker, color in ((-1, "v", style.COLORS[2]), (1, "o", style.COLORS[1])):
            arm = points[points["label"] == label]
            ax.scatter(arm["x1"], arm["x2"], label=f"{label:+d}", **_dots(marker, color, size))
        ax.set(aspect="equal", xlabel="$x_1$", title=f"$n = {size}$")
        ax.grid(False)
    axes[0].set_ylabel("$x_2$")
    axes[0].legend(title="label", fontsize=6, title_fontsize=6, loc="upper left", frameon=True)
    return figure


def _dots(marker: str, color: str, size: int) -> dict[str, Any]:
    return {"s": 10 if size < 512 else 2, "marker": marker, "color": color, "linewidth": 0}


def _present(table: pd.DataFrame, fields: Iterable[str]) -> list[str]:
    found = set(table["field"])
    return [field for field in fields if field in found]


def _interval(row: pd.Series) -> str:
    return f"{row['slope']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _log_axes(ax: Axes, sizes: np.ndarray) -> None:
    ax.set(xscale="log", yscale="log", ylim=(4e-4, 1.3))
    ax.set_xticks(sorted(sizes), [str(int(size)) for size in sorted(sizes)], rotation=45)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter("{x:g}")
