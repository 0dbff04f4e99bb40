"""Weight smoothness, images: run records to tidy tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import line_columns, means, share_means
from resnet_limits.studies.weight_smoothness.tables import LINE, labels

# Above this von Neumann ratio weights are not called smooth: more than so much of their variance
# over layers is independent from layer to layer. The claims have the same bound.
SMOOTH_BELOW = 0.1
CELL = ["activation", "init"]
# What training is told besides the cell, the depth and the seed: only equal ones are compared.
TRAINING = ["train_images", "epochs", "batch", "learning_rate"]
RUN = [*CELL, *TRAINING, "depth", "seed"]
# Table 1's marks: smooth activation and weight-tied start. It has no Gaussian process.
PAPER_SMOOTH = {
    (activation, init): init == "weight_tied" and activation != "relu"
    for activation in ("identity", "gelu", "relu")
    for init in ("weight_tied", "iid")
}
PROCESS = ("gelu", "gaussian_process")
ACCURACIES = ("test_accuracy", "train_accuracy")
AVERAGED = (
    "ratio_conv1",
    "ratio_conv2",
    "ratio",
    "update_ratio",
    "new_ratio",
    "distance",
    "largest_distance",
)
COLUMNS = [
    *CELL, "seed", "depth", *TRAINING, "epoch", *ACCURACIES, *AVERAGED,
    "log_distance", "smooth", "paper_smooth", "diverged",
]  # fmt: skip


def cells(runs: Runs) -> pd.DataFrame:
    """Accuracy in % and smoothness at the end, one row per run of `cifar`.

    ``ratio_conv1`` and ``ratio_conv2`` are von Neumann ratios of the weights, ``ratio`` the larger
    of the two; ``update_ratio`` and ``new_ratio`` are the larger ratios of their change since the
    start, and of their part orthogonal to it; ``distance`` is the mean distance of successive
    layers, and ``largest_distance`` the maximum, over both convolutions.
    """
    return _ends({"cifar": runs["cifar"]})


def extremes(runs: Runs) -> pd.DataFrame:
    """Contrasts between the cells of Table 1, one row per seed.

    ``roughest_smooth`` is the largest ``ratio`` of the cells that the paper finds smooth,
    ``smoothest_rough`` the smallest of the others, ``process_ratio`` that of GELU networks that
    start as Gaussian processes. ``log_distance`` is that of weight-tied minus that of i.i.d. GELU
    networks. Differences of test accuracy, in points: ``gelu_gain`` of weight-tied GELU over
    weight-tied identity; ``rough_gain`` of the worst of the networks with GELU or ReLU and rough
    weights over weight-tied GELU. A cell that was not run leaves gaps where it belongs.
    """
    marked = pd.Series(PAPER_SMOOTH)
    tied, iid, line = ("gelu", "weight_tied"), ("gelu", "iid"), ("identity", "weight_tied")
    rough = [cell for cell in PAPER_SMOOTH if not PAPER_SMOOTH[cell] and cell[0] != "identity"]
    rows = []
    for seed, group in cells(runs).groupby("seed"):
        cell = group.set_index(CELL).reindex([*PAPER_SMOOTH, PROCESS])
        ratio, accuracy = cell["ratio"], cell["test_accuracy"]
        rows.append(
            {
                "seed": seed,
                "roughest_smooth": ratio[marked.index[marked]].max(skipna=False),
                "smoothest_rough": ratio[marked.index[~marked]].min(skipna=False),
                "process_ratio": ratio[PROCESS],
                "log_distance": cell["log_distance"][tied] - cell["log_distance"][iid],
                "gelu_gain": accuracy[tied] - accuracy[line],
                "rough_gain": accuracy[rough].min(skipna=False) - accuracy[tied],
                "diverged": group["diverged"].any(),
                **labels(group),
            }
        )
    return pd.DataFrame(rows)


def table1(runs: Runs) -> pd.DataFrame:
    """Means over seeds of what `cells` has, one row per activation and initialization.

    A mean ``x`` has its interval in ``x_low`` and ``x_high``; those of accuracies do not leave 0 to
    100 %. ``smooth_share`` is the share of seeds whose weights
    are smooth, ``smooth`` whether the mean ratio is below ``threshold``. The paper's accuracies
    are not legible in our copy; their column is empty.
    """
    table = cells(runs)
    result = table.groupby(CELL, sort=False).agg(
        n=("seed", "count"),
        diverged=("diverged", "sum"),
        smooth_share=("smooth", "mean"),
        **{name: (name, "first") for name in labels(table)},
    )
    for value in (*ACCURACIES, *AVERAGED):
        is_share = value in ACCURACIES
        found = share_means(table, CELL, value, 100) if is_share else means(table, CELL, value)
        columns = found.set_index(CELL)[["mean", "low", "high"]]
        result[[value, f"{value}_low", f"{value}_high"]] = columns
    result = result.reset_index()
    result["threshold"] = SMOOTH_BELOW
    result["smooth"] = result["ratio"] < SMOOTH_BELOW
    result["paper_smooth"] = [PAPER_SMOOTH.get(cell) for cell in _cells_of(result)]
    result["paper_test_accuracy"] = np.nan
    return result


def successive(runs: Runs) -> pd.DataFrame:
    """Mean and largest distances of successive layers, means over seeds."""
    wide = collect(runs["cifar"], ["seed", *CELL], "smoothness").query("path == 'weights'")
    by = [*CELL, "convolution", "epoch", *labels(wide), "measure"]
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


def over_depth(runs: Runs) -> pd.DataFrame:
    """Von Neumann ratios and transfer to twice the depth, over depth, one row per run and measure.

    Runs of `cifar` that were trained alike, but for the depth, stand beside those of
    `smoothness_over_depth`; others are left out. ``slope`` is that of log value over log depth of
    the same cell and seed, and ``largest`` marks a seed's largest depth.
    """
    ends = _ends(runs)
    twice = _transfers(runs).query("factor == 2")[[*RUN, "change"]]
    measured = ends.merge(twice, on=RUN, how="left")
    long = measured.melt(
        [*RUN, "diverged", *labels(ends)],
        ["ratio", "change"],
        var_name="measure",
        value_name="value",
    ).dropna(subset="value")
    by = [*CELL, *TRAINING, "seed", "measure"]
    long = long[long.groupby(by)["depth"].transform("nunique") > 2].drop_duplicates([*by, "depth"])
    return long.assign(largest=long["depth"] == long.groupby(by)["depth"].transform("max"))


def depth_slopes(runs: Runs) -> pd.DataFrame:
    """Slope of log value over log depth, per cell, seed and measure of `over_depth`."""
    rows = []
    for keys, group in over_depth(runs).groupby([*CELL, "seed", "measure"], sort=False):
        rows.append(
            dict(zip([*CELL, "seed", "measure"], keys, strict=True))
            | {"depths": len(group), "diverged": group["diverged"].any(), **labels(group)}
            | line_columns(group, "depth", "value", LINE)
        )
    columns = [*CELL, "seed", "measure", "depths", "diverged", "dataset", *LINE]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def transfer(runs: Runs) -> pd.DataFrame:
    """Change of the outputs in networks of interpolated weights, means over seeds.

    ``factor`` tells how many times deeper they are; ``loss`` is the loss of accuracy in points.
    """
    table = _transfers(runs)
    if table.empty:
        return pd.DataFrame(columns=[*CELL, "depth", "factor", "measure", "mean", "dataset"])
    table["loss"] = table["accuracy"] - table["deeper_accuracy"]
    by = [*CELL, *TRAINING, "depth", "factor", *labels(table), "measure"]
    long = table.melt([*by[:-1], "seed"], ["change", "loss"], "measure", "value")
    return means(long, by, "value")


def _ends(runs: Runs) -> pd.DataFrame:
    """Return what `cells` has for the runs of several experiments."""
    every = [run for some in runs.values() for run in some]
    ends = _last(collect(every, RUN)).assign(
        test_accuracy=lambda rows: 100 - rows["test_error"],
        train_accuracy=lambda rows: 100 - rows["train_error"],
    )
    ends = ends.drop_duplicates(RUN)
    every_path = _last(collect(every, RUN, "smoothness"))
    every_path = every_path.drop_duplicates([*RUN, "path", "convolution"])
    largest = every_path.pivot_table(
        index=RUN, columns="path", values="von_neumann_ratio", aggfunc="max"
    )
    weights = every_path[every_path["path"] == "weights"]
    ratios = weights.pivot(index=RUN, columns="convolution", values="von_neumann_ratio")
    measures = weights.groupby(RUN).agg(
        ratio=("von_neumann_ratio", "max"),
        distance=("mean_distance", "mean"),
        largest_distance=("largest_distance", "max"),
    )
    measures = measures.join(ratios.add_prefix("ratio_"))
    measures = measures.join(largest.reindex(columns=["update", "new"]).add_suffix("_ratio"))
    table = ends.join(measures, on=RUN)
    with np.errstate(divide="ignore"):
        table["log_distance"] = np.log10(table["distance"])
    table["smooth"] = table["ratio"] < SMOOTH_BELOW
    table["paper_smooth"] = [PAPER_SMOOTH.get(cell) for cell in _cells_of(table)]
    return table[[*COLUMNS, *labels(table)]]


def _transfers(runs: Runs) -> pd.DataFrame:
    every = [run for some in runs.values() for run in some]
    table = collect(every, RUN, "transfer")
    wanted = [*RUN, "factor", "change", "accuracy", "deeper_accuracy"]
    table = table.reindex(columns=[*wanted, *labels(table)])
    return table.drop_duplicates([*RUN, "factor"])


def _last(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each run's last measurement; a diverged run ends early."""
    return table[table["step"] == table.groupby(RUN)["step"].transform("max")]


def _cells_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["activation"], table["init"], strict=True))
