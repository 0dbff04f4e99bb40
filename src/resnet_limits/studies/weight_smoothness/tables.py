"""Weight smoothness: run records to tidy tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import decay_columns, line_columns, means

MEASURES = ("largest", "l2", "sup")
SETTINGS = ["scaling", "seed", "limit_depth", "learning_rate"]
SERIES = ["scaling", "weight", "measure", "seed", "step"]
CURVE = ["scaling", "seed", "weight", "depth", "is_limit", "diverged", "dataset"]
LINE = ["slope", "low", "high", "intercept", "r_squared"]
DECAY = ["rate", "standard_error", "intercept", "r_squared"]
# The exponential of Eq. 7 is fixed at these fractions of the training and extrapolated to its end.
FIRST, SECOND = 0.1, 0.2


def distances(runs: Runs) -> pd.DataFrame:
    """Distances by depth, seed, weight and step, one row for each.

    ``largest`` is max over k and t <= T of ||Z_{k+1}(t) - Z_k(t)||_F, ``lipschitz`` that times
    depth; ``l2`` and ``sup`` are distances to the limit, if there is one, for other depths.
    """
    trained = runs["large_depth"] + runs["more_seeds"] + runs["paper_scaling"]
    wide = collect(trained, SETTINGS)
    wide["is_limit"] = wide["depth"] == wide.pop("limit_depth")
    keys = ["scaling", "seed", "depth", "is_limit", "step", "time", "loss", "diverged", "dataset"]
    wide["time"] = wide["step"] * wide["learning_rate"]
    frames = []
    for weight in ("V", "W"):
        columns = {f"{weight}_{measure}": measure for measure in MEASURES}
        named = wide.reindex(columns=[*keys, *columns]).rename(columns=columns)
        frames.append(named.assign(weight=weight))
    table = pd.concat(frames, ignore_index=True)
    table["lipschitz"] = table["largest"] * table["depth"]
    table.loc[table["is_limit"], ["l2", "sup"]] = np.nan
    return table


def distance_means(runs: Runs) -> pd.DataFrame:
    """Means of every measure over seeds, depths below the limit's."""
    by = ["scaling", "weight", "measure", "step", "time", "depth", "dataset"]
    return means(_measures(runs), by, "distance")


def slopes(runs: Runs) -> pd.DataFrame:
    """Slopes over depth, by seed, weight, measure and step.

    ``last`` marks the last step; ``deviation`` is the slope's distance from -1, and ``farthest``
    marks the step and weight where it is largest for that seed and measure; ``falls`` tells
    whether every greater depth has a smaller distance.
    """
    rows = [
        dict(zip(SERIES, series, strict=True)) | _slope_columns(group)
        for series, group in _measures(runs).groupby(SERIES, sort=False)
    ]
    table = pd.DataFrame(rows, columns=[*SERIES, "time", "falls", "diverged", "dataset", *LINE])
    table["last"] = _is_last(table)
    table["deviation"] = (table["slope"] + 1).abs()
    series = table.groupby(["scaling", "measure", "seed"])["deviation"]
    table["farthest"] = table["deviation"] == series.transform("max")
    return table


def slope_means(runs: Runs) -> pd.DataFrame:
    """Means of slopes and intercepts over seeds."""
    by = ["scaling", "weight", "measure", "step", "time", "dataset"]
    table = slopes(runs)
    intercepts = table.groupby(by, sort=False)["intercept"].mean().rename("intercept")
    return means(table, by, "slope").join(intercepts, on=by)


def convergence(runs: Runs) -> pd.DataFrame:
    """Compare the last time with the first, by seed, weight and distance to the limit.

    ``log_distance_ratio`` is the log of the ratio of distances at the largest depth,
    ``slope_difference`` the difference of the slopes over depth.
    """
    points = _measures(runs).query("measure != 'largest'")
    points = points[points["depth"] == points.groupby("scaling")["depth"].transform("max")]
    by = ["scaling", "weight", "measure", "seed", "depth", "dataset", "diverged"]
    ends = points.sort_values("step").groupby(by, sort=False)["distance"].agg(["first", "last"])
    lines = slopes(runs).sort_values("step").groupby(SERIES[:-1])["slope"].agg(["first", "last"])
    table = ends.assign(log_distance_ratio=np.log(ends["last"] / ends["first"])).reset_index()
    difference = (lines["last"] - lines["first"]).rename("slope_difference")
    return table.drop(columns=["first", "last"]).join(difference, on=SERIES[:-1])


def growth(runs: Runs) -> pd.DataFrame:
    """How the largest distance of neighbours grows with time, by seed, weight and depth.

    ``exponent`` is the slope of log distance over log T in the second half of the training.
    ``overshoot`` is the decimal logarithm of measured over extrapolated distance at the end, where
    beta T exp(alpha T), the form of the bound in Eq. 7, is drawn through two earlier times.
    """
    rows = []
    for keys, group in distances(runs).groupby(CURVE, sort=False):
        curve = group.set_index("step")
        time, value = curve["time"], curve["lipschitz"]
        whole, first, second = (
            _nearest(curve.index, fraction * curve.index.max()) for fraction in (0.5, FIRST, SECOND)
        )
        last = curve.index.max()
        guess = _exponential(time, value, first, second)[last]
        rows.append(
            dict(zip(CURVE, keys, strict=True))
            | {
                "exponent": np.log(value[last] / value[whole]) / np.log(time[last] / time[whole]),
                "overshoot": np.log10(value[last] / guess),
                "first_step": first,
                "second_step": second,
                "last_step": last,
            }
        )
    table = pd.DataFrame(rows)
    deepest = table[~table["is_limit"]].groupby("scaling")["depth"].max()
    table["deepest"] = table["depth"] == table["scaling"].map(deepest)
    return table


def extrapolated(runs: Runs) -> pd.DataFrame:
    """Measured and extrapolated Lipschitz constants at the largest depth, means over seeds."""
    frames = []
    table = distances(runs).query("not is_limit and step > 0")
    table = table[table["depth"] == table.groupby("scaling")["depth"].transform("max")]
    for _, group in table.groupby(CURVE, sort=False):
        curve = group.set_index("step")
        first, second = (_nearest(curve.index, f * curve.index.max()) for f in (FIRST, SECOND))
        guess = _exponential(curve["time"], curve["lipschitz"], first, second)
        frames += [
            group.assign(kind="measured"),
            group.assign(kind="exponential", lipschitz=guess.to_numpy()).query("step >= @second"),
        ]
    by = ["scaling", "weight", "depth", "kind", "step", "time", "dataset"]
    return means(pd.concat(frames), by, "lipschitz")


def curves(runs: Runs) -> pd.DataFrame:
    """Measurements over training; Lipschitz constants are depth times present distances."""
    table = collect(runs["long_time"], ["seed"])
    for weight in ("V", "W"):
        table[f"{weight}_lipschitz"] = table["depth"] * table[f"{weight}_distance"]
    return table


def entries(runs: Runs) -> pd.DataFrame:
    """List some entries of V_k and W_k over layers, first seed."""
    return collect(runs["long_time"][:1], ["seed"], "entries")


def decay(runs: Runs) -> pd.DataFrame:
    """Fit of log loss over iterations, and changes over the second half of the training, by seed.

    The fit uses evenly spaced iterations from half of the training to its end. Ratios compare the
    end with that half.
    """
    rows = []
    for run in runs["long_time"]:
        curve = curves({"long_time": [run]}).set_index("step")
        last = curve.index.max()
        half = _nearest(curve.index, last / 2)
        start, middle, end = (curve.loc[step] for step in (0, half, last))
        rows.append(
            {
                "seed": run.settings["seed"],
                "depth": run.settings["depth"],
                "first_step": half,
                "last_step": last,
                **decay_columns(curve.loc[half:].reset_index(), DECAY),
                "loss": end["loss"],
                "relative_loss": end["loss"] / start["loss"],
                "quotient": end["quotient"],
                "smallest_quotient": curve["quotient"].min(),
                "quotient_ratio": end["quotient"] / middle["quotient"],
                "V_ratio": end["V_lipschitz"] / middle["V_lipschitz"],
                "W_ratio": end["W_lipschitz"] / middle["W_lipschitz"],
                "diverged": curve["diverged"].any(),
                "dataset": end["dataset"],
            }
        )
    return pd.DataFrame(rows)


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
    table["last"] = _is_last(table)
    table["deepest"] = table["depth"] == table["depth"].max()
    table["to_closed_form"] = table["gap"] / table["trained_gap"]
    return table


def gap_slopes(runs: Runs) -> pd.DataFrame:
    """Slope of log gap over log depth at the last step, by activation and target."""
    last = gaps(runs).query("last")
    rows = []
    for (activation, target), group in last.groupby(["activation", "target"], sort=False):
        rows.append(
            {"activation": activation, "target": target, "dataset": group["dataset"].iloc[0]}
            | line_columns(group, "depth", "gap", LINE)
        )
    return pd.DataFrame(rows)


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


def _measures(runs: Runs) -> pd.DataFrame:
    """Return `distances` with one row for each measure taken, without the start and the limit."""
    table = distances(runs).query("step > 0 and not is_limit")
    keys = ["scaling", "weight", "seed", "step", "time", "depth", "diverged", "dataset"]
    long = table.melt(keys, MEASURES, var_name="measure", value_name="distance")
    return long.dropna(subset="distance")


def _slope_columns(group: pd.DataFrame) -> dict[str, Any]:
    ordered = group.sort_values("depth")
    return {
        "time": group["time"].iloc[0],
        "falls": bool((ordered["distance"].diff().iloc[1:] < 0).all()),
        "diverged": bool(group["diverged"].any()),
        "dataset": group["dataset"].iloc[0],
    } | line_columns(ordered, "depth", "distance", LINE)


def _exponential(time: pd.Series, value: pd.Series, first: int, second: int) -> pd.Series:
    """Extrapolate by beta T exp(alpha T) through the values at two steps."""
    level = np.log(value / time)
    alpha = (level[second] - level[first]) / (time[second] - time[first])
    return time * np.exp(level[first] + alpha * (time - time[first]))


def _nearest(steps: pd.Index, wanted: float) -> int:
    later = [int(step) for step in steps if step > 0]
    return min(later, key=lambda step: abs(step - wanted))


def _is_last(table: pd.DataFrame) -> pd.Series:
    return table["step"] == table["step"].max()
