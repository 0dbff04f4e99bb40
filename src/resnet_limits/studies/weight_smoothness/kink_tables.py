"""Weight smoothness, chains across ReLU's kink: run records to tidy tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import line_columns
from resnet_limits.studies.weight_smoothness.tables import (
    ASYMPTOTIC,
    LINE,
    beta_of,
    is_last,
    labels,
)


def gaps(runs: Runs) -> pd.DataFrame:
    """Largest gaps over training, and the closed forms of the ReLU chain.

    ``trained_gap`` is that of the trained ReLU chain of this depth, ``limit_gap`` that of the
    infinitely deep one at this time (README.md).
    """
    run = runs["relu_counterexample"][0]
    table = collect([run], ["input", "learning_rate"])
    table["time"] = table["step"] * table["learning_rate"]
    table["trained_gap"] = relu_gap(table["depth"], table["target"] / table["input"])
    limits = {
        (time, target): relu_limit_gap(time, run.settings["input"], target)
        for time, target in set(zip(table["time"], table["target"], strict=True))
    }
    table["limit_gap"] = [limits[pair] for pair in zip(table["time"], table["target"], strict=True)]
    table["last"] = is_last(table)
    table["deepest"] = table["depth"] == table["depth"].max()
    table["closed_form_error"] = (table["gap"] / table["trained_gap"] - 1).abs()
    return table


def gap_slopes(runs: Runs) -> pd.DataFrame:
    """Slope of log gap over log depth at the last step, by activation and target.

    ``expected`` is the paper's: 0 for ReLU and -1 for smooth activations; ``deviation`` is the
    distance from it.
    """
    table = gaps(runs)
    last = table[table["last"] & (table["depth"] >= ASYMPTOTIC)]
    rows = []
    for (activation, target), group in last.groupby(["activation", "target"], sort=False):
        rows.append(
            {"activation": activation, "target": target, **labels(group)}
            | line_columns(group, "depth", "gap", LINE)
        )
    table = pd.DataFrame(rows)
    table["expected"] = table["activation"].map(lambda name: 0.0 if name == "relu" else -1.0)
    table["deviation"] = (table["slope"] - table["expected"]).abs()
    return table


def softplus_gaps(runs: Runs) -> pd.DataFrame:
    """Gaps of trained chains with softplus over its beta, by depth and target.

    ``relative`` is the gap over ReLU's of the same depth and target.
    """
    table = collect(runs["softplus_kink"], [])
    last = table[is_last(table)].copy()
    last["beta"] = last["activation"].map(beta_of)
    relu = last[last["activation"] == "relu"].set_index(["depth", "target"])["gap"]
    last = last.join(relu.rename("relu_gap"), on=["depth", "target"])
    last["relative"] = last["gap"] / last["relu_gap"]
    return last.assign(beta_over_depth=last["beta"] / last["depth"])


def softplus_onset(runs: Runs) -> pd.DataFrame:
    """Beta at which the gap is half of ReLU's, by depth and target, and its slopes over depth.

    Between the betas that were run, log beta is interpolated in the gap. ``slope`` is that of
    log beta over log depth and ``corrected_slope`` that of log(beta / log beta), the same in every
    row of a target; ``deviation`` is the latter's distance from 1.
    """
    rows = []
    for (depth, target), group in softplus_gaps(runs).groupby(["depth", "target"]):
        finite = group[np.isfinite(group["beta"])].sort_values("beta")
        low, high = finite["relative"].iloc[[0, -1]]
        log_beta = np.interp(0.5, finite["relative"], np.log(finite["beta"]))
        beta = np.exp(log_beta) if low < 0.5 < high else np.nan
        corrected = {"corrected": beta / np.log(beta)}
        rows.append({"depth": depth, "target": target, "beta": beta, **corrected, **labels(group)})
    table = pd.DataFrame(rows)
    for target, group in table.groupby("target"):
        own = table["target"] == target
        for name, value in (("slope", "beta"), ("corrected_slope", "corrected")):
            table.loc[own, name] = line_columns(group, "depth", value, ["slope"])["slope"]
    table["deviation"] = (table["corrected_slope"] - 1).abs()
    return table


def relu_gap(depth: Any, ratio: Any) -> Any:
    """Gap of the trained ReLU chain: L ((y / x)^(2 / L) - 1) + 1 / L, for ``ratio`` = y / x."""
    return depth * (ratio ** (2 / depth) - 1) + 1 / depth


def relu_limit_gap(time: float, x: float, y: float) -> float:
    """Gap of the infinitely deep ReLU chain at a time of its gradient flow.

    It is 2 log(u / x), where the output u solves du/dt = u^2 (y - u), u(0) = x, that is
    F(u) - F(x) = t with F(u) = log(u / (y - u)) / y^2 - 1 / (u y).
    """
    if time == 0:
        return 0.0

    def late(distance: float) -> float:
        """How much later than ``time`` the output is at exp(-distance) from y, relative to x."""
        left = (y - x) * np.exp(-distance)
        u = y - left
        return float((np.log(u / x) + distance) / y**2 - 1 / (u * y) + 1 / (x * y) - time)

    distance = brentq(late, 0, 1 + y**2 * time, xtol=1e-12)
    return float(2 * np.log((y - (y - x) * np.exp(-distance)) / x))
