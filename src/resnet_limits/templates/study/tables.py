"""Runs to tidy tables: one function for each table of study.yaml."""

from __future__ import annotations

import math

import pandas as pd

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import log_line


def losses(runs: Runs) -> pd.DataFrame:
    """All measurements over training."""
    return collect(runs["descent"], ["curvature", "learning_rate"])


def rates(runs: Runs) -> pd.DataFrame:
    """Per seed, the rate over the second half, the predicted one, and their ratio."""
    rows = []
    keys = ["curvature", "learning_rate", "seed", "dataset"]
    for key, group in losses(runs).groupby(keys):
        late = group[group["step"] >= group["step"].max() / 2]
        line, _ = log_line(late, "step", "loss", log="y")
        curvature, learning_rate, *_ = key
        predicted = -2 * math.log(1 - learning_rate * curvature)
        rate = -line.slope.value
        columns = {"rate": rate, "predicted": predicted, "ratio": rate / predicted}
        rows.append({**dict(zip(keys, key, strict=True)), **columns})
    return pd.DataFrame(rows)
