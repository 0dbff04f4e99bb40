"""Two Spirals: tidy tables to figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
FLOOR = 5e-5  # of the error axis
MARKS = ("#7A2E00", "#003A5C")
REGIONS = ("#E3A27C", "#E4EFF7")  # apart in grey as well
TRAINED = ("constant", "per_step")
COMPARED = ("constant", "frozen_wide", "removed_wide")  # as many trained weights
BOUND = -0.5  # slope of the paper's bound
SEEDS: dict[str, dict[str, Any]] = {
    "all": {"color": style.COLORS[1], "marker": "o", "linestyle": "-"},
    "paper": {"color": style.COLORS[2], "marker": "^", "linestyle": style.DASHES[1]},
}
DOTS: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 2.5, "alpha": 0.6}


def rate(tables: Tables) -> Figure:
    """Draw the paper's Figure 1: test error over n with fits, for both trained fields."""
    figure, axes = style.panels(2, height=3.6, sharey=True)
    errors, rates = tables["errors"], tables["rates"].query("method == 'least squares'")
    final = tables["final"]
    for ax, field in zip(axes, TRAINED, strict=True):
        rows = errors[errors["variant"] == field]
        _error_over_size(ax, rows, rates[rates["variant"] == field], final)
    axes[0].set_ylabel("test 0-1 error")
    _say_rate(figure, errors, rates)
    return figure


def _say_rate(figure: Figure, errors: pd.DataFrame, rates: pd.DataFrame) -> None:
    found = rates.query("variant == 'constant' and seeds == 'paper'")
    if found.empty:
        style.say(figure, "Test error without the constant field.", style.of_runs(errors["n"]))
        return
    row = found.iloc[0]
    how = style.side(
        row["low"], row["high"], BOUND, "faster than", "more slowly than",
        "at a rate that is not told apart from",
    )  # fmt: skip
    number = errors.query("seeds == 'paper'")["n"].max()
    style.say(
        figure,
        f"The test error falls {how} the paper's $n^{{-1/2}}$: slope "
        f"{style.interval(row['slope'], row['low'], row['high'])} by its procedure with "
        f"{style.count(number, 'seed')} (field constant in depth).",
        f"{style.count(errors['n'].max(), 'seed')}, and the first {number} of them: "
        f"{style.averages(errors['n'])}, and fits of log mean error on log n; dots: seeds "
        f"({_no_errors()}).",
    )


def _no_errors() -> str:
    return "those without an error at half a test point"


@style.panel
def _error_over_size(
    ax: Axes, errors: pd.DataFrame, rates: pd.DataFrame, final: pd.DataFrame
) -> None:
    variant = errors["variant"].iloc[0]
    _seeds(ax, final[final["variant"] == variant], "0.55")
    misses = []
    for index, (seeds, look) in enumerate(SEEDS.items()):
        points = errors[errors["seeds"] == seeds]
        shift = 1.06 ** (2 * index - 1)
        style.points(ax, points["n_train"] * shift, points, look, FLOOR, linestyle="none")
        misses.append(_fit(ax, points, rates[rates["seeds"] == seeds].iloc[0], look))
    n = errors["n_train"].unique()
    top = errors.query("seeds == 'all'")["mean"].iloc[0]
    label = r"$n^{-1/2}$, the paper's bound, at any height"
    ax.plot(n, top * (n / n[0]) ** BOUND, **style.GUIDE, label=label)
    text = f"at $n = {n[0]}$ the fits are\n{misses[0]:.1f} and {misses[1]:.1f} times the error"
    ax.text(0.97, 0.96, text, transform=ax.transAxes, ha="right", va="top")
    _log_axes(ax, n, 4 * FLOOR)
    style.legend_above(ax, f"field {LABELS[variant]}")


def _seeds(ax: Axes, final: pd.DataFrame, color: Any, shift: float = 1.0) -> None:
    """Draw every seed's test error; none is drawn as half a test point."""
    least = 0.5 / final["n_test"]
    ax.plot(final["n_train"] * shift, final["test_error"].clip(lower=least), color=color, **DOTS)


def _fit(ax: Axes, points: pd.DataFrame, row: pd.Series, look: dict[str, Any]) -> float:
    """Draw a fitted line, and return its ratio to the error at the smallest size."""
    n = points["n_train"].to_numpy(dtype=float)
    line = np.exp(row["intercept"]) * n ** row["slope"]
    label = f"{style.count(points['n'].max(), 'seed')}: slope {_slope(row)}"
    if np.isfinite(row["p_value"]):
        label += f", p = {row['p_value']:.1g}"
    ax.plot(n, line, color=look["color"], linestyle=look["linestyle"], label=label)
    return float(line[0] / points["mean"].iloc[0])


def transition(tables: Tables) -> Figure:
    """Draw local slopes, errors times the root of n, and errors over n by noise."""
    figure, axes = style.panels(3)
    errors, slopes = _all_seeds(tables["errors"]), tables["local_slopes"]
    _slopes_between(axes[0], _of(slopes, COMPARED))
    _scaled_errors(axes[1], _of(errors, COMPARED))
    _errors_by_noise(axes[2], tables["noise_errors"], tables["noise_rates"])
    style.legend_below(figure, axes[:2], columns=4)
    numbers = (errors if len(errors) else tables["noise_errors"])["n"]
    style.say(
        figure,
        _in_words(_of(slopes, COMPARED[:1]), tables["noise_rates"]),
        f"{style.of_runs(numbers)}; {style.averages(numbers)}, those that leave a panel go "
        "on; fields and output layers with as many trained weights.",
    )
    return figure


def _in_words(slopes: pd.DataFrame, by_noise: pd.DataFrame) -> str:
    if slopes.empty or by_noise.empty:
        return "Slopes of the test error."
    common = slopes["low"].max() <= slopes["high"].min()
    found = f"{slopes['mean'].max():.1f} to {slopes['mean'].min():.1f}"
    return (
        f"{'A power law is possible' if common else 'The error follows no power law'}: between "
        f"neighbouring sizes its slope is {found} (field constant in depth). Fits over all sizes "
        f"have slopes {by_noise['slope'].max():.2f} to {by_noise['slope'].min():.2f} at "
        f"{style.count(len(by_noise), 'width')} of the noise."
    )


@style.panel
def _slopes_between(ax: Axes, slopes: pd.DataFrame) -> None:
    for index, (variant, rows) in enumerate(slopes.groupby("variant", sort=False)):
        x = rows["middle"] * 1.06 ** (index - 1)
        bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
        ax.errorbar(x, rows["mean"], bars, **LOOKS[variant], capsize=2, label=LABELS[variant])
    ax.axhline(BOUND, **style.GUIDE, label="$-1/2$, the paper's bound")
    lowest = slopes["mean"].min()
    ax.set(ylim=(lowest - 0.5, 1))
    _log_sizes(ax, np.unique(slopes[["smaller", "larger"]]))
    ax.set(ylabel="slope between neighbouring sizes")


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
    looks = style.shades(errors["noise"].unique())
    for index, (width, rows) in enumerate(errors.groupby("noise")):
        x = rows["n_train"] * 1.06 ** (index - (len(looks) - 1) / 2)
        label = f"{width:g}: {_slope(slopes.loc[width])}"
        style.points(ax, x, rows, looks[width], FLOOR, label=label)
    _log_axes(ax, errors["n_train"].unique())
    ax.set(ylabel="test 0-1 error")
    ax.set_title(f"field {LABELS['constant']}")
    ax.set_ylim(bottom=FLOOR / 4)  # room for the legend
    ax.legend(title="noise: slope", loc="lower left")


def training(tables: Tables) -> Figure:
    """Draw loss and errors over training for each size, field constant in depth."""
    curves = tables["curves"].query("field == 'constant' and step > 0")
    if curves.empty:
        return style.not_run()
    figure, axes = style.panels(3)
    looks = style.ordered(curves["n_train"].unique())
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
        for size, look in looks.items():
            ax.plot(averages[size], **look, markevery=9, markersize=3.5, label=f"{size}")
        ax.set(xscale="log", xlabel="Adam step", ylabel=label)
    axes[0].set_yscale("log")
    for ax in axes[1:]:
        ax.set_ylim(0, None)
    style.legend_below(figure, axes[:1], title="training points $n$", columns=len(looks))
    last = curves[curves["step"] == curves.groupby(["n_train", "seed"])["step"].transform("max")]
    nearly = (last["train_error"] <= 0.01).sum()
    ends = last.groupby("n_train")["test_error"].mean()
    style.say(
        figure,
        f"The training error ends at 1 % or less in {nearly} of {len(last)} runs; the test error "
        f"ends at {ends.iloc[0]:.2g} with {ends.index[0]} training points, and at "
        f"{ends.iloc[-1]:.2g} with {ends.index[-1]}.",
        f"Field {LABELS['constant']}; means of {style.count(curves['seed'].nunique(), 'seed')}.",
    )
    return figure


def gram(tables: Tables) -> Figure:
    """Draw smallest eigenvalues relative to the start, and how many runs are above a half."""
    table = tables["gram"]
    figure, axes = style.panels(3)
    axes[1].sharey(axes[0])
    shown = table[table["field"].isin(TRAINED)] if len(table) else table
    looks = _gram_looks(shown)
    for ax, field in zip(axes, TRAINED, strict=False):
        _ratios(ax, table[table["field"] == field], looks)
    axes[0].set_ylabel(r"$\lambda_{\min}(G)$ relative to the start")
    _kept(axes[2], shown, looks)
    style.legend_below(figure, [axes[2], axes[0]], columns=3)
    if len(shown):
        kept = shown.loc[shown["last"], "kept"]
        style.say(
            figure,
            "Under Adam, which is not the setting of Lemma 4.4, the smallest eigenvalue stays "
            f"above half of its start in {kept.sum()} of {len(kept)} runs.",
            f"{style.of_runs([shown['seed'].nunique()])}; left and middle, seeds (thin) and their "
            "median; right, share of the seeds.",
        )
    return figure


def _gram_looks(table: pd.DataFrame) -> dict[tuple[str, int], dict[str, Any]]:
    """Return a colour and a marker for each size, and dashes and open markers for a field."""
    looks = style.looks(sorted(table["n_train"].unique()), skip=1)
    faces = {TRAINED[0]: {}, TRAINED[1]: {"markerfacecolor": "white"}}
    return {
        (field, size): look | {"linestyle": style.DASHES[TRAINED.index(field)]} | faces[field]
        for size, look in looks.items()
        for field in TRAINED
    }


@style.panel
def _ratios(ax: Axes, table: pd.DataFrame, looks: dict[tuple[str, int], dict[str, Any]]) -> None:
    field = table["field"].iloc[0]
    for size, rows in table[table["step"] > 0].groupby("n_train"):
        look = looks[field, size]
        style.runs(ax, rows, "step", "ratio", "seed", look["color"])
        ax.plot(rows.groupby("step")["ratio"].median(), **look, markevery=2)
    ax.axhline(0.5, **style.GUIDE, label="1/2 (Lemma 4.4)")
    ax.set(xscale="log", yscale="log", xlabel="Adam step", title=f"field {LABELS[field]}")


@style.panel
def _kept(ax: Axes, table: pd.DataFrame, looks: dict[tuple[str, int], dict[str, Any]]) -> None:
    table = table.sort_values("step")
    lowest = table.groupby(["field", "n_train", "seed"])["ratio"].cummin()
    table = table.assign(above=lowest >= 0.5)[table["step"] > 0]
    for field in TRAINED:
        for size, rows in table[table["field"] == field].groupby("n_train"):
            share = rows.groupby("step")["above"].mean()
            label = f"$n = {size}$, {LABELS[field]}"
            ax.plot(share, **looks[field, size], markevery=2, label=label)
    ax.set(xscale="log", xlabel="Adam step", ylim=(0, 1.02), title="never below 1/2 so far")
    ax.set_ylabel("share of seeds")


def ablation(tables: Tables) -> Figure:
    """Draw test error over n for every variant of the field."""
    figure, axes = style.panels(2, height=3.6, sharey=True)
    errors = _all_seeds(tables["errors"])
    rates = _all_seeds(tables["rates"]).query("method == 'least squares'").set_index("variant")
    for ax, title, variants in (
        (axes[0], "the same widths", ("constant", "per_step", "frozen", "removed")),
        (axes[1], "as many trained weights", COMPARED),
    ):
        _variants(ax, _of(errors, variants), rates, _of(tables["final"], variants), title)
    axes[0].set_ylabel("test 0-1 error")
    _say_ablation(figure, errors, rates)
    return figure


def _say_ablation(figure: Figure, errors: pd.DataFrame, rates: pd.DataFrame) -> None:
    sample = (
        f"{style.of_runs(errors['n'])}: {style.averages(errors['n'])}, and slopes of log mean "
        f"error on log n; dots: seeds ({_no_errors()})."
    )
    found = {variant: row for variant, row in rates.iterrows() if variant in COMPARED}
    message = "Test error by the vector field."
    if len(found) == len(COMPARED):
        slopes = {variant: style.interval(*row[["slope", "low", "high"]]) for variant, row in
                  found.items()}  # fmt: skip
        faster = sum(row["high"] < BOUND for row in found.values())
        message = (
            f"With as many trained weights, {faster} of {len(found)} slopes are below -1/2: "
            f"{slopes['constant']} with the trained field, {slopes['frozen_wide']} with an "
            f"untrained one, {slopes['removed_wide']} without a residual part."
        )
    style.say(figure, message, sample)


@style.panel
def _variants(
    ax: Axes, errors: pd.DataFrame, rates: pd.DataFrame, final: pd.DataFrame, title: str
) -> None:
    variants = list(errors["variant"].unique())
    for index, variant in enumerate(variants):
        points = errors[errors["variant"] == variant]
        shift = 1.12 ** (index - (len(variants) - 1) / 2)
        _seeds(ax, final[final["variant"] == variant], LOOKS[variant]["color"], shift)
        label = f"{LABELS[variant]}: {_slope(rates.loc[variant])}"
        style.points(ax, points["n_train"] * shift, points, LOOKS[variant], FLOOR, label=label)
    _log_axes(ax, errors["n_train"].unique())
    style.legend_above(ax, f"{title}: slope")


def depth(tables: Tables) -> Figure:
    """Draw test error over the number of Euler steps, and its change in units of seed noise."""
    table, differences = tables["depths"], tables["depth_differences"]
    figure, axes = style.panels(2)
    _error_over_depth(axes[0], table, tables["depth_errors"])
    _changes_over_depth(axes[1], differences.dropna(subset="mean"))
    seeds = table["seed"].nunique()
    style.say(
        figure,
        _changes_in_words(differences.dropna(subset="mean")),
        f"{style.of_runs([seeds])} (thin); {style.averages([seeds])}; "
        f"n = {table['n_train'].iloc[0]} training points.",
    )
    return figure


def _changes_in_words(differences: pd.DataFrame) -> str:
    if differences.empty:
        return "Test error by the number of Euler steps."
    last = differences.iloc[-1]
    change = style.interval(last["mean"], last["low"], last["high"])
    inside = last["low"] > -1 and last["high"] < 1
    return (
        f"From {last['least']:.0f} to {last['depth']:.0f} Euler steps the test error changes by "
        f"{change} standard deviations of seeds, {'within' if inside else 'not within'} one."
    )


@style.panel
def _error_over_depth(ax: Axes, table: pd.DataFrame, points: pd.DataFrame) -> None:
    style.runs(ax, table, "depth", "test_error", "seed", "0.4")
    style.points(ax, points["depth"], points, LOOKS["per_step"])
    _depth_axis(ax, points["depth"])
    ax.set(ylabel="test 0-1 error", ylim=(0, None))


@style.panel
def _changes_over_depth(ax: Axes, rows: pd.DataFrame) -> None:
    bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
    ax.errorbar(rows["depth"], rows["mean"], bars, **LOOKS["per_step"], capsize=2)
    for height in (-1, 1):
        ax.axhline(height, **style.GUIDE)
    least = rows["least"].iloc[0]
    style.label_guide(ax, "one standard deviation", (1.1 * rows["depth"].min(), 1))
    _depth_axis(ax, rows["depth"])
    ax.set_ylabel(f"test error minus that at $L = {least:.0f}$,\nin standard deviations of seeds")


def _depth_axis(ax: Axes, depths: pd.Series) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(depths, [str(depth) for depth in depths])
    ax.set_xlabel("Euler steps $L$")
    ax.margins(x=0.1)


def decision_boundary(tables: Tables) -> Figure:
    """Draw the learnt regions of the constant field for a few sizes."""
    boundary, samples = tables["boundary"], tables["samples"]
    if boundary.empty:
        return style.not_run()
    sizes = sorted(boundary["n_train"].unique())
    figure, axes = style.panels(len(sizes), height=3.5, sharey=True)
    final = _of(tables["final"], ["constant"])
    final = final[final["seed"] == samples["seed"].iloc[0]].set_index("n_train")
    for ax, size in zip(axes, sizes, strict=True):
        _regions(ax, boundary[boundary["n_train"] == size], samples[samples["n_train"] == size])
        error = final.loc[size, "test_error"]
        ax.set(xlabel="$x_1$", title=f"$n = {size}$: test error {_percent(error)}")
    axes[0].set_ylabel("$x_2$")
    style.legend_below(figure, axes[:1])
    errors = final.loc[sizes, "test_error"]
    style.say(
        figure,
        f"From {sizes[0]} to {sizes[-1]} training points, the test error goes from "
        f"{_percent(errors.iloc[0])} to {_percent(errors.iloc[-1])}.",
        f"1 seed ({samples['seed'].iloc[0]}), field {LABELS['constant']}: regions of both signs of "
        "the output, and training points.",
    )
    return figure


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _regions(ax: Axes, rows: pd.DataFrame, points: pd.DataFrame) -> None:
    grid = rows.pivot(index="x2", columns="x1", values="output")
    surface = (grid.columns, grid.index, grid)
    ax.contourf(*surface, levels=[-np.inf, 0, np.inf], colors=REGIONS)
    ax.contour(*surface, levels=[0], colors="0.3", linewidths=0.6)
    for label, marker, color in ((-1, "v", MARKS[0]), (1, "o", MARKS[1])):
        arm = points[points["label"] == label]
        size = 12 if len(points) < 512 else 6
        look: dict[str, Any] = {"s": size, "marker": marker, "color": color, "edgecolors": "white"}
        ax.scatter(arm["x1"], arm["x2"], linewidths=0.3, label=f"label {label:+d}", **look)
    ax.set_aspect("equal", adjustable="box")
    ax.grid(False)


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


def _slope(row: pd.Series) -> str:
    return style.interval(row["slope"], row["low"], row["high"])


def _log_axes(ax: Axes, sizes: np.ndarray, floor: float = FLOOR) -> None:
    ax.set(yscale="log", ylim=(floor, 1.3))
    _log_sizes(ax, sizes)
    ax.yaxis.set_major_formatter("{x:g}")


def _log_sizes(ax: Axes, sizes: np.ndarray) -> None:
    ax.set(xscale="log", xlabel="training points $n$")
    ax.set_xticks(sorted(sizes), [str(int(size)) for size in sorted(sizes)], rotation=45)
    ax.tick_params(axis="x", which="minor", bottom=False)
