"""Weight smoothness, the authors' own networks: run records to tidy tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from resnet_limits.runs import Runs, collect
from resnet_limits.studies.weight_smoothness.image_tables import PAPER_SMOOTH, SMOOTH_BELOW
from resnet_limits.studies.weight_smoothness.tables import labels

NETWORK = ["activation", "init", "batch_norm"]
MEASURES = ["von_neumann_ratio", "mean_distance", "largest_distance"]


def published(runs: Runs) -> pd.DataFrame:
    """List the authors' networks: accuracy by their log, and smoothness of their weights.

    ``found`` tells whether its file was there; the rest is empty where it was not. ``ratio`` is
    the larger von Neumann ratio of both convolutions; ``paper_smooth`` is Table 1's mark.
    """
    table = collect(runs["published"], [])
    weights = collect(runs["published"], [], "smoothness")
    weights = weights.reindex(columns=[*NETWORK, "convolution", *MEASURES])
    for name in ("conv1", "conv2"):
        rows = weights[weights["convolution"] == name].set_index(NETWORK)["von_neumann_ratio"]
        table = table.join(rows.rename(f"ratio_{name}"), on=NETWORK)
    distance = weights.groupby(NETWORK)["mean_distance"].mean().rename("distance")
    table = table.join(distance, on=NETWORK)
    table["ratio"] = table[["ratio_conv1", "ratio_conv2"]].max(axis=1)
    with np.errstate(divide="ignore"):
        table["log_distance"] = np.log10(table["distance"])
    cells = zip(table["activation"], table["init"], strict=True)
    table["paper_smooth"] = [PAPER_SMOOTH[cell] for cell in cells]
    table["threshold"] = SMOOTH_BELOW
    return table.drop(columns="step")


def published_contrast(runs: Runs) -> pd.DataFrame:
    """Compare weight-tied with i.i.d. networks, by activation and batch norm.

    ``log_distance`` is the decimal logarithm of the ratio of their mean successive distances,
    ``gain`` the test accuracy, in points, of the i.i.d. network over the weight-tied one.
    """
    table = published(runs)
    by = ["activation", "batch_norm"]
    tied, iid = (table[table["init"] == init].set_index(by) for init in ("weight_tied", "iid"))
    contrast = tied.drop(columns=["init", "found"])
    contrast["log_distance"] = tied["log_distance"] - iid["log_distance"]
    contrast["gain"] = iid["test_accuracy"] - tied["test_accuracy"]
    contrast["found"] = tied["found"] & iid["found"]
    kept = ["depth", "found", "log_distance", "gain", "diverged", *labels(table)]
    return contrast[kept].reset_index()


def published_entries(runs: Runs) -> pd.DataFrame:
    """List some entries of the authors' convolutions over layers; none where no file was there."""
    return collect(runs["published"], [], "entries")
