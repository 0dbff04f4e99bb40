"""Weight smoothness, chains trained for long: run records to tidy tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.optimize import curve_fit

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import decay_columns, line_columns
from resnet_limits.studies.weight_smoothness.tables import labels, nearest

LONG = ("long_time", "long_time_depths")
DECAY = ["rate", "standard_error", "intercept", "r_squared"]


def curves(runs: Runs) -> pd.DataFrame:
    """Measurements over training; Lipschitz constants are depth times present distances."""
    every = [run for name in LONG for run in runs.get(name, [])]
    table = collect(every, ["seed"])
    for weight in ("V", "W"):
        table[f"{weight}_lipschitz"] = table["depth"] * table[f"{weight}_distance"]
    return table


def entries(runs: Runs) -> pd.DataFrame:
    """List some entries of V_k and W_k over layers, first seed."""
    return collect(runs["long_time"][:1], ["seed"], "entries")


def decay(runs: Runs) -> pd.DataFrame:
    """How the loss falls in the second half of the training, and what changes, by depth and seed.

    ``plateau`` is the limit q of the local rate (the quotient) in a fit of q + b exp(-c t) to it,
    ``plateau_share`` that over the rate at the end; ``aic_gain`` is by how much Akaike's criterion
    prefers this fit to a power law a t^(-p), under which the rate goes to 0. Both fit log rates at
    the iterations measured. ``rate`` is the slope of minus the log loss over iterations.
    ``log_relative_loss`` is the decimal logarithm of the loss at the end over that at the start.
    ``quotient_ratio``, ``V_ratio`` and ``W_ratio`` compare the end with half of the training.
    """
    table = curves(runs)
    rows = []
    for (depth, seed), group in table.groupby(["depth", "seed"], sort=False):
        curve = group.sort_values("step").set_index("step")
        last = curve.index.max()
        half = nearest(curve.index, last / 2)
        start, middle, end = (curve.loc[step] for step in (0, half, last))
        late = curve.loc[half:]
        rows.append(
            {
                "depth": depth,
                "seed": seed,
                "first_step": half,
                "last_step": last,
                **decay_columns(late.reset_index(), DECAY),
                **plateau_columns(late.index.to_numpy(float), late["quotient"].to_numpy()),
                "loss": end["loss"],
                "log_relative_loss": np.log10(end["loss"] / start["loss"]),
                "quotient": end["quotient"],
                "smallest_quotient": curve["quotient"].min(),
                "quotient_ratio": end["quotient"] / middle["quotient"],
                "V_constant": end["V_lipschitz"],
                "W_constant": end["W_lipschitz"],
                "V_ratio": end["V_lipschitz"] / middle["V_lipschitz"],
                "W_ratio": end["W_lipschitz"] / middle["W_lipschitz"],
                "diverged": curve["diverged"].any(),
                **labels(group),
            }
        )
    return pd.DataFrame(rows)


def plateau_columns(time: np.ndarray, rate: np.ndarray) -> dict[str, float]:
    """Fit rates over time by a plateau and by a power law, as columns of a table.

    NaN where a rate is not positive, there are fewer than six, or no fit is found.
    """
    names = ("plateau", "plateau_share", "aic_gain")
    if len(rate) < 6 or not (rate > 0).all():
        return dict.fromkeys(names, np.nan)
    log_rate, scaled = np.log(rate), (time - time[0]) / np.ptp(time)

    def relaxing(t: np.ndarray, plateau: float, excess: float, speed: float) -> np.ndarray:
        return np.log(np.maximum(plateau + excess * np.exp(-speed * t), 1e-300))

    guess = (rate[-1] / 2, rate[0] - rate[-1] / 2, 1.0)
    bounds = ((-np.inf, -np.inf, 0.0), (np.inf, np.inf, np.inf))
    try:
        found, _ = curve_fit(relaxing, scaled, log_rate, guess, bounds=bounds, maxfev=10_000)
    except RuntimeError:
        return dict.fromkeys(names, np.nan)
    power = np.polyfit(np.log(time), log_rate, 1)
    aic = {
        "plateau": akaike(log_rate - relaxing(scaled, *found), 3),
        "power": akaike(log_rate - np.polyval(power, np.log(time)), 2),
    }
    return {
        "plateau": float(found[0]),
        "plateau_share": float(found[0] / rate[-1]),
        "aic_gain": aic["power"] - aic["plateau"],
    }


def akaike(residuals: np.ndarray, parameters: int) -> float:
    """Return Akaike's criterion of a least-squares fit, up to a constant."""
    square = float(np.square(residuals).mean())
    return len(residuals) * math.log(square) + 2 * parameters


def depth_constants(runs: Runs) -> pd.DataFrame:
    """How the constants of long training depend on depth, by seed and constant.

    ``slope`` is that of log constant over log depth, of the seeds that were trained at three
    depths or more: 0 where it is uniform in depth. ``steepest`` marks the Lipschitz constant, of
    V or W, that grows faster.
    """
    table = decay(runs)
    constants = ["V_constant", "W_constant", "plateau", "smallest_quotient"]
    keys = ["seed", "depth", "diverged", *labels(table)]
    long = table.melt(keys, constants, var_name="constant", value_name="value")
    rows = []
    for (seed, constant), group in long.groupby(["seed", "constant"], sort=False):
        if group["depth"].nunique() > 2:
            line = line_columns(group, "depth", "value", ["slope"])
            rows.append(
                {"seed": seed, "constant": constant, "diverged": group["diverged"].any()}
                | line
                | {"deviation": abs(line["slope"]), **labels(group)}
            )
    columns = ["seed", "constant", "diverged", "slope", "deviation", "dataset"]
    found = pd.DataFrame(rows, columns=None if rows else columns)
    lipschitz = found[found["constant"].isin(["V_constant", "W_constant"])]
    steepest = lipschitz.dropna(subset="slope").groupby("seed")["slope"].idxmax()
    return found.assign(steepest=found.index.isin(steepest))


def overparametrization(runs: Runs) -> pd.DataFrame:
    """Smallest quotients over the width m, by width and seed.

    ``least_quotient`` is the Polyak-Lojasiewicz constant at the start over all targets,
    ``smallest_quotient`` the smallest on the way to the end, and ``kept`` the latter over the
    former, which the first is far below where targets are not the worst.
    """
    runs_here = runs["overparametrization"]
    table = collect(runs_here, ["seed", "width", "samples"])
    start = collect(runs_here, ["seed", "width"], "start").set_index(["seed", "width"])
    by = ["width", "samples", "seed", "depth", *labels(table)]
    found = table.groupby(by, sort=False).agg(
        smallest_quotient=("quotient", "min"),
        loss=("loss", "last"),
        diverged=("diverged", "any"),
    )
    found = found.reset_index().join(start["least_quotient"], on=["seed", "width"])
    found["width_over_samples"] = found["width"] / found["samples"]
    found["kept"] = found["smallest_quotient"] / found["least_quotient"].replace(0, np.nan)
    return found
