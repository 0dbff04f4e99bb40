"""Weight smoothness, images: run records to tidy tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import means

# Above this von Neumann ratio weights are not called smooth: more than so much of their variance
# over layers is independent from layer to layer. The claims' bounds are its logarithm.
SMOOTH_BELOW = 0.1
CELL = ["activation", "init"]
# Table 1's marks: smooth activation and weight-tied start. It has no Gaussian process.
PAPER_SMOOTH = {
    (activation, init): init == "weight_tied" and activation != "relu"
    for activation in ("identity", "gelu", "relu")
    for init in ("weight_tied", "iid")
}
PROCESS = ("gelu", "gaussian_process")
AVERAGED = (
    "test_accuracy",
    "train_accuracy",
    "ratio_conv1",
    "ratio_conv2",
    "ratio",
    "distance",
    "largest_distance",
)
COLUMNS = [
    *CELL, "seed", "depth", "epoch", *AVERAGED, "log_ratio", "log_distance",
    "smooth", "paper_smooth", "diverged", "dataset",
]  # fmt: skip


def cells(runs: Runs) -> pd.DataFrame:
    """Accuracy in % and smoothness at the end, one row per run.

    ``ratio_conv1`` and ``ratio_conv2`` are von Neumann ratios, ``ratio`` the larger of the two
    and ``log_ratio`` its decimal logarithm; ``distance`` is the mean distance of successive
    layers, and ``largest_distance`` the maximum, over both convolutions.
    """
    ends = _last(collect(runs["cifar"], ["seed", "depth", *CELL])).assign(
        test_accuracy=lambda rows: 100 - rows["test_error"],
        train_accuracy=lambda rows: 100 - rows["train_error"],
    )
    weights = _last(collect(runs["cifar"], ["seed", *CELL], "smoothness"))
    ratios = weights.pivot(index=[*CELL, "seed"], columns="convolution", values="von_neumann_ratio")
    measures = weights.groupby([*CELL, "seed"]).agg(
        ratio=("von_neumann_ratio", "max"),
        distance=("mean_distance", "mean"),
        largest_distance=("largest_distance", "max"),
    )
    table = ends.join(measures.join(ratios.add_prefix("ratio_")), on=[*CELL, "seed"])
    with np.errstate(divide="ignore"):
        table["log_ratio"] = np.log10(table["ratio"])
        table["log_distance"] = np.log10(table["distance"])
    table["smooth"] = table["ratio"] < SMOOTH_BELOW
    table["paper_smooth"] = [PAPER_SMOOTH.get(cell) for cell in _cells_of(table)]
    return table[COLUMNS]


def extremes(runs: Runs) -> pd.DataFrame:
    """Contrasts between the cells of Table 1, one row per seed.

    ``roughest_smooth`` is the largest ``log_ratio`` of the cells that the paper finds smooth,
    ``smoothest_rough`` the smallest of the others, ``process_ratio`` that of GELU networks that
    start as Gaussian processes. ``log_distance`` is that of weight-tied minus that of i.i.d. GELU
    networks. Differences of test accuracy, in points: ``gelu_gain`` of weight-tied GELU over
    weight-tied identity; ``rough_gain`` of the worst of the networks with GELU or ReLU and rough
    weights over weight-tied GELU. Cells that were not run are left out, or leave gaps.
    """
    marked = pd.Series(PAPER_SMOOTH)
    tied, iid, line = ("gelu", "weight_tied"), ("gelu", "iid"), ("identity", "weight_tied")
    rough = [cell for cell in PAPER_SMOOTH if not PAPER_SMOOTH[cell] and cell[0] != "identity"]
    rows = []
    for seed, group in cells(runs).groupby("seed"):
        cell = group.set_index(CELL).reindex([*PAPER_SMOOTH, PROCESS])
        ratio, accuracy = cell["log_ratio"], cell["test_accuracy"]
        rows.append(
            {
                "seed": seed,
                "roughest_smooth": ratio[marked.index[marked]].max(),
                "smoothest_rough": ratio[marked.index[~marked]].min(),
                "process_ratio": ratio[PROCESS],
                "log_distance": cell["log_distance"][tied] - cell["log_distance"][iid],
                "gelu_gain": accuracy[tied] - accuracy[line],
                "rough_gain": accuracy[rough].min() - accuracy[tied],
                "diverged": group["diverged"].any(),
                "dataset": group["dataset"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def table1(runs: Runs) -> pd.DataFrame:
    """Means over seeds of what `cells` has, one row per activation and initialization.

    A mean ``x`` has its interval in ``x_low`` and ``x_high``. ``smooth_share`` is the share of
    seeds whose weights are smooth, ``smooth`` whether the mean ratio is below ``threshold``.
    The paper's accuracies are not legible in our copy; their column is empty.
    """
    table = cells(runs)
    result = table.groupby(CELL, sort=False).agg(
        n=("seed", "count"),
        diverged=("diverged", "sum"),
        smooth_share=("smooth", "mean"),
        dataset=("dataset", "first"),
    )
    for value in AVERAGED:
        columns = means(table, CELL, value).set_index(CELL)[["mean", "low", "high"]]
        result[[value, f"{value}_low", f"{value}_high"]] = columns
    result = result.reset_index()
    result["threshold"] = SMOOTH_BELOW
    result["smooth"] = result["ratio"] < SMOOTH_BELOW
    result["paper_smooth"] = [PAPER_SMOOTH.get(cell) for cell in _cells_of(result)]
    result["paper_test_accuracy"] = np.nan
    return result


def successive(runs: Runs) -> pd.DataFrame:
    """Mean and largest distances of successive layers, means over seeds."""
    by = [*CELL, "convolution", "epoch", "dataset", "measure"]
    wide = collect(runs["cifar"], ["seed", *CELL], "smoothness")
    measures = ["mean_distance", "largest_distance"]
    long = wide.melt([*by[:-1], "seed"], measures, var_name="measure", value_name="distance")
    table = means(long, by, "distance")
    return table.assign(last=table["epoch"] == table.groupby(CELL)["epoch"].transform("max"))


def cifar_entries(runs: Runs) -> pd.DataFrame:
    """List some entries of the convolutions over layers, start and end, each cell's first seed."""
    table = collect(runs["cifar"], ["seed", *CELL], "entries")
    table = table[table["seed"] == table.groupby(CELL)["seed"].transform("min")]
    last = table["epoch"] == table.groupby(CELL)["epoch"].transform("max")
    return table.assign(last=last)[last | (table["epoch"] == 0)]


def _last(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each run's last measurement; a diverged run ends early."""
    return table[table["step"] == table.groupby([*CELL, "seed"])["step"].transform("max")]


def _cells_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["activation"], table["init"], strict=True))
