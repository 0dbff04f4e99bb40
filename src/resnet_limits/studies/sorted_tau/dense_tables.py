"""Sorted tau, dense networks: run records to tidy tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import line_columns, means

CASE = ["activation", "start", "depth"]


def expansion(runs: Runs) -> pd.DataFrame:
    """Norms of terms per seed, with mean and interval over seeds, and 1/k! from the first."""
    table = _dense(runs, "terms")
    group = [*CASE, "trained", "order"]
    for column in ("norm", "remainder"):
        summary = means(table, group, column).drop(columns="n")
        names = {name: f"{column}_{name}" for name in ("mean", "low", "high")}
        table = table.merge(summary.rename(columns=names), on=group)
    first = table[table["order"] == 1].set_index([*CASE, "trained", "seed"])["norm"]
    firsts = first.reindex(pd.MultiIndex.from_frame(table[[*CASE, "trained", "seed"]]))
    return table.assign(factorial=firsts.to_numpy() / table["order"].map(math.factorial))


def expansion_slopes(runs: Runs) -> pd.DataFrame:
    """Per network, slope of the log ratio of successive terms over the log of their order."""
    rows = []
    keys = [*CASE, "trained", "deepest", "seed", "dataset"]
    for key, terms in _dense(runs, "terms").groupby(keys, sort=False):
        norms = terms.sort_values("order")["norm"].to_numpy()[1:]
        norms = norms[norms > 0]  # L linear blocks have no terms beyond order L
        ratios = np.diff(np.log(norms))
        points = pd.DataFrame({"order": np.arange(2, len(norms) + 1), "ratio": ratios})
        line = line_columns(points, "order", "ratio", ["slope"], log="x")
        rows.append(dict(zip(keys, key, strict=True)) | line)
    return pd.DataFrame(rows)


def adjoint(runs: Runs) -> pd.DataFrame:
    """Norm of the adjoint over depth relative to its end: mean, least and greatest of seeds."""
    table = _dense(runs, "adjoint")
    keys = [*CASE, "trained", "deepest", "time", "dataset"]
    return table.groupby(keys, sort=False)["ratio"].agg(["mean", "min", "max"]).reset_index()


def gradients(runs: Runs) -> pd.DataFrame:
    """Per network, before and after training: adjoint's extremes, gradients' ratio."""
    table = _dense(runs, "metrics")
    table = table[(table["step"] == 0) | table["trained"]]
    ratio = table["gradient"] / table["shallow_gradient"]
    return table.assign(
        adjoint_factor=np.maximum(table["adjoint_most"], 1 / table["adjoint_least"]),
        gradient_ratio=ratio,
        gradient_factor=np.maximum(ratio, 1 / ratio),
    )


def _dense(runs: Runs, probe: str) -> pd.DataFrame:
    """Return a probe's rows, marking the last step and the greatest depth."""
    table = collect(runs["dense"], [], probe)
    last, deepest = table["step"] == table["step"].max(), table["depth"] == table["depth"].max()
    return table.assign(trained=last, deepest=deepest)
