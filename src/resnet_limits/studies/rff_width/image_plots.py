"""Finite and infinite width, images: tidy tables to figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resnet_limits import style
from resnet_limits.style import Tables

MODELS: dict[str, dict[str, Any]] = {
    "rkhs": {"linestyle": "-", "marker": "o"},
    "shl": {"linestyle": style.DASHES[1], "marker": "^"},
}
LABELS = {"rkhs": "RKHS", "shl": "SHL"}
ROWS = {"train_loss": "training loss", "test_error": "test error in %"}


def mnist_layers(tables: Tables) -> Figure:
    """Draw training loss and test error of both models, by layers and pretraining."""
    table = tables["mnist_curves"]
    table = table[table["channels"] == table["channels"].max()]
    return _grid(_panels(table, ["pretraining"], _pretraining), "layers")


def mnist_channels(tables: Tables) -> Figure:
    """Draw training loss and test error of RKHS residuals by channels."""
    table = tables["mnist_curves"]
    few = table[table["channels"] < table["channels"].max()]
    # The network of most channels is one of those of the other experiment.
    same = ["model", "layers", "pretraining"]
    table = table.merge(few[same].drop_duplicates(), on=same)

    def title(model: str, layers: int, pretraining: int) -> str:
        return f"{LABELS[model]}, {layers} layers, {_pretraining(pretraining)}"

    return _grid(_panels(table, same, title), "channels")


def cifar(tables: Tables) -> Figure:
    """Draw training loss and test error of both models, by blocks of the third stage."""

    def title(width: int) -> str:
        return f"stages of {width} to {8 * width} channels"

    return _grid(
        _panels(tables["cifar_curves"].rename(columns={"layers": "blocks"}), ["width"], title),
        "blocks",
    )


def _panels(
    table: pd.DataFrame, by: list[str], title: Callable[..., str]
) -> dict[str, pd.DataFrame]:
    groups: Any = table.groupby(by)
    return {title(*key): rows for key, rows in groups}


def _pretraining(epochs: int) -> str:
    plural = "" if epochs == 1 else "s"
    return f"{epochs} epoch{plural} of pretraining" if epochs else "no pretraining"


def _grid(panels: dict[str, pd.DataFrame], lines: str) -> Figure:
    """Draw a column of panels for each group, a line for each value of a column and model."""
    if not panels:
        return style.not_run()
    count = len(panels)
    figure, axes = plt.subplots(
        2, count, figsize=(2.3 + 2.9 * count, 5.0), squeeze=False, sharex="col", sharey="row"
    )
    looks = _looks(pd.concat(panels.values()), lines)
    for column, (title, rows) in zip(axes.T, panels.items(), strict=True):
        for ax, measure in zip(column, ROWS, strict=True):
            groups: Any = rows.groupby([lines, "model"])
            for key, group in groups:
                _line(ax, group, measure, looks[key])
            ax.set_yscale("log")
            style.plain_numbers(ax)
        column[0].set_title(title)
        column[1].set_xlabel("epoch")
        column[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax, label in zip(axes[:, 0], ROWS.values(), strict=True):
        ax.set_ylabel(label)
    _legend(figure, looks, lines)
    return figure


def _looks(table: pd.DataFrame, lines: str) -> dict[tuple[Any, str], dict[str, Any]]:
    """Return colours by value, and markers by model or, where there is one model, by value."""
    models = [name for name in MODELS if name in set(table["model"])]
    by_value = style.looks(sorted(table[lines].unique()))
    return {
        (value, model): {**(MODELS[model] if len(models) > 1 else by_value[value]), "color": color}
        for value, color in style.ordered(table[lines]).items()
        for model in models
    }


def _line(ax: Axes, group: pd.DataFrame, measure: str, look: dict[str, Any]) -> None:
    """Draw the mean over seeds, and a band from the least to the largest."""
    spread = group.groupby("epoch")[measure].agg(["mean", "min", "max"]).dropna()
    every = max(1, len(spread) // 8)
    ax.plot(spread["mean"], markevery=every, markersize=3.5, linewidth=1.2, **look)
    color = look["color"]
    ax.fill_between(spread.index, spread["min"], spread["max"], color=color, alpha=0.15, lw=0)


def _legend(figure: Figure, looks: dict[tuple[Any, str], dict[str, Any]], lines: str) -> None:
    unit = lines.removesuffix("s")
    handles = [
        Line2D([], [], label=f"{LABELS[model]}, {value} {unit if value == 1 else lines}", **look)
        for (value, model), look in looks.items()
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=7)
