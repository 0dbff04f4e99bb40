"""Two Spirals in the setting of the paper's theory, and by torchdyn: run records to tidy tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import means
from resnet_limits.studies.two_spirals.tables import last_rows

MEMBER = ["particles", "n_train", "scaling", "seed"]
TINY = 1e-12  # below such a loss, rounding of the outputs shows in its derivative


def flow(runs: Runs) -> pd.DataFrame:
    """All measurements along the gradient flow.

    ``scaling`` is alpha beta; ``ratio`` the smallest eigenvalue of G2 over its limit at the start
    for many particles, Lambda; ``own_ratio`` over its own start; ``distance`` the root mean square
    distance that a particle of the field and one of the output layer have moved together, a bound
    for W2; ``divergence`` half its square, which bounds the KL divergence from below where W2 is as
    large (Talagrand's inequality).
    """
    table = collect(runs["theory"], ["particles", "alpha"])
    if table.empty:
        return table
    table["scaling"] = table["alpha"] * table["beta"]
    table["time"] = table["step"] * table["step_size"]
    table["ratio"] = table["g2_min"] / table["limit_min"]
    start = table[table["step"] == 0].set_index(MEMBER)[["loss", "g2_min"]]
    table = table.join(start.add_suffix("_start"), on=MEMBER)
    table["own_ratio"] = table["g2_min"] / table["g2_min_start"]
    table["distance"] = np.hypot(table["field_distance"], table["head_distance"])
    table["divergence"] = table["distance"] ** 2 / 2
    table["proven_rate"] = 4 * table["beta"] ** 2 * (table["limit_min"] / 2) / table["n_train"]
    return table


def descent(runs: Runs) -> pd.DataFrame:
    """Per network, what the theorems speak of: extremes over the gradient flow, and its end.

    ``smallest_*`` are the smallest ratios of `flow`; ``least_decay`` the smallest ratio, over all
    times but the start, of log(L(0) / L(t)) to c t, where L(0) exp(-c t) is the bound of Theorem
    4.7 with c = 4 beta^2 (Lambda / 2) / n; ``proven_decay`` is c times the final time;
    ``mismatch`` the largest relative difference between the two sides of Proposition 4.2.
    """
    table = flow(runs)
    if table.empty:
        return table
    groups = table.groupby(MEMBER, sort=False)
    moving = table[(table["step"] > 0) & (table["loss"] > TINY)]
    proven = moving["proven_rate"] * moving["time"]
    moving = moving.assign(decay=-np.log(moving["loss"] / moving["loss_start"]) / proven)
    table = table.assign(mismatch=(table["measured_rate"] / table["predicted_rate"] - 1).abs())
    extremes = pd.DataFrame(
        {
            "smallest_ratio": groups["ratio"].min(),
            "smallest_own_ratio": groups["own_ratio"].min(),
            "least_decay": moving.groupby(MEMBER, sort=False)["decay"].min(),
            "mismatch": table[table["loss"] > TINY].groupby(MEMBER, sort=False)["mismatch"].max(),
        }
    )
    last = last_rows(table.drop(columns="mismatch"), MEMBER)
    last["proven_decay"] = last["proven_rate"] * last["time"]
    return last.join(extremes, on=MEMBER)


def start(runs: Runs) -> pd.DataFrame:
    """Smallest eigenvalue of G2 at the start over the number of particles.

    ``ratio`` is over its limit for many particles, Lambda, and ``deviation`` its distance from 1;
    ``resolution`` is Lambda over the rounding error of an eigenvalue.
    """
    table = collect(runs["start"], ["particles"])
    if table.empty:
        return table
    table["ratio"] = table["g2_min"] / table["limit_min"]
    table["deviation"] = (table["ratio"] - 1).abs()
    rounding = np.finfo(float).eps * table["n_train"] * table["g_max"]
    table["resolution"] = table["limit_min"] / rounding
    return table


def start_means(runs: Runs) -> pd.DataFrame:
    """Mean ratio of the start's smallest eigenvalue to its limit, with its interval."""
    return means(start(runs), ["particles", "n_train", "dataset"], "ratio")


def solvers(runs: Runs) -> pd.DataFrame:
    """Losses and distances of outputs by solver, depth and seed over training.

    ``difference`` is the relative difference of the batched engine's loss from torchdyn's Euler.
    """
    table = collect(runs["solvers"], [])
    if table.empty:
        return table
    cell = ["step", "depth", "seed"]
    losses = table.pivot(index=cell, columns="solver", values="loss")
    difference = (losses["batched"] / losses["euler"] - 1).abs()
    batched = table[table["solver"] == "batched"]
    batched = batched.join(difference.rename("difference"), on=cell).reset_index(drop=True)
    return batched.assign(last=batched["step"] == batched["step"].max())


def solver_gaps(runs: Runs) -> pd.DataFrame:
    """Mean distance of Euler's from the adaptive solution by depth, at the start and the end."""
    table = solvers(runs)
    if table.empty:
        return table
    table = table[table["last"] | (table["step"] == 0)]
    return means(table, ["last", "depth", "dataset"], "to_adaptive")
