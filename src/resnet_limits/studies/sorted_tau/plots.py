"""Sorted tau: tidy tables to figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_limits import style
from resnet_limits.style import Tables

LABELS = {"vanilla": "vanilla", "sorted_tau": "sorted tau"}
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
    "sorted_tau": {"color": style.COLORS[2], "marker": "^", "linestyle": style.DASHES[1]},
}
PAIR: dict[str, Any] = {"marker": "|", "color": "0.5", "markersize": 4, "linestyle": "none"}


def table1(tables: Tables) -> Figure:
    """Draw Table 1: errors by row and method, ours and the paper's; and their differences."""
    table = tables["table1"]
    figure, (errors, differences) = style.panels(2, width=8.5, height=4.2, sharey=True)
    for index, row in enumerate(table.to_dict("records")):
        for shift, (method, look) in zip((-0.17, 0.17), LOOKS.items(), strict=True):
            _point(errors, row, method, index + shift, look)
            errors.plot(row[f"paper_{method}"], index + shift, **_hollow(look))
        _point(differences, row, "difference", index, LOOKS["sorted_tau"])
        differences.plot(row["paper_difference"], index, **_hollow(LOOKS["sorted_tau"]))
    _pairs(differences, tables["pairs"], list(table["network"]))
    differences.axvline(0, **style.GUIDE)
    errors.set_yticks(range(len(table)), [_label(row) for _, row in table.iterrows()], fontsize=7)
    errors.invert_yaxis()
    errors.set(xlabel="test error in %", title="error")
    errors.margins(x=0.1)
    differences.set(xlabel="points of test error", title="sorted tau minus vanilla")
    _legend(errors, table)
    return figure


def _label(row: pd.Series) -> str:
    if row["status"] == "not run":
        return f"{NETWORKS[row['network']]}\n(ours: not run)"
    failed = f", {row['diverged']:.0f} diverged" if row["diverged"] else ""
    return f"{NETWORKS[row['network']]}\n(ours: {row['epochs']:.0f} epochs{failed})"


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
        ax.plot(group["difference"], y, **PAIR)


def _hollow(look: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "marker": look["marker"],
        "color": look["color"],
        "markerfacecolor": "white",
        "linestyle": "none",
    }


def _legend(ax: Axes, table: pd.DataFrame) -> None:
    handles = []
    for method, look in LOOKS.items():
        (filled,) = ax.plot([], [], marker=look["marker"], color=look["color"], linestyle="none")
        (hollow,) = ax.plot([], [], **_hollow(look))
        handles += [(filled, f"{LABELS[method]}, ours"), (hollow, f"{LABELS[method]}, paper")]
    handles.append((ax.plot([], [], **PAIR)[0], "pairs, ours"))
    ran = table[table["status"] == "run"]
    datasets = ", ".join(ran["dataset"].unique()) or "nothing"
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
    figure, axes = plt.subplots(len(names), 2, figsize=(7.0, 2.8 * len(names)), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        rows = table[(table["network"] == name) & (table["epoch"] > 0)]
        for ax, (column, label) in zip(
            row, (("train_error", "training"), ("test_error", "test")), strict=True
        ):
            _curves(ax, rows, column)
            ax.set(ylabel=f"{label} error in %", title=NETWORKS[name])
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    for ax in axes.flat:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0][0].legend(title="mean and seeds", fontsize=7, title_fontsize=7)
    return figure


def _present(table: pd.DataFrame) -> list[str]:
    return [name for name in NETWORKS if name in set(table["network"])]


def _curves(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    for method, look in LOOKS.items():
        chosen = rows[rows["method"] == method]
        for _, run in chosen.groupby("seed"):
            ax.plot(run["epoch"], run[column], color=look["color"], alpha=0.25, linewidth=0.6)
        mean = chosen.groupby("epoch")[column].mean()
        every = max(1, len(mean) // 8)
        ax.plot(mean, **look, markevery=every, label=LABELS[method])
    ax.set_yscale("log")
    style.plain_numbers(ax)


def steps(tables: Tables) -> Figure:
    """Draw learnt steps over depth at the end, and the updates that changed the order."""
    table = tables["steps"]
    if table.empty:
        return style.not_run()
    names = _present(table)
    figure, axes = style.panels(len(names) + 1, width=3.2 * (len(names) + 1), height=3.2)
    for ax, name in zip(axes[:-1], names, strict=True):
        _steps(ax, table[table["network"] == name])
        ax.set(xlabel="index in the order of execution")
        ax.set_title(NETWORKS[name], loc="right")
    axes[0].set_ylabel(r"step $\tau^{l} - \tau^{l-1}$ at the end")
    for look, name in zip(style.looks(names).values(), names, strict=True):
        rows = table[table["network"] == name]
        counts = rows.groupby(["seed", "epoch"])["changes"].first().unstack("seed")
        axes[-1].plot(counts, color=look["color"], alpha=0.3, linewidth=0.6)
        axes[-1].plot(counts.mean(axis=1), **look, label=NETWORKS[name])
    most = max(1, table["changes"].max())
    axes[-1].set(xlabel="epoch", ylabel="updates that changed the order")
    axes[-1].set_ylim(-0.03 * most, 1.3 * most)  # room for the legend
    axes[-1].yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].legend(title="mean and seeds", loc="upper left", fontsize=7, title_fontsize=7)
    return figure


def _steps(ax: Axes, rows: pd.DataFrame) -> None:
    last = rows[rows["epoch"] == rows["epoch"].max()]
    blocks = last["place"].max()
    depth = (last["stage"] - 1) * blocks + last["place"]
    for shift, (seed, run) in zip(
        np.linspace(-0.2, 0.2, last["seed"].nunique()), last.groupby("seed"), strict=True
    ):
        x = depth[run.index] + shift
        ax.plot(x, run["size"], ".", color=style.COLORS[1], markersize=4, label=seed)
    mean = last["size"].groupby(depth).mean()
    ax.plot(mean, "_", color=style.COLORS[0], markersize=12, markeredgewidth=1.5)
    ax.axhline(1, **style.GUIDE)
    ax.set_title("every seed, mean; 1 is vanilla", loc="left", fontsize=6.5, color="0.35")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for stage in range(1, 3):
        ax.axvline(stage * blocks + 0.5, color="0.8", linewidth=1)
    for stage in range(3):
        middle = stage * blocks + (blocks + 1) / 2
        ax.text(middle, 0.98, f"stage {stage + 1}", **_top(ax))


def _top(ax: Axes) -> dict[str, Any]:
    where = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "top"}
    return {"fontsize": 6.5, "color": "0.35", **where}
