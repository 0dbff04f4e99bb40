"""Weight smoothness, chains over depth: run records to tidy tables."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import line_columns, means

WEIGHTS = ("V", "W")
MEASURES = {
    "V": ("largest", "present", "l2", "sup"),
    "W": ("largest", "present", "l2", "sup"),
    "h": ("states", "output", "ode"),
}
TO_LIMIT = ("l2", "sup", "states", "output", "ode")
SETTINGS = ["scaling", "seed", "limit_depth", "learning_rate"]
SERIES = ["scaling", "weight", "measure", "seed", "step"]
CURVE = ["scaling", "seed", "weight", "depth", "is_limit", "diverged"]
LINE = ["slope", "low", "high", "intercept", "r_squared"]
# Slopes are fitted from this depth on: the theorems are about large depths.
ASYMPTOTIC = 16
# Convergence at the last time is compared with that of this iteration: rounding of float32 shows
# in earlier ones.
EARLY = 20
# What runs say of their data and protocol, the same for all of an experiment at one scale.
LABELS = ("dataset", "protocol", "departures")
# The exponential of Eq. 7 is fixed at these fractions of the training and extrapolated to its end.
FIRST, SECOND = 0.1, 0.2


def labels(rows: pd.DataFrame) -> dict[str, str]:
    """Return what a table says of its rows' data and protocol, for a row made of them."""
    return {name: rows[name].iloc[0] for name in LABELS if name in rows and len(rows)}


def distances(runs: Runs) -> pd.DataFrame:
    """Distances by depth, seed, weight and step, one row for each.

    Of the weights V and W: ``largest`` is max over k and t <= T of ||Z_{k+1}(t) - Z_k(t)||_F,
    ``present`` that at t = T, ``lipschitz`` is depth times ``largest``; ``l2`` and ``sup`` are
    distances to the limit. Of the hidden states, whose weight is called h: distances ``states``
    and ``output`` to the limit's, and ``ode``, that of the output of so many layers with the
    limit's weights. The limit has none to itself.
    """
    wide = collect(runs["large_depth"] + runs["paper_scaling"], SETTINGS)
    wide["is_limit"] = wide["depth"] == wide.pop("limit_depth")
    wide["time"] = wide["step"] * wide["learning_rate"]
    keys = ["scaling", "seed", "depth", "is_limit", "step", "time", "loss", "diverged"]
    keys += list(labels(wide))
    frames = []
    for weight, measures in MEASURES.items():
        columns = {f"{weight}_{name}" if weight in WEIGHTS else name: name for name in measures}
        named = wide.reindex(columns=[*keys, *columns]).rename(columns=columns)
        frames.append(named.assign(weight=weight))
    table = pd.concat(frames, ignore_index=True)
    table["lipschitz"] = table["largest"] * table["depth"]
    table.loc[table["is_limit"], list(TO_LIMIT)] = np.nan
    return table


def distance_means(runs: Runs) -> pd.DataFrame:
    """Means of every measure over seeds, depths below the limit's."""
    table = _measures(runs)
    by = ["scaling", "weight", "measure", "step", "time", "depth", *labels(table)]
    return means(table, by, "distance").assign(fitted=lambda rows: rows["depth"] >= ASYMPTOTIC)


def slopes(runs: Runs) -> pd.DataFrame:
    """Slopes over depths from `ASYMPTOTIC` on, by seed, weight, measure and step.

    ``last`` marks the last step; ``deviation`` is the slope's distance from -1, and ``farthest``
    marks the step and weight where it is largest for that seed and measure. ``doubling`` is the
    largest ratio of the distance at a depth to that at the next smaller one, and ``slowest`` marks
    the step from `EARLY` on where it is largest; of weights, among both and both norms.
    """
    rows = [
        dict(zip(SERIES, series, strict=True)) | _slope_columns(group)
        for series, group in _measures(runs).groupby(SERIES, sort=False)
    ]
    table = pd.DataFrame(rows)
    if table.empty:  # nothing is left of runs that diverged at once
        marks = ["falls", "doubling", "last", "deviation", "farthest", "slowest"]
        return pd.DataFrame(columns=[*SERIES, "time", "dataset", *LINE, *marks])
    table["last"] = is_last(table)
    table["deviation"] = (table["slope"] + 1).abs()
    series = table.groupby(["scaling", "measure", "seed"])["deviation"]
    table["farthest"] = table["deviation"] == series.transform("max")
    late = table[table["step"] >= EARLY].dropna(subset="doubling")
    kind = late["measure"].replace({"l2": "weights", "sup": "weights"})
    largest = late.groupby(["scaling", kind, "seed"])["doubling"].idxmax()
    table["slowest"] = table.index.isin(largest)
    return table


def slope_means(runs: Runs) -> pd.DataFrame:
    """Means of slopes and intercepts over seeds."""
    table = slopes(runs)
    by = ["scaling", "weight", "measure", "step", "time", *labels(table)]
    intercepts = table.groupby(by, sort=False)["intercept"].mean().rename("intercept")
    return means(table, by, "slope").join(intercepts, on=by)


def convergence(runs: Runs) -> pd.DataFrame:
    """Compare the last time with iteration `EARLY`, by seed, weight and distance to the limit.

    ``log_distance_ratio`` is the log of the ratio of distances at the largest depth,
    ``slope_difference`` the difference of the slopes over depth.
    """
    by = ["scaling", "weight", "measure", "seed"]
    points = _measures(runs)
    points = points[(points["step"] >= EARLY) & points["measure"].isin(TO_LIMIT)]
    points = points[points["depth"] == points.groupby("scaling")["depth"].transform("max")]
    kept = [*by, "depth", "diverged", *labels(points)]
    ends = points.sort_values("step").groupby(kept, sort=False)["distance"].agg(["first", "last"])
    lines = slopes(runs).sort_values("step")
    lines = lines[lines["step"] >= EARLY].groupby(by)["slope"].agg(["first", "last"])
    table = ends.assign(log_distance_ratio=np.log(ends["last"] / ends["first"])).reset_index()
    difference = (lines["last"] - lines["first"]).rename("slope_difference")
    return table.drop(columns=["first", "last"]).join(difference, on=by)


def growth(runs: Runs) -> pd.DataFrame:
    """How the largest distance of neighbours grows with time, by seed, weight and depth.

    ``exponent`` is the slope of the present distance, which may fall, over T on log axes in the
    second half of the training. ``overshoot`` is the decimal logarithm of measured over
    extrapolated distance at the end, where beta T exp(alpha T), the form of the bound in Eq. 7,
    is drawn through two earlier times.
    """
    rows = []
    for keys, group in _of_weights(runs).groupby(CURVE, sort=False):
        curve = group.set_index("step")
        time, value, present = curve["time"], curve["lipschitz"], curve["present"]
        half, first, second = (
            nearest(curve.index, fraction * curve.index.max()) for fraction in (0.5, FIRST, SECOND)
        )
        last = curve.index.max()
        guess = _exponential(time, value, first, second)[last]
        rows.append(
            dict(zip(CURVE, keys, strict=True))
            | {
                "exponent": np.log(present[last] / present[half]) / np.log(time[last] / time[half]),
                "overshoot": np.log10(value[last] / guess),
                "first_step": first,
                "second_step": second,
                "last_step": last,
                **labels(group),
            }
        )
    table = pd.DataFrame(rows)
    deepest = table[~table["is_limit"]].groupby("scaling")["depth"].max()
    table["deepest"] = table["depth"] == table["scaling"].map(deepest)
    return table


def extrapolated(runs: Runs) -> pd.DataFrame:
    """Measured and extrapolated Lipschitz constants at the largest depth, means over seeds."""
    frames = []
    table = _of_weights(runs).query("not is_limit and step > 0")
    table = table[table["depth"] == table.groupby("scaling")["depth"].transform("max")]
    for _, group in table.groupby(CURVE, sort=False):
        curve = group.set_index("step")
        first, second = (nearest(curve.index, f * curve.index.max()) for f in (FIRST, SECOND))
        guess = _exponential(curve["time"], curve["lipschitz"], first, second)
        frames += [
            group.assign(kind="measured"),
            group.assign(kind="exponential", lipschitz=guess.to_numpy()).query("step >= @second"),
        ]
    by = ["scaling", "weight", "depth", "kind", "step", "time", *labels(table)]
    return means(pd.concat(frames), by, "lipschitz")


def softplus_slopes(runs: Runs) -> pd.DataFrame:
    """How neighbours' distances at the end fall with depth, by activation, seed and weight.

    ``beta`` is the softplus's; ReLU is that of an infinite one.
    """
    wide = collect(runs["softplus"], ["activation", "seed"])
    table = wide[wide["step"] == wide["step"].max()]
    rows = []
    for (activation, seed), group in table.groupby(["activation", "seed"], sort=False):
        for weight in WEIGHTS:
            rows.append(
                {
                    "activation": activation,
                    "beta": beta_of(activation),
                    "seed": seed,
                    "weight": weight,
                    "diverged": group["diverged"].any(),
                    **labels(group),
                }
                | line_columns(_deep(group), "depth", f"{weight}_present", LINE)
            )
    return pd.DataFrame(rows)


def softplus_distances(runs: Runs) -> pd.DataFrame:
    """Distances of neighbours at the end, by activation, weight, depth and seed."""
    wide = collect(runs["softplus"], ["activation", "seed"])
    table = wide[wide["step"] == wide["step"].max()]
    columns = {f"{weight}_present": weight for weight in WEIGHTS}
    by = ["activation", "depth", "seed", *labels(table)]
    long = table.rename(columns=columns).melt(by, list(WEIGHTS), "weight", "distance")
    return long.assign(beta=long["activation"].map(beta_of))


def beta_of(activation: str) -> float:
    """Return beta of a softplus; infinity of ReLU, its limit; not a number of others."""
    if activation == "relu":
        return np.inf
    return float(activation.removeprefix("softplus")) if "softplus" in activation else np.nan


def _measures(runs: Runs) -> pd.DataFrame:
    """Return `distances` with one row for each measure taken, without the start and the limit."""
    table = distances(runs).query("step > 0 and not is_limit")
    keys = ["scaling", "weight", "seed", "step", "time", "depth", "diverged", *labels(table)]
    measures = dict.fromkeys(itertools.chain(*MEASURES.values()))
    long = table.melt(keys, list(measures), var_name="measure", value_name="distance")
    return long.dropna(subset="distance")


def _of_weights(runs: Runs) -> pd.DataFrame:
    table = distances(runs)
    return table[table["weight"].isin(WEIGHTS)]


def _deep(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["depth"] >= ASYMPTOTIC]


def _slope_columns(group: pd.DataFrame) -> dict[str, Any]:
    deep = _deep(group.sort_values("depth"))
    return {
        "time": group["time"].iloc[0],
        "doubling": (deep["distance"] / deep["distance"].shift()).max(),
        "diverged": bool(group["diverged"].any()),
        **labels(group),
    } | line_columns(deep, "depth", "distance", LINE)


def _exponential(time: pd.Series, value: pd.Series, first: int, second: int) -> pd.Series:
    """Extrapolate by beta T exp(alpha T) through the values at two steps."""
    level = np.log(value / time)
    alpha = (level[second] - level[first]) / (time[second] - time[first])
    return time * np.exp(level[first] + alpha * (time - time[first]))


def nearest(steps: pd.Index, wanted: float) -> int:
    """Return the step after the start that is nearest to a wanted one."""
    later = [int(step) for step in steps if step > 0]
    return min(later, key=lambda step: abs(step - wanted))


def is_last(table: pd.DataFrame) -> pd.Series:
    """Mark the rows of the last step."""
    return table["step"] == table["step"].max()
