"""Sorted tau, images: tidy tables to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
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
COMPARISONS = {
    "trained steps": "trained steps\nminus vanilla",
    "sorting": "sorted tau minus\ntrained steps",
    "both": "sorted tau\nminus vanilla",
}
SEED: dict[str, Any] = {"marker": "|", "color": "0.5", "markersize": 5, "linestyle": "none"}
STAGE: dict[str, Any] = {"fontsize": 6.5, "color": "0.35", "ha": "center", "va": "top"}


def pilot(tables: Tables) -> Figure:
    """Draw order changes and training error over the time scale, and the rule's choice."""
    table = tables["pilot"]
    figure, axes = style.panels(2, width=7.5, height=3.2)
    for ax, (column, label) in zip(
        axes,
        (("changes", "updates that changed the order"), ("train_error", "training error in %")),
        strict=True,
    ):
        _over_time_scales(ax, table, column)
        ax.set(ylabel=label)
    seeds = table["seed"].nunique()
    axes[0].set_title(f"mean, and each of $n = {seeds}$ seeds", fontsize=9)
    chosen = table.loc[table["chosen"].astype(bool), "time_scale"].unique()
    choice = f"the rule chooses $T = {chosen[0]:g}$" if len(chosen) else "the rule chooses none"
    axes[1].set_title(choice, fontsize=9)
    return figure


def _over_time_scales(ax: Axes, table: pd.DataFrame, column: str) -> None:
    look = LOOKS["sorted_tau"]
    ax.plot(table["time_scale"], table[column], ".", color=look["color"], alpha=0.5)
    ax.plot(table.groupby("time_scale")[column].mean(), **look)
    for value in table.loc[table["chosen"].astype(bool), "time_scale"].unique():
        ax.axvline(value, **style.GUIDE)
    scales = sorted(table["time_scale"].unique())
    ax.set(xscale="log", xlabel="time scale $T$")
    ax.set_xticks(scales, [f"{scale:g}" for scale in scales])
    ax.set_xticks([], minor=True)
    if not table[column].any():
        ax.set_ylim(-0.03, 1)  # all are 0


def table1(tables: Tables) -> Figure:
    """Draw Table 1: errors by row and method, ours and the paper's; and their differences.

    Runs on a stand-in for the paper's data set get a panel of their own.
    """
    table, pairs = tables["table1"], tables["pairs"]
    stand_in = _stand_in(table)
    figure, axes = style.panels(2 + stand_in.any(), width=9.5, height=4.4, sharey=True)
    names = list(table["network"])
    on_paper_data = table.assign(status=table["status"].where(~stand_in, "not run"))
    for index, row in enumerate(on_paper_data.to_dict("records")):
        for shift, method in zip((-0.17, 0.17), PAIRED, strict=True):
            _point(axes[0], row, method, index + shift, LOOKS[method])
            axes[0].plot(row[f"paper_{method}"], index + shift, **_hollow(LOOKS[method]))
        _point(axes[1], row, "difference", index, LOOKS["sorted_tau"])
        axes[1].plot(row["paper_difference"], index, **_hollow(LOOKS["sorted_tau"]))
    _pairs(axes[1], pairs[~pairs["network"].isin(table.loc[stand_in, "network"])], names)
    axes[0].set(xlabel="test error in %", title="error", xlim=(0, None))
    axes[1].set(xlabel="points of test error", title="sorted tau minus vanilla")
    if stand_in.any():
        _on_stand_in(axes[2], table[stand_in], pairs, names)
    for ax in axes[1:]:
        ax.axvline(0, **style.GUIDE)
    labels = [_label(row) for _, row in table.iterrows()]
    axes[0].set_yticks(range(len(table)), labels, fontsize=7)
    axes[0].invert_yaxis()
    _legend(axes[0], on_paper_data)
    return figure


def _stand_in(table: pd.DataFrame) -> pd.Series:
    pairs = zip(table["dataset"], table["paper_dataset"], strict=True)
    is_other = [isinstance(ours, str) and not ours.startswith(paper) for ours, paper in pairs]
    return pd.Series(is_other, index=table.index, dtype=bool)


def _on_stand_in(ax: Axes, table: pd.DataFrame, pairs: pd.DataFrame, names: list[str]) -> None:
    for row in table.to_dict("records"):
        _point(ax, row, "difference", names.index(row["network"]), LOOKS["sorted_tau"])
    _pairs(ax, pairs[pairs["network"].isin(table["network"])], names)
    datasets = ", ".join(table["dataset"].unique())
    ax.set(xlabel="points of test error", title=f"the same on {datasets}, a stand-in")


def _label(row: pd.Series) -> str:
    name = NETWORKS[row["network"]]
    if row["status"] == "not run":
        return f"{name}\n(ours: not run)"
    failed = f", {row['diverged']:.0f} diverged" if row["diverged"] else ""
    return (
        f"{name}\n(ours: $n = {row['pairs']:.0f}$, {row['epochs']:.0f} epochs{failed};\n"
        f"order {_changes(row['least_changes'], row['most_changes'])})"
    )


def _changes(least: float, most: float) -> str:
    """Say how often the order changed."""
    if most == 0:
        return "never changed"
    times = f"{most:.0f}" if least == most else f"{least:.0f} to {most:.0f}"
    return f"changed {times} times"


def _point(
    ax: Axes, row: Mapping[str, Any], column: str, y: float, look: Mapping[str, Any]
) -> None:
    if row["status"] == "not run":
        return
    low, value, high = (row[f"{column}{end}"] for end in ("_low", "", "_high"))
    if np.isfinite([low, high]).all():
        ax.hlines(y, low, high, color=look["color"], linewidth=1.4)
    ax.plot(value, y, marker=look["marker"], color=look["color"], linestyle="none")


def _pairs(ax: Axes, pairs: pd.DataFrame, order: list[str]) -> None:
    for name, group in pairs.groupby("network"):
        y = np.full(len(group), order.index(str(name)) + 0.3)
        ax.plot(group["difference"], y, **SEED)


def _hollow(look: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "marker": look["marker"],
        "color": look["color"],
        "markerfacecolor": "white",
        "linestyle": "none",
    }


def _legend(ax: Axes, table: pd.DataFrame) -> None:
    handles = []
    for method in PAIRED:
        look = LOOKS[method]
        (filled,) = ax.plot([], [], marker=look["marker"], color=look["color"], linestyle="none")
        (hollow,) = ax.plot([], [], **_hollow(look))
        handles += [(filled, f"{LABELS[method]}, ours"), (hollow, f"{LABELS[method]}, paper")]
    handles.append((ax.plot([], [], **SEED)[0], "pairs, ours"))
    ran = table[table["status"] == "run"]
    datasets = ", ".join(ran["dataset"].unique()) or "not run"
    ax.figure.legend(
        *zip(*handles, strict=True),
        loc="outside upper center",
        ncols=5,
        fontsize=7,
        title=f"ours: {datasets}; paper: CIFAR-10, and CIFAR-100 for ResNeXt",
        title_fontsize=7,
    )


def curves(tables: Tables) -> Figure:
    """Draw training and test error over epochs, a row of panels a network."""
    table = tables["curves"]
    names = _present(table)
    figure, axes = plt.subplots(
        len(names), 2, figsize=(7.0, 2.9 * len(names)), squeeze=False, sharey="row"
    )
    for row, name in zip(axes, names, strict=True):
        rows = table[(table["network"] == name) & (table["epoch"] > 0)]
        title = f"{NETWORKS[name]} on {', '.join(rows['dataset'].unique())}"
        for ax, (column, label) in zip(
            row, (("train_error", "training"), ("test_error", "test")), strict=True
        ):
            _curves(ax, rows, column)
            ax.set(xlabel="epoch", ylabel=f"{label} error in %")
            ax.set_title(title, fontsize=9)
            ax.tick_params(labelleft=True)
    _label_curves(axes[0][0], table)
    return figure


def _label_curves(ax: Axes, table: pd.DataFrame) -> None:
    title = f"mean, and each of $n = {table['seed'].nunique()}$ seeds"
    ax.legend(title=title, fontsize=7, title_fontsize=7)


def _present(table: pd.DataFrame) -> list[str]:
    return [name for name in NETWORKS if name in set(table["network"])]


def _curves(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    for method, look in LOOKS.items():
        chosen = rows[rows["method"] == method]
        if chosen.empty:
            continue
        for _, run in chosen.groupby("seed"):
            ax.plot(run["epoch"], run[column], color=look["color"], alpha=0.25, linewidth=0.6)
        mean = chosen.groupby("epoch")[column].mean()
        every = max(1, len(mean) // 8)
        ax.plot(mean, **look, markevery=every, label=LABELS[method])
    ax.set_yscale("log")
    style.plain_numbers(ax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def steps(tables: Tables) -> Figure:
    """Draw learnt steps over depth at the end, and the updates that changed the order."""
    table = tables["steps"]
    if table.empty:
        return style.not_run()
    names = _present(table)
    figure, axes = style.panels(len(names) + 1, width=3.6 * (len(names) + 1), height=3.4)
    for ax, name in zip(axes[:-1], names, strict=True):
        _steps(ax, table[table["network"] == name], f"{NETWORKS[name]}, sorted tau")
    axes[0].set_ylabel("step at the end; 1 is vanilla")
    for look, name in zip(style.looks(names).values(), names, strict=True):
        _count_changes(axes[-1], table[table["network"] == name], look, NETWORKS[name])
    _say_changes(axes[-1], table)
    return figure


def _count_changes(ax: Axes, rows: pd.DataFrame, look: Mapping[str, Any], label: str) -> None:
    counts = rows.groupby(["seed", "epoch"])["changes"].first().unstack("seed")
    ax.plot(counts, color=look["color"], alpha=0.3, linewidth=0.6)
    every = max(1, len(counts) // 8)
    ax.plot(counts.mean(axis=1), **look, markevery=every, label=label)
    ax.set(xlabel="epoch", ylabel="updates that changed the order")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _say_changes(ax: Axes, rows: pd.DataFrame) -> None:
    """Say in the title how often the order changed in a run, and make room for the legend."""
    counts = rows.groupby(["network", "seed"])["changes"].max()
    ax.set_title(f"the order {_changes(counts.min(), counts.max())}", fontsize=9)
    most = max(1, counts.max())
    ax.set_ylim(-0.03 * most, 1.3 * most)
    ax.legend(title="mean and seeds", loc="upper left", fontsize=7, title_fontsize=7)


def _steps(ax: Axes, rows: pd.DataFrame, title: str) -> None:
    last = rows[rows["epoch"] == rows["epoch"].max()]
    blocks = last["index"].max()
    depth = (last["stage"] - 1) * blocks + last["index"]
    look = LOOKS[last["method"].iloc[0]]
    seeds = last["seed"].nunique()
    shifts = (np.arange(seeds) - (seeds - 1) / 2) * 0.4 / max(1, seeds - 1)
    for shift, (_, run) in zip(shifts, last.groupby("seed"), strict=True):
        ax.plot(depth[run.index] + shift, run["size"], ".", color=look["color"], markersize=4)
    mean = last["size"].groupby(depth).mean()
    ax.plot(mean, "_", color="0.2", markersize=12, markeredgewidth=1.5)
    ax.axhline(1, **style.GUIDE)
    ax.set_xlabel("index in the order of execution")
    ax.set_title(f"{title}\nmean, and each of $n = {seeds}$ seeds", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(y=0.12)
    for stage in range(1, 3):
        ax.axvline(stage * blocks + 0.5, color="0.8", linewidth=1)
    for stage in range(3):
        middle = stage * blocks + (blocks + 1) / 2
        label = f"stage {stage + 1}"
        ax.text(middle, 0.98, label, transform=ax.get_xaxis_transform(), **STAGE)


def steps_or_sorting(tables: Tables) -> Figure:
    """Draw differences of the three methods, their curves, learnt steps and order changes."""
    table, learnt = tables["method_curves"], tables["method_steps"]
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.6))
    _differences(axes[0][0], tables["comparisons"])
    rows = table[table["epoch"] > 0]
    dataset = ", ".join(table["dataset"].unique())
    for ax, (column, label) in zip(
        axes[0][1:], (("train_error", "training"), ("test_error", "test")), strict=True
    ):
        _curves(ax, rows, column)
        ax.set(xlabel="epoch", ylabel=f"{label} error in %")
        ax.set_title(f"{_networks(table)} on {dataset}", fontsize=9)
    _label_curves(axes[0][1], table)
    panels = {name: learnt[learnt["method"] == name] for name in ("steps", "sorted_tau")}
    for ax, (name, chosen) in zip(axes[1][:2], panels.items(), strict=True):
        if chosen.empty:
            style.mark_not_run(ax)
            continue
        _steps(ax, chosen, LABELS[name])
        ax.set_ylabel("step at the end; 1 is vanilla")
    if panels["sorted_tau"].empty:
        style.mark_not_run(axes[1][2])
    else:
        _count_changes(axes[1][2], panels["sorted_tau"], LOOKS["sorted_tau"], LABELS["sorted_tau"])
        _say_changes(axes[1][2], panels["sorted_tau"])
    return figure


def _networks(table: pd.DataFrame) -> str:
    return ", ".join(NETWORKS[name] for name in _present(table))


@style.panel
def _differences(ax: Axes, table: pd.DataFrame) -> None:
    summary = means(table, "comparison", "difference").set_index("comparison")
    for index, name in enumerate(COMPARISONS):
        values = table.loc[table["comparison"] == name, "difference"]
        ax.plot(values, np.full(len(values), index + 0.25), **SEED)
        row = summary.loc[name]
        if np.isfinite([row["low"], row["high"]]).all():
            ax.hlines(index, row["low"], row["high"], color=style.COLORS[2], linewidth=1.4)
        ax.plot(row["mean"], index, marker="^", color=style.COLORS[2])
    ax.axvline(0, **style.GUIDE)
    ax.set_yticks(range(len(COMPARISONS)), list(COMPARISONS.values()), fontsize=7)
    ax.set_ylim(len(COMPARISONS) - 0.5, -0.5)
    ax.set_xlabel("points of test error at the end")
    ax.set_title(f"means, 95 %, and each of $n = {table['seed'].nunique()}$ seeds", fontsize=9)


def cost(tables: Tables) -> Figure:
    """Draw seconds of a gradient over plain training's, by process, with and without sorting."""
    table = tables["cost"]
    figure, (ax,) = style.panels(width=5.5, height=3.2)
    names = _present(table)
    columns = {"steps": "steps_ratio", "sorted_tau": "ratio"}
    for shift, (method, column) in zip((-0.12, 0.12), columns.items(), strict=True):
        processes = table.groupby(["network", "seed"])[column].mean().reset_index()
        _processes(ax, processes, column, [index + shift for index in range(len(names))], method)
    ax.axhline(1, **style.GUIDE)
    ax.set_xticks(range(len(names)), [NETWORKS[name] for name in names])
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylabel("seconds of a gradient over vanilla's")
    ax.set_title(f"mean, 95 %, and each of $n = {table['seed'].nunique()}$ processes", fontsize=9)
    ax.legend(fontsize=7)
    return figure


def _processes(
    ax: Axes, table: pd.DataFrame, column: str, places: Sequence[float], method: str
) -> None:
    look = LOOKS[method]
    summary = means(table, "network", column).set_index("network").loc[_present(table)]
    for x, (name, row) in zip(places, summary.iterrows(), strict=True):
        values = table.loc[table["network"] == name, column]
        ax.plot(np.full(len(values), x + 0.05), values, ".", color=look["color"], alpha=0.4)
        if np.isfinite([row["low"], row["high"]]).all():
            ax.vlines(x, row["low"], row["high"], color=look["color"], linewidth=1.4)
    point = {"marker": look["marker"], "color": look["color"], "linestyle": "none"}
    ax.plot(places, summary["mean"], **point, label=LABELS[method])
