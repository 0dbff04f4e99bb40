"""Sorted tau, images: tidy tables to figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_limits import style
from resnet_limits.stats import means
from resnet_limits.style import Tables

LABELS = {"vanilla": "vanilla", "steps": "trained steps", "sorted_tau": "sorted tau"}
NETWORKS = {
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet44": "ResNet-44",
    "resnet56": "ResNet-56",
    "resnet110": "ResNet-110",
    "resnet164": "ResNet-164",
    "resnext29_8x64d": "ResNeXt-29, 8x64d",
    "resnext29_16x64d": "ResNeXt-29, 16x64d",
}
LOOKS: dict[str, dict[str, Any]] = {
    "vanilla": {"color": style.COLORS[0], "marker": "o", "linestyle": "-"},
    "steps": {"color": style.COLORS[1], "marker": "s", "linestyle": style.DASHES[2]},
    "sorted_tau": {"color": style.COLORS[2], "marker": "^", "linestyle": style.DASHES[1]},
}
PAIRED = ("vanilla", "sorted_tau")
DIFFERENCE: dict[str, Any] = {"color": style.COLORS[3], "marker": "D"}
COMPARISONS = {
    "trained steps": "trained steps\nminus vanilla",
    "sorting": "sorted tau minus\ntrained steps",
    "both": "sorted tau\nminus vanilla",
}
ERRORS = {"train_error": "training error in %", "test_error": "test error in %"}
RUN: dict[str, Any] = {"marker": "|", "markersize": 5, "linestyle": "none"}
STAGE: dict[str, Any] = {"color": "0.35", "ha": "center", "va": "top"}


def pilot(tables: Tables) -> Figure:
    """Draw order changes and training error over the time scale, and the rule's choice."""
    table = tables["pilot"]
    figure, axes = style.panels(2)
    labels = {"changes": "updates that changed the order", "train_error": ERRORS["train_error"]}
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        _over_time_scales(ax, table, column)
        ax.set_ylabel(label)
    chosen = table.loc[table["chosen"].astype(bool), "time_scale"].unique()
    choice = f"the rule chooses the time scale {chosen[0]:g}" if len(chosen) else (
        "the rule chooses no time scale"
    )  # fmt: skip
    runs, changed = len(table), (table["changes"] > 0).sum()
    style.say(
        figure,
        f"The order of blocks changed in {changed} of {style.count(runs, 'run')}; {choice}.",
        f"{style.of_runs([table['seed'].nunique()])} (thin) and their mean; "
        f"{_networks(table)}; dashed, the choice.",
    )
    return figure


def _over_time_scales(ax: Axes, table: pd.DataFrame, column: str) -> None:
    look = LOOKS["sorted_tau"]
    style.runs(ax, table, "time_scale", column, "seed", look["color"], marker=".")
    ax.plot(table.groupby("time_scale")[column].mean(), **look)
    for value in table.loc[table["chosen"].astype(bool), "time_scale"].unique():
        ax.axvline(value, **style.GUIDE)
    scales = sorted(table["time_scale"].unique())
    ax.set(xscale="log", xlabel="time scale $T$")
    ax.set_xticks(scales, [f"{scale:g}" for scale in scales])
    ax.set_xticks([], minor=True)
    ax.set_ylim(0, max(1, 1.1 * table[column].max()))


def table1(tables: Tables) -> Figure:
    """Draw Table 1: errors by row and method, ours and the paper's; and their differences.

    Runs on a stand-in for the paper's data set get panels of their own, without the paper.
    """
    table, pairs = tables["table1"], tables["pairs"]
    trained = table[table["status"] == "run"]
    stand_in = _stand_in(trained)
    groups = [rows for rows in (trained[~stand_in], trained[stand_in]) if len(rows)]
    if not groups:
        return style.not_run()
    height = 0.8 + 0.55 * max(len(rows) for rows in groups)
    figure, axes = style.grid(len(groups), 2, height)
    for row, rows in zip(axes, groups, strict=True):
        of = pairs[pairs["network"].isin(rows["network"])]
        _rows_of_table1(row, rows, of, bool(_stand_in(rows).any()))
    style.legend_below(figure, axes.flat, columns=6)
    style.say(figure, _wins(pairs), _sample_of_table1(table, pairs))
    return figure


def _wins(pairs: pd.DataFrame) -> str:
    """Say in how many pairs sorted tau wins, and in how many it did anything."""
    average = means(pairs.assign(all=0), "all", "difference").iloc[0]
    changed = (pairs["changes"] > 0).sum()
    return (
        f"Sorted tau has the lower test error in {(pairs['difference'] < 0).sum()} of "
        f"{style.count(len(pairs), 'pair')}, on average by "
        f"{style.interval(*-average[['mean', 'high', 'low']])} points; the order of blocks changed "
        f"in {style.count(changed, 'run')}."
    )


def _sample_of_table1(table: pd.DataFrame, pairs: pd.DataFrame) -> str:
    left = [NETWORKS[name] for name in table.loc[table["status"] == "not run", "network"]]
    absent = f" Not trained: {', '.join(left)}." if left else ""
    numbers = pairs.groupby("network").size()
    return f"{style.of_runs(numbers)} a network: {style.averages(numbers)}; ticks, runs.{absent}"


def _stand_in(table: pd.DataFrame) -> pd.Series:
    pairs = zip(table["dataset"], table["paper_dataset"], strict=True)
    is_other = [not str(ours).startswith(paper) for ours, paper in pairs]
    return pd.Series(is_other, index=table.index, dtype=bool)


def _rows_of_table1(
    axes: np.ndarray, table: pd.DataFrame, pairs: pd.DataFrame, stand_in: bool
) -> None:
    """Draw the errors and differences of some networks, beside the paper's unless a stand-in."""
    places = {name: index for index, name in enumerate(table["network"])}
    shifts = {"vanilla": -0.15, "sorted_tau": 0.15, "difference": 0.0}
    looks = {method: LOOKS[method] for method in PAIRED} | {"difference": DIFFERENCE}
    for column, shift in shifts.items():
        ax = axes[1] if column == "difference" else axes[0]
        look = {key: looks[column][key] for key in ("color", "marker")} | {"linestyle": "none"}
        label = LABELS.get(column, column)
        y = table["network"].map(places) + shift
        bars = _bars(table, column)
        ax.errorbar(table[column], y, xerr=bars, capsize=2, **look, label=f"{label}, ours")
        runs = pairs["network"].map(places) + shift + 0.12
        ax.plot(pairs[column], runs, **RUN, color=look["color"], alpha=0.7)
        if not stand_in:
            hollow = look | {"markerfacecolor": "white"}
            ax.plot(table[f"paper_{column}"], y - 0.12, **hollow, label=f"{label}, paper")
    for ax in axes:
        ax.set_ylim(len(table) - 0.5, -0.5)
        ax.set_yticks(range(len(table)), [_label(row) for _, row in table.iterrows()])
        ax.set_title(_on(table, stand_in))
        ax.margins(x=0.08)
    axes[1].tick_params(labelleft=False)
    axes[1].axvline(0, **style.GUIDE)
    axes[0].set_xlim(left=max(0, axes[0].get_xlim()[0]))
    axes[0].set_xlabel(ERRORS["test_error"])
    axes[1].set_xlabel("sorted tau minus vanilla, in points of test error")


def _on(table: pd.DataFrame, stand_in: bool) -> str:
    """Say which data sets ours and the paper's numbers are of."""
    ours, theirs = (
        ", ".join(map(style.dataset, table[column].unique()))
        for column in ("dataset", "paper_dataset")
    )
    return f"ours on {ours}, a stand-in" if stand_in else f"ours on {ours}; paper on {theirs}"


def _bars(table: pd.DataFrame, column: str) -> np.ndarray:
    low, high = table[f"{column}_low"], table[f"{column}_high"]
    return np.array([table[column] - low, high - table[column]])


def _label(row: pd.Series) -> str:
    failed = f", {row['diverged']:.0f} diverged" if row["diverged"] else ""
    return (
        f"{NETWORKS[row['network']]}\n{row['epochs']:.0f} epochs{failed}\n"
        f"order {_changes(row['least_changes'], row['most_changes'])}"
    )


def _changes(least: float, most: float) -> str:
    """Say how often the order changed."""
    if most == 0:
        return "never changed"
    times = f"{most:.0f}" if least == most else f"{least:.0f} to {most:.0f}"
    return f"changed {times} times"


def curves(tables: Tables) -> Figure:
    """Draw training and test error over epochs, two panels a network."""
    table = tables["curves"]
    names = _present(table)
    abreast = min(2, len(names))
    figure, axes = style.grid(-(-len(names) // abreast), 2 * abreast, sharey=True)
    for ax in axes.flat[2 * len(names) :]:
        ax.set_axis_off()
    for index, name in enumerate(names):
        rows = table[(table["network"] == name) & (table["epoch"] > 0)]
        for ax, (column, label) in zip(axes.flat[2 * index :], ERRORS.items(), strict=False):
            _curves(ax, rows, column)
            ax.set_title(f"{NETWORKS[name]}, {label.removesuffix(' in %')}")
    for ax in axes[:, 0]:
        ax.set_ylabel("error in %")
    style.legend_below(figure, axes.flat[:2])
    style.say(
        figure,
        f"Test error at the end: {_ends(table)}.",
        f"{style.of_runs([table['seed'].nunique()])} (thin) and their means.",
    )
    return figure


def _ends(table: pd.DataFrame) -> str:
    """Say each network's mean test error at the end, by method."""
    run = ["network", "method", "seed"]
    last = table[table["epoch"] == table.groupby(run)["epoch"].transform("max")]
    ends = last.groupby(["network", "method"])["test_error"].mean()
    parts = []
    for name in _present(table):
        found = [f"{ends[name, m]:.2f} % {LABELS[m]}" for m in LABELS if (name, m) in ends.index]
        parts.append(f"{NETWORKS[name]} {', '.join(found)}")
    return "; ".join(parts)


def _present(table: pd.DataFrame) -> list[str]:
    return [name for name in NETWORKS if name in set(table["network"])]


def _networks(table: pd.DataFrame) -> str:
    return ", ".join(NETWORKS[name] for name in _present(table))


def _curves(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    for method, look in LOOKS.items():
        chosen = rows[rows["method"] == method]
        if chosen.empty:
            continue
        style.runs(ax, chosen, "epoch", column, "seed", look["color"])
        mean = chosen.groupby("epoch")[column].mean()
        every = max(1, len(mean) // 8)
        ax.plot(mean, **look, markevery=every, label=LABELS[method])
    ax.set_yscale("log")
    style.plain_numbers(ax)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlabel("epoch")


def steps(tables: Tables) -> Figure:
    """Draw learnt steps over depth at the end, and the updates that changed the order."""
    table = tables["steps"]
    if table.empty:
        return style.not_run()
    names = _present(table)
    columns = min(3, len(names) + 1)
    figure, axes = style.grid(-(-(len(names) + 1) // columns), columns)
    panels = list(axes.flat)
    for ax in panels[len(names) + 1 :]:
        ax.set_axis_off()
    for ax, name in zip(panels, names, strict=False):
        _steps(ax, table[table["network"] == name], NETWORKS[name])
    last = panels[len(names)]
    for look, name in zip(style.shades(range(len(names))).values(), names, strict=True):
        _count_changes(last, table[table["network"] == name], look, NETWORKS[name])
    last.legend(loc="upper left")
    style.say(
        figure,
        _order(table),
        f"{style.of_runs([table['seed'].nunique()])}: dots and thin lines; bars and thick lines "
        "are means. Sorted tau.",
    )
    return figure


def _order(rows: pd.DataFrame) -> str:
    """Say how often the order of blocks changed."""
    if rows.empty:
        return "Sorted tau was not run."
    ends = rows.groupby(["network", "seed"])[["changes", "step"]].max()
    changed, updates = ends["changes"].sum(), ends["step"].sum()
    runs = f"{(ends['changes'] > 0).sum()} of {style.count(len(ends), 'run')}"
    so = ", so sorting did nothing" if changed == 0 else ""
    return (
        f"The order of blocks changed in {changed:,.0f} of {updates:,.0f} updates, in {runs}{so}."
    )


def _count_changes(ax: Axes, rows: pd.DataFrame, look: Mapping[str, Any], label: str) -> None:
    style.runs(ax, rows.drop_duplicates(["seed", "epoch"]), "epoch", "changes", "seed",
               look["color"])  # fmt: skip
    mean = rows.groupby("epoch")["changes"].mean()
    ax.plot(mean, **look, markevery=max(1, len(mean) // 8), label=label)
    ax.set(xlabel="epoch", ylabel="updates that changed the order")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_ylim(0, 1.3 * max(1, rows["changes"].max(), ax.get_ylim()[1] / 1.3))


def _steps(ax: Axes, rows: pd.DataFrame, title: str) -> None:
    last = rows[rows["epoch"] == rows["epoch"].max()]
    blocks = last["index"].max()
    depth = (last["stage"] - 1) * blocks + last["index"]
    look = LOOKS[last["method"].iloc[0]]
    seeds = last["seed"].nunique()
    shifts = (np.arange(seeds) - (seeds - 1) / 2) * 0.5 / max(1, seeds - 1)
    for shift, (_, run) in zip(shifts, last.groupby("seed"), strict=True):
        ax.plot(depth[run.index] + shift, run["size"], ".", color=look["color"], markersize=4)
    mean = last["size"].groupby(depth).mean()
    ax.plot(mean, "_", color="0.2", markersize=10, markeredgewidth=1.5)
    ax.axhline(1, **style.GUIDE)
    ax.set(xlabel="index in the order of execution", ylabel="step at the end; 1 is vanilla")
    ax.set_title(title)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(y=0.15)
    for stage in range(1, 3):
        ax.axvline(stage * blocks + 0.5, color="0.8", linewidth=1)
    for stage in range(3):
        middle = stage * blocks + (blocks + 1) / 2
        label = f"stage {stage + 1}"
        ax.text(middle, 0.99, label, transform=ax.get_xaxis_transform(), **STAGE)


def steps_or_sorting(tables: Tables) -> Figure:
    """Draw differences of the three methods, their curves, learnt steps and order changes."""
    table, learnt = tables["method_curves"], tables["method_steps"]
    figure, axes = style.grid(2, 3)
    differences = tables["comparisons"]
    _differences(axes[0][0], differences)
    rows = table[table["epoch"] > 0]
    for ax, (column, label) in zip(axes[0][1:], ERRORS.items(), strict=True):
        _curves(ax, rows, column)
        ax.set_ylabel(label)
    style.legend_below(figure, axes[0][1:])
    panels = {name: learnt[learnt["method"] == name] for name in ("steps", "sorted_tau")}
    for ax, (name, chosen) in zip(axes[1][:2], panels.items(), strict=True):
        _learnt(ax, chosen, LABELS[name])
    _changes_of(axes[1][2], panels["sorted_tau"])
    seeds = table["seed"].nunique()
    style.say(
        figure,
        f"{_compared(differences)} {_order(panels['sorted_tau'])}",
        f"{style.of_runs([seeds])} (ticks, thin lines, dots) and their means; of differences, "
        f"{style.averages([seeds])}; {_networks(table)}.",
    )
    return figure


_learnt = style.panel(_steps)


@style.panel
def _changes_of(ax: Axes, rows: pd.DataFrame) -> None:
    _count_changes(ax, rows, LOOKS["sorted_tau"], LABELS["sorted_tau"])


def _compared(table: pd.DataFrame) -> str:
    if table.empty:
        return "No seed has all three methods."
    summary = means(table, "comparison", "difference").set_index("comparison")
    found = {
        name: style.interval(*summary.loc[name, ["mean", "low", "high"]]) for name in COMPARISONS
    }
    return (
        f"Trained steps change the test error by {found['trained steps']} points, sorting by "
        f"{found['sorting']} more."
    )


@style.panel
def _differences(ax: Axes, table: pd.DataFrame) -> None:
    summary = means(table, "comparison", "difference").set_index("comparison")
    for index, name in enumerate(COMPARISONS):
        values = table.loc[table["comparison"] == name, "difference"]
        row = summary.loc[[name]]
        bars = np.array([row["mean"] - row["low"], row["high"] - row["mean"]])
        ax.errorbar(row["mean"], index, xerr=bars, capsize=2, **DIFFERENCE)
        ax.plot(values, np.full(len(values), index + 0.2), **RUN, color=DIFFERENCE["color"])
    ax.axvline(0, **style.GUIDE)
    ax.set_yticks(range(len(COMPARISONS)), list(COMPARISONS.values()))
    ax.set_ylim(len(COMPARISONS) - 0.5, -0.5)
    ax.set_xlabel("points of test error at the end")


def cost(tables: Tables) -> Figure:
    """Draw seconds of a gradient over plain training's, by process, with and without sorting."""
    table = tables["cost"]
    names = _present(table)
    figure, (ax,) = style.panels(height=0.7 + 0.5 * len(names))
    columns = {"steps": "steps_ratio", "sorted_tau": "ratio"}
    words = []
    for shift, (method, column) in zip((-0.15, 0.15), columns.items(), strict=True):
        averages = table.groupby(["network", "seed"])[column].mean().reset_index()
        summary = means(averages, "network", column).set_index("network").loc[names]
        _processes(ax, averages, summary.rename_axis(column), method, shift)
        if method == "sorted_tau":
            words = [
                f"{style.interval(*summary.loc[name, ['mean', 'low', 'high']])} with "
                f"{NETWORKS[name]}"
                for name in names
            ]
    ax.axvline(1, **style.GUIDE)
    ax.set_yticks(range(len(names)), [NETWORKS[name] for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("processor time of a gradient over vanilla's")
    style.legend_below(figure, [ax])
    processes = table["seed"].nunique()
    style.say(
        figure,
        f"A gradient of sorted tau takes {', '.join(words)} times that of plain training.",
        f"{style.count(processes, 'process', 'processes')} (ticks): {style.averages([processes])}.",
    )
    return figure


def _processes(
    ax: Axes, table: pd.DataFrame, summary: pd.DataFrame, method: str, shift: float
) -> None:
    look = {key: LOOKS[method][key] for key in ("color", "marker")}
    places = {name: index + shift for index, name in enumerate(summary.index)}
    bars = np.array([summary["mean"] - summary["low"], summary["high"] - summary["mean"]])
    ax.errorbar(summary["mean"], list(places.values()), xerr=bars, capsize=2, linestyle="none",
                label=LABELS[method], **look)  # fmt: skip
    runs = table["network"].map(places) + 0.1
    ax.plot(table[summary.index.name], runs, **RUN, color=look["color"])
