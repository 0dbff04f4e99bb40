"""Weight smoothness, the authors' own networks: tidy tables to figures."""

from __future__ import annotations

from itertools import product

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits import style
from resnet_limits.studies.weight_smoothness.image_plots import (
    ACTIVATIONS,
    CONVOLUTION_LOOKS,
    CONVOLUTIONS,
    INITS,
    legend_above,
)
from resnet_limits.style import Tables

NORMS = {True: "batch norm", False: "no batch norm"}


def published_weights(tables: Tables) -> Figure:
    """Draw the paper's Figure 3 of the authors' networks: an entry of each convolution."""
    networks = tables["published"]
    if not networks["found"].any():
        return absent()
    cells = list(product(networks["activation"].unique(), networks["batch_norm"].unique()))
    inits = list(networks["init"].unique())
    figure = plt.figure(figsize=(1.0 + 3.6 * len(inits), 0.6 + 1.9 * len(cells)))
    grid = figure.subplots(len(cells), len(inits), squeeze=False, sharex=True, sharey=True)
    named = networks.set_index(["activation", "batch_norm", "init"])
    entries = tables["published_entries"].query("entry == 0")
    for ax, ((activation, norm), init) in zip(grid.flat, product(cells, inits), strict=True):
        network = named.loc[(activation, norm, init)]
        rows = entries.query("activation == @activation and batch_norm == @norm and init == @init")
        if rows.empty:
            _absent(ax)
        else:
            _weights(ax, rows, network)
        ax.set_title(f"{ACTIVATIONS[activation]}, {INITS[init]}, {NORMS[norm]}", fontsize=7.5)
    for ax in grid[-1]:
        ax.set_xlabel("layer $k$")
    for ax in grid[:, 0]:
        ax.set_ylabel("an entry")
    legend_above(figure, grid.flat)
    return figure


def absent() -> Figure:
    """Return a figure that says that the authors' files are not at hand."""
    figure, (ax,) = style.panels(width=4.0, height=1.0)
    _absent(ax)
    return figure


def _absent(ax: Axes) -> None:
    text = "the authors' file is not under the data root"
    ax.text(0.5, 0.5, text, ha="center", fontsize=7, transform=ax.transAxes)
    ax.set_axis_off()


def _weights(ax: Axes, rows: pd.DataFrame, network: pd.Series) -> None:
    for name, look in CONVOLUTION_LOOKS.items():
        curve = rows[rows["convolution"] == name]
        line = look | {"marker": None, "linewidth": 1.1}
        ax.plot(curve["layer"], curve["value"], **line, label=CONVOLUTIONS[name])
    ratios = ", ".join(f"{network[f'ratio_{name}']:.2g}" for name in CONVOLUTIONS)
    text = f"ratios {ratios}; test accuracy {network['test_accuracy']:.1f} %"
    ax.text(0.02, 0.03, text, fontsize=6.5, transform=ax.transAxes)
