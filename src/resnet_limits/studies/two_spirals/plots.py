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
    "frozen_wide": "not trained, wide output layer",
    "removed_wide": "no residual part, wide output layer",
}
LOOKS = style.looks(list(LABELS))
FLOOR = 1e-5  # below the error axis, for intervals that reach 0
MARKS = ("#7A2E00", "#003A5C")
REGIONS = ("#E3A27C", "#E4EFF7")  # apart in grey as well
TRAINED = ("constant", "per_step")
COMPARED = ("constant", "frozen_wide", "removed_wide")  # as many trained weights
SEEDS: dict[str, dict[str, Any]] = {
    "all": {"color": style.COLORS[1], "marker": "o", "linestyle": "-"},
    "paper": {"color": style.COLORS[2], "marker": "^", "linestyle": style.DASHES[1]},
}


def rate(tables: Tables) -> Figure:
    """Draw the paper's Figure 1: test error over n with fits, for both trained fields."""
    figure, axes = style.panels(2, width=7.0, height=3.4, sharey=True)
    errors, rates = tables["errors"], tables["rates"].query("method == 'least squares'")
    for ax, field in zip(axes, TRAINED, strict=True):
        _error_over_size(ax, errors[errors["variant"] == field], rates[rates["variant"] == field])
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
    ax.plot(
        n,
        top * (n / n[0]) ** -0.5,
        **style.GUIDE,
        label=r"$n^{-1/2}$, the paper's bound, at any height",
    )
    _log_axes(ax, n)
    ax.set(title=f"field {LABELS[errors['variant'].iloc[0]]}")
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


def transition(tables: Tables) -> Figure:
    """Draw local slopes, errors times the root of n, and errors over n by noise."""
    figure, axes = style.panels(3, width=9.5, height=3.4)
    errors = tables["errors"]
    _slopes_between(axes[0], _of(tables["local_slopes"], COMPARED))
    _scaled_errors(axes[1], _of(_all_seeds(errors), COMPARED))
    _errors_by_noise(axes[2], tables["noise_errors"], tables["noise_rates"])
    return figure


@style.panel
def _slopes_between(ax: Axes, slopes: pd.DataFrame) -> None:
    for variant, rows in slopes.groupby("variant", sort=False):
        bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
        label = f"{LABELS[variant]} ({rows['n'].max()} seeds)"
        ax.errorbar(rows["middle"], rows["mean"], bars, **LOOKS[variant], capsize=2, label=label)
    ax.axhline(-0.5, **style.GUIDE, label="-1/2, the paper's bound")
    ax.set(ylim=(-5, 1))  # intervals at the largest sizes, where few points are wrong, go on
    _log_sizes(ax, np.unique(slopes[["smaller", "larger"]]))
    ax.set(ylabel="slope between neighbouring sizes")
    ax.legend(fontsize=6, loc="lower left", title="vector field", title_fontsize=6.5)


@style.panel
def _scaled_errors(ax: Axes, errors: pd.DataFrame) -> None:
    for variant, rows in errors.groupby("variant", sort=False):
        bars = [rows["scaled_mean"] - rows["scaled_low"], rows["scaled_high"] - rows["scaled_mean"]]
        ax.errorbar(
            rows["n_train"], rows["scaled_mean"], np.array(bars), **LOOKS[variant], capsize=2
        )
    _log_sizes(ax, errors["n_train"].unique())
    ax.set(ylabel=r"$\sqrt{n}\,\times$ test 0-1 error", ylim=(0, None))


@style.panel
def _errors_by_noise(ax: Axes, errors: pd.DataFrame, rates: pd.DataFrame) -> None:
    slopes = rates.set_index("noise")
    looks = style.looks(sorted(errors["noise"].unique()))
    for width, rows in errors.groupby("noise"):
        bars = style.interval_bars(rows, floor=FLOOR)
        label = f"{width:g} ({rows['n'].max()} seeds): slope {_interval(slopes.loc[width])}"
        ax.errorbar(rows["n_train"], rows["mean"], bars, **looks[width], capsize=2, label=label)
    _log_axes(ax, errors["n_train"].unique())
    ax.set(ylabel="test 0-1 error")
    ax.legend(fontsize=6, loc="lower left", title="noise", title_fontsize=6.5)


def training(tables: Tables) -> Figure:
    """Draw loss and errors over training for each size, field constant in depth."""
    curves = tables["curves"].query("field == 'constant' and step > 0")
    if curves.empty:
        return style.not_run()
    figure, axes = style.panels(3, width=8.5, height=3.4)
    colors = style.ordered(curves["n_train"].unique())
    looks = style.looks(list(colors))
    for ax, (column, label) in zip(
        axes,
        [
            ("train_loss", "training loss"),
            ("train_error", "training 0-1 error"),
            ("test_error", "test 0-1 error"),
        ],
        strict=True,
    ):
        averages = curves.groupby(["n_train", "step"])[column].mean()
        for size, color in colors.items():
            look = looks[size] | {"color": color}
            ax.plot(averages[size], **look, markevery=9, markersize=3.5, label=f"{size}")
        ax.set(xscale="log", xlabel="Adam step", ylabel=label)
    axes[0].set_yscale("log")
    seeds = curves["seed"].nunique()
    title = f"mean of {seeds} seeds, $n =$"
    axes[2].legend(title=title, ncols=2, fontsize=6, title_fontsize=6.5)
    figure.suptitle(f"field {LABELS['constant']}", fontsize=9)
    return figure


def gram(tables: Tables) -> Figure:
    """Draw smallest eigenvalues relative to the start, and the distance of the particles."""
    table, curves = tables["gram"], tables["curves"]
    figure, axes = style.panels(3, width=9.5, height=3.4)
    axes[1].sharey(axes[0])
    sizes = sorted(table["n_train"].unique())
    looks = style.looks(sizes, skip=2)  # the first two are those of fields, on the right
    for ax, field in zip(axes[:2], TRAINED, strict=True):
        _ratios(ax, table[table["field"] == field], looks)
    axes[0].set_ylabel(r"$\lambda_{\min}(G)$ relative to step 0")
    _distances(axes[2], curves[curves["field"].isin(TRAINED)])
    return figure


@style.panel
def _ratios(ax: Axes, table: pd.DataFrame, looks: dict[int, dict[str, Any]]) -> None:
    for size, rows in table[table["step"] > 0].groupby("n_train"):
        look = looks[size]
        for _, run in rows.groupby("seed"):
            ax.plot(run["step"], run["ratio"], color=look["color"], alpha=0.25, linewidth=0.7)
        median = rows.groupby("step")["ratio"].median()
        kept = rows.loc[rows["last"], "kept"]
        label = f"$n = {size}$: {kept.sum()} of {len(kept)} seeds stay above 1/2"
        ax.plot(median, **look, label=label)
    ax.axhline(0.5, **style.GUIDE, label="1/2 (Lemma 4.4)")
    title = f"field {LABELS[table['field'].iloc[0]]}"
    ax.set(xscale="log", yscale="log", xlabel="Adam step", title=title)
    ax.legend(title="median (thin: seeds)", fontsize=6, title_fontsize=6.5)


@style.panel
def _distances(ax: Axes, curves: pd.DataFrame) -> None:
    largest = curves["n_train"].max()
    rows = curves[(curves["n_train"] == largest) & (curves["step"] > 0)]
    for field in _present(rows["field"], TRAINED):
        for column, part, marker in (
            ("field_distance", "field", "o"),
            ("head_distance", "output layer", "^"),
        ):
            averages = rows[rows["field"] == field].groupby("step")[column].mean()
            look = LOOKS[field] | {"marker": marker}
            ax.plot(averages, **look, markevery=8, label=f"{part} ({LABELS[field]})")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="Adam step",
        ylabel="RMS distance from start",
        title=f"particles, $n = {largest}$, {rows['seed'].nunique()} seeds",
    )
    ax.legend(fontsize=6)


def ablation(tables: Tables) -> Figure:
    """Draw test error over n for every variant of the field."""
    figure, axes = style.panels(2, width=8.5, height=3.6, sharey=True)
    errors = _all_seeds(tables["errors"])
    rates = _all_seeds(tables["rates"]).query("method == 'least squares'").set_index("variant")
    for ax, title, variants in (
        (axes[0], "the same widths", ("constant", "per_step", "frozen", "removed")),
        (axes[1], "as many trained weights", COMPARED),
    ):
        _variants(ax, _of(errors, variants), rates)
        ax.set(title=title, xlabel="training points $n$")
    axes[0].set_ylabel("test 0-1 error")
    return figure


@style.panel
def _variants(ax: Axes, errors: pd.DataFrame, rates: pd.DataFrame) -> None:
    variants = list(errors["variant"].unique())
    for index, variant in enumerate(variants):
        points = errors[errors["variant"] == variant]
        ax.errorbar(
            points["n_train"] * 1.08 ** (index - (len(variants) - 1) / 2),
            points["mean"],
            yerr=style.interval_bars(points, floor=FLOOR),
            **LOOKS[variant],
            capsize=2,
            label=f"{LABELS[variant]}: slope {_interval(rates.loc[variant])}",
        )
    _log_axes(ax, errors["n_train"].unique())
    title = f"vector field, {errors['n'].max()} seeds"
    ax.legend(title=title, fontsize=6, title_fontsize=6.5, loc="lower left")


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
        label=f"mean of {points['n'].max()} seeds, 95 % interval",
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
    figure, axes = style.panels(len(sizes), width=2.6 * len(sizes), height=3.5, sharey=True)
    for ax, size in zip(axes, sizes, strict=True):
        rows = boundary[boundary["n_train"] == size]
        grid = rows.pivot(index="x2", columns="x1", values="output")
        surface = (grid.columns, grid.index, grid)
        ax.contourf(*surface, levels=[-np.inf, 0, np.inf], colors=REGIONS)
        ax.contour(*surface, levels=[0], colors="0.3", linewidths=0.6)
        points = samples[samples["n_train"] == size]
        for label, marker, color in ((-1, "v", MARKS[0]), (1, "o", MARKS[1])):
            arm = points[points["label"] == label]
            ax.scatter(arm["x1"], arm["x2"], label=f"{label:+d}", **_dots(marker, color, size))
        ax.set(xlabel="$x_1$", title=f"$n = {size}$")
        ax.set_aspect("equal", adjustable="box")
        ax.grid(False)
    axes[0].set_ylabel("$x_2$")
    figure.suptitle(f"field {LABELS['constant']}, seed {samples['seed'].iloc[0]}", fontsize=9)
    axes[0].legend(title="label", fontsize=6, title_fontsize=6, loc="upper left", frameon=True)
    return figure


def _dots(marker: str, color: str, size: int) -> dict[str, Any]:
    return {
        "s": 12 if size < 512 else 5,
        "marker": marker,
        "color": color,
        "linewidths": 0.3,
        "edgecolors": "white",
    }


def _present(column: pd.Series, names: Iterable[str]) -> list[str]:
    found = set(column)
    return [name for name in names if name in found]


def _all_seeds(table: pd.DataFrame) -> pd.DataFrame:
    return table if table.empty else table[table["seeds"] == "all"]


def _of(table: pd.DataFrame, variants: Iterable[str]) -> pd.DataFrame:
    """Return the rows of some variants, in the variants' order."""
    if table.empty:
        return table
    names = _present(table["variant"], variants)
    return pd.concat([table[table["variant"] == name] for name in names] or [table[:0]])


def _interval(row: pd.Series) -> str:
    return f"{row['slope']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _log_axes(ax: Axes, sizes: np.ndarray) -> None:
    ax.set(yscale="log", ylim=(4e-4, 1.3))
    _log_sizes(ax, sizes)
    ax.yaxis.set_major_formatter("{x:g}")


def _log_sizes(ax: Axes, sizes: np.ndarray) -> None:
    ax.set(xscale="log", xlabel="training points $n$")
    ax.set_xticks(sorted(sizes), [str(int(size)) for size in sorted(sizes)], rotation=45)
    ax.xaxis.set_minor_formatter(NullFormatter())
