"""Sorted tau, dense networks: run records to tidy tables."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import line_columns, means

LEVELS = 5  # losses at which the gradients of a deep and a two-layer network are compared
NETWORK = ["activation", "start", "weight_scale", "depth"]
EXPANSION = ["terms", *NETWORK, "trained"]


def expansion(runs: Runs) -> pd.DataFrame:
    """Norms of terms and what the terms up to each order leave out: means over seeds, intervals.

    ``factorial`` is ||T_1|| / k!, averaged likewise.
    """
    table = _trained(collect(runs["expansion"], []))
    first = table[table["order"] == 1].set_index([*EXPANSION, "seed"])["norm"]
    firsts = first.reindex(pd.MultiIndex.from_frame(table[[*EXPANSION, "seed"]])).to_numpy()
    table = table.assign(factorial=firsts / table["order"].map(math.factorial))
    group = [*EXPANSION, "order"]
    summary = table.groupby([*group, "dataset"], sort=False)["factorial"].mean().reset_index()
    for column in ("norm", "remainder"):
        found = means(table, group, column)
        names = {name: f"{column}_{name}" for name in ("mean", "low", "high")}
        found = found.rename(columns={**names, "n": "seeds"})
        summary = summary.merge(found.drop(columns="seeds" if "seeds" in summary else []), on=group)
    return summary


def expansion_slopes(runs: Runs) -> pd.DataFrame:
    """Per network, slope of the log ratio of successive terms over the log of their order."""
    table = _trained(collect(runs["expansion"], []))
    rows = []
    kept = [name for name in ("dataset", "protocol", "departures") if name in table]
    for key, terms in table.groupby([*EXPANSION, "seed"], sort=False):
        norms = terms.sort_values("order")["norm"].to_numpy()[1:]
        norms = norms[norms > 0]  # L linear blocks have no terms beyond order L
        ratios = np.diff(np.log(norms))
        points = pd.DataFrame({"order": np.arange(2, len(norms) + 1), "ratio": ratios})
        line = line_columns(points, "order", "ratio", ["slope"], log="x")
        described = dict(zip([*EXPANSION, "seed"], key, strict=True))
        rows.append(described | terms[kept].iloc[0].to_dict() | line)
    return pd.DataFrame(rows)


def adjoint(runs: Runs) -> pd.DataFrame:
    """Norm of the adjoint over depth relative to its end: mean, least and greatest of seeds."""
    table = _trained(collect(runs["gradients"], [], "adjoint"))
    keys = [*NETWORK, "trained", "time", "dataset"]
    found = table.groupby(keys, sort=False)["ratio"].agg(["mean", "min", "max", "count"])
    return found.reset_index().rename(columns={"count": "seeds"})


def extremes(runs: Runs) -> pd.DataFrame:
    """Per deep network, before and after training: extremes of the adjoint over depth."""
    table = _trained(collect(runs["gradients"], [], "extremes"))
    factor = np.maximum(table["adjoint_most"], 1 / table["adjoint_least"])
    return table.assign(adjoint_factor=factor)


def matched_gradients(runs: Runs) -> pd.DataFrame:
    """Gradients of the deep and the two-layer network of one start, each where its loss is a level.

    Both are trained. The levels are evenly spaced in the logarithm between the smaller of the
    losses at the start and the larger of those at the end, both ends included; gradients are
    interpolated in the logarithms of loss and gradient. ``progress`` is 0 at the start and 1 at
    the end. At equal losses a ratio of gradients is one of gradients over roots of losses.
    """
    table = collect(runs["gradients"], [])
    kept = [name for name in ("dataset", "protocol", "departures") if name in table]
    frames = [
        _matched(trajectories).assign(**dict(zip([*NETWORK, "seed", *kept], key, strict=True)))
        for key, trajectories in table.groupby([*NETWORK, "seed", *kept], sort=False)
    ]
    return pd.concat(frames, ignore_index=True)


def _matched(trajectories: pd.DataFrame) -> pd.DataFrame:
    deep, shallow = _falling(trajectories, "deep"), _falling(trajectories, "two_layer")
    if not (len(deep) and len(shallow)):  # one has diverged at once
        return pd.DataFrame(columns=["progress", "loss", "deep", "two_layer", "ratio", "factor"])
    highest, lowest = min(deep[0, 0], shallow[0, 0]), max(deep[-1, 0], shallow[-1, 0])
    levels = np.linspace(highest, lowest, LEVELS)
    values = [np.exp(np.interp(levels, *path[::-1].T)) for path in (deep, shallow)]
    ratio = values[0] / values[1]
    return pd.DataFrame(
        {
            "progress": np.linspace(0, 1, LEVELS),
            "loss": np.exp(levels),
            "deep": values[0],
            "two_layer": values[1],
            "ratio": ratio,
            "factor": np.maximum(ratio, 1 / ratio),
        }
    )


def _falling(trajectories: pd.DataFrame, network: str) -> np.ndarray:
    """Return log loss and log gradient, ``(points, 2)``, where the loss is the lowest so far."""
    rows = trajectories[trajectories["network"] == network].sort_values("step")
    values = rows[["loss", "gradient"]].to_numpy(dtype=float)
    usable = np.isfinite(values).all(axis=1) & (values > 0).all(axis=1)
    return np.array(list(_records(np.log(values[usable]))))


def _records(path: np.ndarray) -> Iterator[np.ndarray]:
    lowest = math.inf
    for point in path:
        if point[0] < lowest:
            lowest = point[0]
            yield point


def _trained(table: pd.DataFrame) -> pd.DataFrame:
    """Mark the rows of the last step."""
    return table.assign(trained=table["step"] == table["step"].max())
