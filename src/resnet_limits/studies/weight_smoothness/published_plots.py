"""Weight smoothness, the authors' own networks: tidy tables to figures."""

from __future__ import annotations

from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits import style
from resnet_limits.studies.weight_smoothness.image_plots import (
    ACTIVATIONS,
    CONVOLUTION_LOOKS,
    CONVOLUTIONS,
    INITS,
)
from resnet_limits.style import Tables

ABSENT = "the authors' file is not under the data root"
NORMS = {True: "batch norm", False: "no batch norm"}


def published_weights(tables: Tables) -> Figure:
    """Draw the paper's Figure 3 of the authors' networks: an entry of each convolution."""
    networks = tables["published"]
    if not networks["found"].any():
        return style.notice(ABSENT)
    cells = list(product(networks["activation"].unique(), networks["batch_norm"].unique()))
    inits = list(networks["init"].unique())
    figure, grid = style.grid(len(cells), len(inits), 2.1, sharex=True, sharey=True)
    named = networks.set_index(["activation", "batch_norm", "init"])
    entries = tables["published_entries"].query("entry == 0")
    for ax, ((activation, norm), init) in zip(grid.flat, product(cells, inits), strict=True):
        network = named.loc[(activation, norm, init)]
        rows = entries.query("activation == @activation and batch_norm == @norm and init == @init")
        if rows.empty:
            style.mark(ax, ABSENT)
        else:
            _weights(ax, rows, network)
        ax.set_title(f"{ACTIVATIONS[activation]}, {INITS[init]}, {NORMS[norm]}")
    for ax in grid[-1]:
        ax.set_xlabel("layer $k$")
    for ax in grid[:, 0]:
        ax.set_ylabel("an entry")
    style.legend_below(figure, grid.flat)
    _say(figure, networks[networks["found"]])
    return figure


def _say(figure: Figure, networks: pd.DataFrame) -> None:
    smooth = networks["ratio"] < networks["threshold"]
    agree = (smooth == networks["paper_smooth"].astype(bool)).sum()
    style.say(
        figure,
        f"{agree} of {style.count(len(networks), 'network')} of the authors' have smooth weights, "
        "or not, as in Table 1.",
        "1 network of each kind, one random entry of each convolution.",
    )


def _weights(ax: Axes, rows: pd.DataFrame, network: pd.Series) -> None:
    for name, look in CONVOLUTION_LOOKS.items():
        curve = rows[rows["convolution"] == name]
        line = look | {"marker": None, "linewidth": 1.1}
        ax.plot(curve["layer"], curve["value"], **line, label=CONVOLUTIONS[name])
    ratios = ", ".join(f"{network[f'ratio_{name}']:.2g}" for name in CONVOLUTIONS)
    text = f"ratios {ratios}; test accuracy {network['test_accuracy']:.1f} %"
    ax.text(0.02, 0.03, text, transform=ax.transAxes)
