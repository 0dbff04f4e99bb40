"""Tidy tables to figures: one function for each figure of study.yaml."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from resnet_limits import style


def losses(tables: style.Tables) -> Figure:
    """Draw the loss over steps and the predicted rate."""
    figure, (ax,) = style.panels()
    curves, rates = tables["losses"], tables["rates"]
    for curvature, look in style.ordered(curves["curvature"].unique()).items():
        rows = curves[curves["curvature"] == curvature]
        style.runs(ax, rows, "step", "loss", "seed", look["color"])
        label = f"smallest curvature {curvature:g}"
        ax.plot(rows.groupby("step")["loss"].mean(), **look, markevery=5, label=label)
        predicted = rates.loc[rates["curvature"] == curvature, "predicted"].iloc[0]
        start = rows.loc[rows["step"] == 0, "loss"].mean()
        steps = np.sort(rows["step"].unique())
        ax.plot(steps, start * np.exp(-predicted * steps), **style.GUIDE)
    ax.set(yscale="log", xlabel="gradient step", ylabel="loss")
    style.legend_below(figure, [ax])
    style.say(
        figure,
        f"Losses fall at {style.span(rates['ratio'])} of the rate that the smallest curvature "
        "predicts.",
        f"{style.of_runs([curves['seed'].nunique()])} (thin) and their means; dashed, predicted.",
    )
    return figure
