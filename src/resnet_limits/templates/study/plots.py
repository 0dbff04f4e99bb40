"""Tidy tables to figures: one function for each figure of study.yaml."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from resnet_limits import style


def losses(tables: style.Tables) -> Figure:
    """Draw the loss over steps and the predicted rate."""
    figure, (ax,) = style.panels()
    curves, rates = tables["losses"], tables["rates"]
    looks = style.looks(sorted(curves["curvature"].unique()))
    for curvature, look in looks.items():
        rows = curves[curves["curvature"] == curvature]
        for index, (_, member) in enumerate(rows.groupby("seed")):
            label = f"smallest curvature {curvature:g}" if index == 0 else None
            ax.plot(member["step"], member["loss"], color=look["color"], label=label)
        predicted = rates.loc[rates["curvature"] == curvature, "predicted"].iloc[0]
        start = rows.loc[rows["step"] == 0, "loss"].mean()
        steps = np.sort(rows["step"].unique())
        ax.plot(steps, start * np.exp(-predicted * steps), **style.GUIDE)
    ax.set(yscale="log", xlabel="gradient step", ylabel="loss")
    ax.legend()
    return figure
