"""Finite and infinite width: run records to tidy tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch

from resnet_limits.probes import log_spaced
from resnet_limits.runs import Run, Runs, collect
from resnet_limits.stats import TooFewError, decay_columns, halfway, line_columns, means
from resnet_limits.studies.rff_width import bounds

UNSATURATED = 2.0  # widths r >= this times N enter the slope of the eigenvalues' error
ROUNDING = 1e-5  # in float32; at v = 0 and far apart points the bounds are equalities
CURVE_POINTS = 80  # measured steps next to as many log-spaced ones, that the table of curves keeps
RUN = ["kernel", "samples", "embedding"]
MEMBER = [*RUN, "size", "width", "draw"]
CELL = [*RUN, "size", "width"]
LINE = ["slope", "low", "high", "intercept", "points"]
DECAY = ["first_step", "last_step", "rate", "r_squared", "linear"]
ONSET = ["proven", "observed", "decades", "first_alpha"]
SWEEP = ["kappa", "radius", "left_side", "plug_in", "excess", "guaranteed"]


def outcomes(runs: Runs) -> pd.DataFrame:
    """Per network of `width`: whether and when it converged, and its linear rate."""
    return _outcomes(runs["width"])


def rates(runs: Runs) -> pd.DataFrame:
    """Per kernel, N and width: how many draws converge or diverge, rates and final losses."""
    return _summary(_outcomes(runs["width"]))


def curves(runs: Runs) -> pd.DataFrame:
    """Loss relative to the start over steps: median, least and largest of the remaining draws."""
    table = _with_constants(runs["width"], "metrics")
    measured = np.sort(table["step"].unique())
    wanted = np.searchsorted(measured, log_spaced(int(measured[-1]), CURVE_POINTS))
    table = table[table["step"].isin(measured[wanted])]
    table["relative_loss"] = table["loss"] / table["start_loss"]
    table = table[np.isfinite(table["relative_loss"])]
    spread = table.groupby([*CELL, "step", "dataset"])["relative_loss"]
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
    )[[*MEMBER, "when", "step", "smallest", "exact", "gap", "diverged", "dataset"]]


def eigenvalue_errors(runs: Runs) -> pd.DataFrame:
    """Mean error over the draws with its interval, by kernel, N, width and time."""
    table = eigenvalues(runs).dropna(subset=["gap"])
    return means(table, [*CELL, "when", "dataset"], "gap")


def eigenvalue_slopes(runs: Runs) -> pd.DataFrame:
    """Slope of the log of that mean over log r, where 2 r is far above N, by kernel and N."""
    table = eigenvalues(runs)
    table = table[table["width"] >= UNSATURATED * table["samples"]]
    rows = []
    for (kernel, samples, when), group in table.groupby(["kernel", "samples", "when"], sort=False):
        marks = {
            "kernel": kernel,
            "samples": samples,
            "when": when,
            "least_width": group["width"].min(),
        }
        line = line_columns(group, "width", "gap", LINE, mean_over="draw")
        rows.append(marks | line | {"dataset": group["dataset"].iloc[0]})
    columns = ["kernel", "samples", "when", "least_width", *LINE, "dataset"]
    return pd.DataFrame(rows, columns=columns)


def thresholds(runs: Runs) -> pd.DataFrame:
    """Per kernel and N: the width r* at which half of the draws converge, with its interval.

    ``fails`` is the largest width with a draw that does not converge, ``holds`` the smallest from
    which on all do.
    """
    table = _outcomes(runs["width"])
    rows = []
    for (kernel, samples), group in table.groupby(["kernel", "samples"], sort=False):
        finite = group[np.isfinite(group["width"])]
        fails = finite.loc[~finite["converged"], "width"].max()
        holds = finite.loc[~(finite["width"] <= fails), "width"].min()
        rows.append(
            {
                "kernel": kernel,
                "samples": samples,
                **_threshold(finite),
                "fails": fails,
                "holds": holds,
                "diverged_draws": int(finite["diverged"].sum()),
                "dataset": group["dataset"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def threshold_growth(runs: Runs) -> pd.DataFrame:
    """Slope of log r* over log N, for each kernel and for all together."""
    table = thresholds(runs)
    groups = {**dict(list(table.groupby("kernel", sort=False))), "all": table}
    return pd.DataFrame(
        [
            {"kernel": kernel}
            | line_columns(group, "samples", "threshold", LINE)
            | {"dataset": group["dataset"].iloc[0]}
            for kernel, group in groups.items()
        ]
    )


def pl(runs: Runs) -> pd.DataFrame:
    """PL quotients along training with the bounds of Property 2, every network."""
    parts = [_pl(found).assign(experiment=name) for name, found in runs.items() if found]
    return pd.concat(parts, ignore_index=True)


def pl_kept(runs: Runs) -> pd.DataFrame:
    """Per network: whether its quotient stayed within the bounds, and what the bounds say.

    ``informative`` tells whether m was positive at every measurement; otherwise only M binds.
    """
    table = pl(runs)
    lower, upper = table["lower"] * (1 - ROUNDING), table["upper"] * (1 + ROUNDING)
    table["inside"] = table["quotient"].between(lower, upper)
    table["positive"] = table["lower"] > 0
    groups = table.groupby(["experiment", *MEMBER, "dataset"], sort=False)
    return groups.agg(
        kept=("inside", "all"),
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


def onsets(runs: Runs) -> pd.DataFrame:
    """Per draw of the scaling sweep: from which alpha on convergence is proven, and observed.

    ``observed`` is the smallest alpha of the sweep from which on all networks of the draw
    converge; where that is the sweep's first, the true value may be smaller still.
    """
    table = sweep(runs).query("embedding == 'scaling'")
    rows = []
    for (width, draw), group in table.groupby(["width", "draw"], sort=False):
        group = group.sort_values("size")
        proven, seen = (_onset(group, name) for name in ("guaranteed", "converged"))
        marks = {"width": width, "draw": draw, "dataset": group["dataset"].iloc[0]}
        decades, first = math.log10(proven / seen), group["size"].min()
        rows.append(marks | dict(zip(ONSET, (proven, seen, decades, first), strict=True)))
    return pd.DataFrame(rows, columns=["width", "draw", *ONSET, "dataset"])


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
    return _collect(runs, "constants").drop(columns=["step", "dataset", "diverged", "steps"])


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
    return table[[*MEMBER, *columns, "kappa", "diverged", "dataset"]]


def _outcomes(runs: list[Run]) -> pd.DataFrame:
    """Per network: outcome, and the log-linear fit of the loss over the last half of its steps.

    A network's steps end where it converged, or at its last measurement. The rate is minus the
    slope of the log loss over steps; a network that diverged has none.
    """
    rows = [
        dict(zip(MEMBER, member, strict=True)) | _member_columns(group)
        for member, group in _with_constants(runs, "metrics").groupby(MEMBER, sort=False)
    ]
    table = pd.DataFrame(rows)
    infinite = table[np.isinf(table["width"])].set_index([*RUN, "size"])["rate"]
    table = table.join(infinite.rename("infinite_rate"), on=[*RUN, "size"])
    table["rate_ratio"] = table["rate"] / table["infinite_rate"]
    table["zero_at_linear_rate"] = table["converged"] & table["linear"]
    table["singular"] = 2 * table["width"] < table["samples"]
    table["wide"] = np.isfinite(table["width"]) & (table["width"] >= table["samples"] ** 2)
    return table


def _member_columns(group: pd.DataFrame) -> dict[str, Any]:
    last = group.sort_values("step").iloc[-1]
    converged_at = int(last["converged_at"])
    # A network that converged may have been trained further with the rest of its ensemble.
    until = converged_at if converged_at >= 0 else int(last["step"])
    final = group.loc[group["step"] >= until, "loss"].iloc[0]
    return {
        "converged": converged_at >= 0,
        "diverged": bool(last["diverged"]) and converged_at < 0,
        "steps": until,
        "final_relative_loss": final / last["start_loss"],
        **decay_columns(group[group["step"].between(until / 2, until)], DECAY),
        "dataset": last["dataset"],
    }


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    groups = table.groupby([*CELL, "dataset"], sort=False)
    summary = groups.agg(
        draws=("draw", "count"),
        converged=("converged", "sum"),
        diverged_draws=("diverged", "sum"),
        rate_median=("rate", "median"),
        rate_min=("rate", "min"),
        rate_max=("rate", "max"),
        infinite_rate=("infinite_rate", "first"),
        loss_median=("final_relative_loss", "median"),
        loss_min=("final_relative_loss", "min"),
        loss_max=("final_relative_loss", "max"),
    ).reset_index()
    finite = np.isfinite(summary["width"])
    summary["relative_rate"] = (summary["rate_median"] / summary["infinite_rate"]).where(finite)
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
        "holds": worst <= 1 + ROUNDING and largest <= found.radius,
        "diverged": row.diverged,
        "dataset": row.dataset,
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
