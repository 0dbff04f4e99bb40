"""Finite and infinite width: run records to tidy tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch

from resnet_limits.models.kernels import KERNELS
from resnet_limits.probes import log_spaced
from resnet_limits.runs import Run, Runs, collect
from resnet_limits.stats import TooFewError, decay_columns, halfway, line_columns, means
from resnet_limits.studies.rff_width import bounds

# Widths r >= this times N enter the slope of the eigenvalues' error: the matrix of features is
# then off by sqrt(N / r) of the kernel's or less, and eigenvalues follow to first order.
ASYMPTOTIC = 8.0
SATURATED = 4.0  # from this alpha on scaled neighbours are 10 length scales apart and lambda is 1
CURVE_POINTS = 80  # measured steps next to as many log-spaced ones, that the table of curves keeps
FAMILY = ["kernel", "samples", "embedding"]
RUN = [*FAMILY, "data_seed"]
MEMBER = [*RUN, "size", "width", "draw"]
CELL = [*FAMILY, "size", "width"]
MARKS = ["dataset", "protocol"]
LINE = ["slope", "low", "high", "intercept", "points"]
DECAY = ["first_step", "last_step", "rate", "r_squared", "linear"]
ONSET = ["proven", "observed", "decades", "first_alpha"]
SWEEP = ["kappa", "radius", "left_side", "plug_in", "excess", "guaranteed"]


def outcomes(runs: Runs) -> pd.DataFrame:
    """Per network of `width`: whether and when it converged, and its linear rate."""
    return _outcomes(runs["width"])


def rates(runs: Runs) -> pd.DataFrame:
    """Per kernel, N and width: how many networks converge or diverge, rates and final losses."""
    return _summary(_outcomes(runs["width"]))


def curves(runs: Runs) -> pd.DataFrame:
    """Loss relative to the start over steps: median and extremes of the remaining networks."""
    table = _with_constants(runs["width"], "metrics")
    measured = np.sort(table["step"].unique())
    wanted = np.searchsorted(measured, log_spaced(int(measured[-1]), CURVE_POINTS))
    table = table[table["step"].isin(measured[wanted])]
    table["relative_loss"] = table["loss"] / table["start_loss"]
    table = table[np.isfinite(table["relative_loss"])]
    spread = table.groupby([*CELL, "step", *_marks(table)])["relative_loss"]
    return spread.agg(["median", "min", "max", "count"]).reset_index()


def eigenvalues(runs: Runs) -> pd.DataFrame:
    """Per network of finite width: errors of the smallest eigenvalue at start and end.

    At the start all networks visit the same points, z_0. The end is the last measurement before
    the network stopped, and the error the largest over the depths.
    """
    table = _with_constants(runs["width"], "bounds")
    table = table[np.isfinite(table["width"])].sort_values("step")
    return pd.concat(
        [
            table[table["step"] == 0].assign(when="start"),
            table.groupby(MEMBER, sort=False).tail(1).assign(when="end"),
        ],
        ignore_index=True,
    )[[*MEMBER, "when", "step", "smallest", "exact", "gap", "diverged", *_marks(table)]]


def eigenvalue_errors(runs: Runs) -> pd.DataFrame:
    """Mean error over the draws, and over data sets with its interval."""
    table = eigenvalues(runs).dropna(subset=["gap"])
    cell = [*CELL, "when", *_marks(table)]
    draws = table.groupby([*cell, "data_seed"], as_index=False)["gap"].mean()
    return means(draws.sort_values("width"), cell, "gap")


def eigenvalue_slopes(runs: Runs) -> pd.DataFrame:
    """Slope of the log of the mean error over log r, for large r, by kernel, N and data set.

    ``excess`` is what the slope has above -1/2, the exponent of Proposition 2.
    """
    table = eigenvalues(runs)
    table = table[table["width"] >= ASYMPTOTIC * table["samples"]]
    keys = ["kernel", "samples", "data_seed", "when", *_marks(table)]
    rows = [
        dict(zip(keys, key, strict=True))
        | {"least_width": group["width"].min()}
        | line_columns(group, "width", "gap", LINE, mean_over="draw")
        for key, group in table.groupby(keys, sort=False)
    ]
    table = pd.DataFrame(rows, columns=[*keys, "least_width", *LINE])
    return table.assign(excess=table["slope"] + 0.5)


def thresholds(runs: Runs) -> pd.DataFrame:
    """Per kernel and N: the width r* at which half of the networks converge, with its interval.

    ``fails`` is the largest width with a network that does not converge, ``holds`` the smallest
    from which on all do.
    """
    table = _outcomes(runs["width"])
    table = table[np.isfinite(table["width"])]
    keys = ["kernel", "samples", *_marks(table)]
    rows = []
    for key, group in table.groupby(keys, sort=False):
        fails = group.loc[~group["converged"], "width"].max()
        holds = group.loc[~(group["width"] <= fails), "width"].min()
        rows.append(
            dict(zip(keys, key, strict=True))
            | _threshold(group)
            | {"fails": fails, "holds": holds, "diverged_networks": int(group["diverged"].sum())}
        )
    return pd.DataFrame(rows)


def wide(runs: Runs) -> pd.DataFrame:
    """Per kernel, N and draw: whether all networks of r >= N^2 features converge."""
    table = _outcomes(runs["width"])
    table = table[table["wide"]]
    keys = ["kernel", "samples", "data_seed", "draw", *_marks(table)]
    return (
        table.groupby(keys, sort=False)
        .agg(networks=("width", "count"), converge=("converged", "all"))
        .reset_index()
    )


def kappas(runs: Runs) -> pd.DataFrame:
    """Per features drawn: kappa of Assumption 1 against Eq. 19's, the limit in the width.

    ``within`` tells whether it is at most kappa + 1, as Proposition 2 (i) has it.
    """
    parts = [_collect(runs["width"], "constants"), _collect(runs["width"], "kappas")]
    table = pd.concat([part for part in parts if not part.empty], ignore_index=True)
    table = table[np.isfinite(table["width"])].dropna(subset=["kappa"])
    # The features of a width are the same whatever N is.
    table = table.drop_duplicates(["kernel", "data_seed", "size", "width", "draw"])
    table["limit"] = table["kernel"].map({name: kernel.kappa for name, kernel in KERNELS.items()})
    table["within"] = table["kappa"] <= table["limit"] + 1
    columns = ["kernel", "data_seed", "width", "draw", "kappa", "limit", "within"]
    return table[[*columns, *_marks(table)]].reset_index(drop=True)


def pl(runs: Runs) -> pd.DataFrame:
    """PL quotients along training with the bounds of Property 2, every network."""
    parts = [_pl(found).assign(experiment=name) for name, found in runs.items() if found]
    return pd.concat(parts, ignore_index=True)


def pl_kept(runs: Runs) -> pd.DataFrame:
    """Per network: whether its quotient stayed within the bounds, and what the bounds say.

    ``excess`` is the largest of M's and m's ratios to the quotient that should be at most 1.
    ``informative`` tells whether m was positive at every measurement; otherwise only M binds.
    """
    table = pl(runs)
    quotient = table["quotient"]
    table["excess"] = np.maximum(table["lower"] / quotient, quotient / table["upper"])
    table["positive"] = table["lower"] > 0
    groups = table.groupby(["experiment", *MEMBER, *_marks(table)], sort=False)
    return groups.agg(
        excess=("excess", "max"),
        informative=("positive", "all"),
        measurements=("step", "count"),
        diverged=("diverged", "any"),
    ).reset_index()


def sweep(runs: Runs) -> pd.DataFrame:
    """Per network of `embedding`: Eq. 15, whether Theorem 2 applies, outcome and rate.

    ``left_side`` is at R = 1 / (3 kappa), where the right side is R; ``plug_in`` has the smallest
    eigenvalue on the data's own z_0 in place of a proven bound. ``guaranteed`` is by the best R.
    """
    table = _outcomes(runs["embedding"])
    constants = _constants(runs["embedding"]).set_index(MEMBER)
    rows = [_sweep_columns(row) for row in table.join(constants, on=MEMBER).itertuples()]
    return table.join(pd.DataFrame(rows, index=table.index, columns=SWEEP))


def left_sides(runs: Runs) -> pd.DataFrame:
    """Per data set: exponents of the left side of Eq. 15, and of the rate, over alpha and q.

    At infinite width. Of the scaling, alpha of at least `SATURATED`; ``all_sizes`` has the
    exponent over all of the sweep. ``rate_slope`` is that of the measured rate.
    """
    table = sweep(runs)
    table = table[np.isinf(table["width"])]
    table = table[np.isfinite(table["left_side"].astype(float))]
    rows = []
    keys = ["embedding", "data_seed", *_marks(table)]
    for key, group in table.groupby(keys, sort=False):
        large = group[(group["embedding"] == "lifting") | (group["size"] >= SATURATED)]
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "slope": _exponent(large, "left_side"),
                "all_sizes": _exponent(group, "left_side"),
                "rate_slope": _exponent(group, "rate"),
                "points": len(large),
            }
        )
    columns = [*keys, "slope", "all_sizes", "rate_slope", "points"]
    return pd.DataFrame(rows, columns=columns)


def onsets(runs: Runs) -> pd.DataFrame:
    """Per draw of the scaling sweep: from which alpha on convergence is proven, and observed.

    ``observed`` is the smallest alpha of the sweep from which on all networks of the draw
    converge; where that is the sweep's first, the true value may be smaller still.
    """
    table = sweep(runs).query("embedding == 'scaling'")
    rows = []
    keys = ["width", "data_seed", "draw", *_marks(table)]
    for key, group in table.groupby(keys, sort=False):
        group = group.sort_values("size")
        proven, seen = (_onset(group, name) for name in ("guaranteed", "converged"))
        found = (proven, seen, math.log10(proven / seen), group["size"].min())
        rows.append(dict(zip([*keys, *ONSET], [*key, *found], strict=True)))
    return pd.DataFrame(rows, columns=[*keys, *ONSET])


def theorem(runs: Runs) -> pd.DataFrame:
    """Per network of `guarantee`: the conditions of Theorem 2, and whether its bounds hold.

    ``worst`` is the largest L(v^k) / ((1 - eta mu)^k L(v^0)) over the measured steps.
    """
    losses, norms = (_with_constants(runs["guarantee"], name) for name in ("metrics", "bounds"))
    norms = norms[[*MEMBER, "step", "norm"]]
    losses = losses.merge(norms, on=[*MEMBER, "step"], how="left")
    rows = []
    for member, group in losses.groupby(MEMBER, sort=False):
        rows.append(dict(zip(MEMBER, member, strict=True)) | _theorem_columns(group))
    return pd.DataFrame(rows)


def _collect(runs: list[Run], probe: str) -> pd.DataFrame:
    return collect(runs, [*RUN, "depth", "steps"], probe)


def _constants(runs: list[Run]) -> pd.DataFrame:
    constants = _collect(runs, "constants")
    return constants.drop(columns=["step", "diverged", "steps", *_marks(constants)])


def _marks(table: pd.DataFrame) -> list[str]:
    return [name for name in MARKS if name in table]


def _exponent(rows: pd.DataFrame, y: str) -> float:
    """Return the least-squares slope of log y over log size."""
    rows = rows[rows[y].astype(float) > 0]
    if rows["size"].nunique() < 2:
        return math.nan
    logs = np.log(rows[["size", y]].astype(float).to_numpy())
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def _with_constants(runs: list[Run], probe: str) -> pd.DataFrame:
    """Return a probe's rows, each with the constants of its network."""
    return _collect(runs, probe).merge(_constants(runs), on=[*MEMBER, "depth"], validate="m:1")


def _pl(runs: list[Run]) -> pd.DataFrame:
    # Without kappa there are no bounds, after divergence no quotient.
    table = _with_constants(runs, "bounds").dropna(subset=["kappa", "quotient"])
    parts = [
        bounds.quotient_bounds(rows.iloc[0], rows) for _, rows in table.groupby(MEMBER, sort=False)
    ]
    table = table.join(pd.concat(parts))
    columns = ["step", "norm", "quotient", "smallest", "lower", "lower_ball", "upper"]
    return table[[*MEMBER, *columns, "kappa", "diverged", *_marks(table)]]


def _outcomes(runs: list[Run]) -> pd.DataFrame:
    """Per network: outcome, and the log-linear fit of the loss over the last half of its steps.

    A network's steps end where it converged, or at its last measurement. The rate is minus the
    slope of the log loss over steps; a network that diverged has none. ``effort`` counts steps in
    units of the condition number of the network's kernel matrix at the start.
    """
    rows = [
        dict(zip(MEMBER, member, strict=True)) | _member_columns(group)
        for member, group in _with_constants(runs, "metrics").groupby(MEMBER, sort=False)
    ]
    table = pd.DataFrame(rows)
    infinite = table[np.isinf(table["width"])].set_index([*RUN, "size"])["rate"]
    table = table.join(infinite.rename("infinite_rate"), on=[*RUN, "size"])
    table["rate_ratio"] = table["rate"] / table["infinite_rate"]
    table["wide"] = np.isfinite(table["width"]) & (table["width"] >= table["samples"] ** 2)
    return table


def _member_columns(group: pd.DataFrame) -> dict[str, Any]:
    last = group.sort_values("step").iloc[-1]
    converged_at = int(last["converged_at"])
    # A network that converged may have been trained further with the rest of its ensemble.
    until = converged_at if converged_at >= 0 else int(last["step"])
    final = group.loc[group["step"] >= until, "loss"].iloc[0]
    smallest = max(last["start_smallest"], 0.0)
    return {
        "converged": converged_at >= 0,
        "diverged": bool(last["diverged"]) and converged_at < 0,
        "steps": until,
        "effort": until * smallest / last["start_largest"],
        "final_relative_loss": final / last["start_loss"],
        **decay_columns(group[group["step"].between(until / 2, until)], DECAY),
        **{name: last[name] for name in _marks(group)},
    }


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    groups = table.groupby([*CELL, *_marks(table)], sort=False)
    summary = groups.agg(
        networks=("draw", "count"),
        data_sets=("data_seed", "nunique"),
        converged=("converged", "sum"),
        diverged_networks=("diverged", "sum"),
        rate_median=("rate", "median"),
        rate_min=("rate", "min"),
        rate_max=("rate", "max"),
        infinite_rate=("infinite_rate", "median"),
        relative_rate=("rate_ratio", "median"),
        effort_median=("effort", "median"),
        loss_median=("final_relative_loss", "median"),
        loss_min=("final_relative_loss", "min"),
        loss_max=("final_relative_loss", "max"),
    ).reset_index()
    summary["relative_rate"] = summary["relative_rate"].where(np.isfinite(summary["width"]))
    return summary


def _threshold(finite: pd.DataFrame) -> dict[str, float]:
    try:
        found = halfway(finite, "width", "converged")
    except TooFewError:
        return dict.fromkeys(["threshold", "low", "high"], np.nan)
    return {"threshold": found.value, "low": found.low, "high": found.high}


def _theorem_columns(group: pd.DataFrame) -> dict[str, Any]:
    row: Any = group.iloc[0]
    found, largest = bounds.condition(row), group["norm"].max()
    progress = row.step_size * found.rate
    worst = (group["loss"] / ((1 - progress) ** group["step"] * row.start_loss)).max()
    decay = decay_columns(group, ["rate"])
    # Far too large a step has no proven rate.
    proven_rate = -math.log1p(-progress) if progress < 1 else math.nan
    return {
        **found._asdict(),
        "step_size": row.step_size,
        "applies": found.excess <= 1 and row.step_size * found.smoothness <= 1,
        "worst": worst,
        "norm": largest,
        "proven_rate": proven_rate,
        "measured_rate": decay["rate"],
        "rate_ratio": decay["rate"] / proven_rate,
        "norm_ratio": largest / found.radius,
        "diverged": row.diverged,
        **{name: getattr(row, name) for name in _marks(group)},
    }


def _sweep_columns(row: Any) -> dict[str, Any]:
    if math.isnan(row.kappa):
        return {}
    radius = bounds.common_radius(row)
    start = torch.tensor(max(row.start_smallest, 0.0), dtype=torch.float64)
    found = bounds.condition(row)
    return {
        "kappa": row.kappa,
        "radius": float(radius),
        "left_side": float(bounds.left_side(row, radius)),
        "plug_in": float(bounds.left_side(row, radius, start)),
        "excess": found.excess,
        "guaranteed": found.excess <= 1,
    }


def _onset(group: pd.DataFrame, column: str) -> float:
    """Return the smallest size from which on the column holds, or NaN."""
    holds = group[column].to_numpy(dtype=bool)
    failures = np.flatnonzero(~holds)
    first = failures[-1] + 1 if len(failures) else 0
    return float(group["size"].iloc[first]) if first < len(group) else np.nan
