"""Weight smoothness: run records to tidy tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from resnet_limits.runs import Runs, collect
from resnet_limits.stats import TooFewError, fit_line, log_line, means

MEASURES = ("largest", "l2", "sup")
SERIES = ["scaling", "weight", "measure", "seed", "step"]
# The exponential of Eq. 7 is fixed at these fractions of the training and extrapolated to its end.
FIRST, SECOND = 0.1, 0.2


def distances(runs: Runs) -> pd.DataFrame:
    """Distances by depth, seed, weight and step, one row for each.

    ``largest`` is max over k and t <= T of ||Z_{k+1}(t) - Z_k(t)||_F, ``lipschitz`` that times
    depth; ``l2`` and ``sup`` are distances to the limit, if there is one, for other depths.
    """
    trained = runs["large_depth"] + runs["more_seeds"] + runs["paper_scaling"]
    wide = collect(trained, _SETTINGS)
    wide["is_limit"] = wide["depth"] == wide.pop("limit_depth")
    keys = ["scaling", "seed", "depth", "is_limit", "step", "time", "loss", "diverged", "dataset"]
    wide["time"] = wide["step"] * wide["learning_rate"]
    frames = []
    for weight in ("V", "W"):
        columns = {f"{weight}_{measure}": measure for measure in MEASURES}
        frames.append(wide[[*keys, *columns]].rename(columns=columns).assign(weight=weight))
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
    table = pd.DataFrame(rows)
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
    for keys, group in distances(runs).groupby(_GROWING, sort=False):
        curve = group.set_index("step")
        time, value = curve["time"], curve["lipschitz"]
        whole, first, second = (
            _nearest(curve.index, fraction * curve.index.max()) for fraction in (0.5, FIRST, SECOND)
        )
        last = curve.index.max()
        guess = _exponential(time, value, first, second)[last]
        rows.append(
            dict(zip(_GROWING, keys, strict=True))
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
    for _, group in table.groupby(_GROWING, sort=False):
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
                **_fit_columns(curve.loc[half:, "loss"]),
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
            | _line_columns(group, "gap")
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
        return (np.log(u / x) + distance) / y**2 - 1 / (u * y) + 1 / (x * y) - time

    distance = brentq(late, 0, 1 + y**2 * time, xtol=1e-12)
    return 2 * np.log((y - (y - x) * np.exp(-distance)) / x)


_SETTINGS = ["scaling", "seed", "limit_depth", "learning_rate"]
_GROWING = ["scaling", "seed", "weight", "depth", "is_limit", "diverged", "dataset"]


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
    } | _line_columns(ordered, "distance")


def _line_columns(rows: pd.DataFrame, y: str) -> dict[str, float]:
    """Fit log ``y`` over log depth; without a fit the columns are not numbers."""
    try:
        line, _ = log_line(rows, "depth", y)
    except TooFewError:
        return dict.fromkeys(("slope", "low", "high", "intercept", "r_squared"), np.nan)
    return {
        "slope": line.slope.value,
        "low": line.slope.low,
        "high": line.slope.high,
        "intercept": line.intercept,
        "r_squared": line.r_squared,
    }


def _fit_columns(loss: pd.Series) -> dict[str, float]:
    """Fit log loss over iterations: rate per iteration, its standard error, and r^2."""
    try:
        line = fit_line(loss.index, np.log(loss))
    except TooFewError:
        return dict.fromkeys(("rate", "standard_error", "intercept", "r_squared"), np.nan)
    return {
        "rate": -line.slope.value,
        "standard_error": line.standard_error,
        "intercept": line.intercept,
        "r_squared": line.r_squared,
    }


def _exponential(time: pd.Series, value: pd.Series, first: int, second: int) -> pd.Series:
    """Extrapolate by beta T exp(alpha T) through the values at two steps."""
    level = np.log(value / time)
    alpha = (level[second] - level[first]) / (time[second] - time[first])
    return time * np.exp(level[first] + alpha * (time - time[first]))


def _nearest(steps: pd.Index, wanted: float) -> int:
    later = [step for step in steps if step > 0]
    return min(later, key=lambda step: abs(step - wanted))


def _is_last(table: pd.DataFrame) -> pd.Series:
    return table["step"] == table["step"].max()


# Images.

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


def cells(runs: Runs) -> pd.DataFrame:
    """Accuracy in % and smoothness at the end, one row per run.

    ``ratio_conv1`` and ``ratio_conv2`` are von Neumann ratios, ``ratio`` the larger of the two
    and ``log_ratio`` its decimal logarithm; ``distance`` is the mean distance of successive
    layers, and ``largest_distance`` the maximum, over both convolutions.
    """
    if not runs["cifar"]:
        return pd.DataFrame(columns=_CELLS)
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
    return table[_CELLS]


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
    return pd.DataFrame(rows, columns=_EXTREMES)


def table1(runs: Runs) -> pd.DataFrame:
    """Means over seeds of what `cells` has, one row per activation and initialization.

    A mean ``x`` has its interval in ``x_low`` and ``x_high``. ``smooth_share`` is the share of
    seeds whose weights are smooth, ``smooth`` whether the mean ratio is below ``threshold``.
    The paper's accuracies are not legible in our copy; their column is empty.
    """
    table = cells(runs)
    if table.empty:
        return pd.DataFrame(columns=[*CELL, "n", *_AVERAGED, "smooth", "paper_smooth", "dataset"])
    result = table.groupby(CELL, sort=False).agg(
        n=("seed", "count"),
        diverged=("diverged", "sum"),
        smooth_share=("smooth", "mean"),
        dataset=("dataset", "first"),
    )
    for value in _AVERAGED:
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
    if not runs["cifar"]:
        return pd.DataFrame(columns=[*by, "mean", "n", "low", "high", "last"])
    wide = collect(runs["cifar"], ["seed", *CELL], "smoothness")
    measures = ["mean_distance", "largest_distance"]
    long = wide.melt([*by[:-1], "seed"], measures, var_name="measure", value_name="distance")
    table = means(long, by, "distance")
    return table.assign(last=table["epoch"] == table.groupby(CELL)["epoch"].transform("max"))


def cifar_entries(runs: Runs) -> pd.DataFrame:
    """List some entries of the convolutions over layers, at start and end, first seed."""
    first = [run for run in runs["cifar"] if run.settings["seed"] == _first_seed(runs)]
    if not first:
        columns = ["convolution", "entry", "layer", "value", "epoch", "last", *CELL, "dataset"]
        return pd.DataFrame(columns=columns)
    table = collect(first, ["seed", *CELL], "entries")
    table["last"] = table["epoch"] == table.groupby(CELL)["epoch"].transform("max")
    return table[table["last"] | (table["epoch"] == 0)]


_AVERAGED = (
    "test_accuracy",
    "train_accuracy",
    "ratio_conv1",
    "ratio_conv2",
    "ratio",
    "distance",
    "largest_distance",
)
_CELLS = [
    *CELL, "seed", "depth", "epoch", *_AVERAGED, "log_ratio", "log_distance",
    "smooth", "paper_smooth", "diverged", "dataset",
]  # fmt: skip
_EXTREMES = [
    "seed", "roughest_smooth", "smoothest_rough", "process_ratio", "log_distance",
    "gelu_gain", "rough_gain", "diverged", "dataset",
]  # fmt: skip


def _last(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each run's last measurement; a diverged run ends early."""
    return table[table["step"] == table.groupby([*CELL, "seed"])["step"].transform("max")]


def _cells_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["activation"], table["init"], strict=True))


def _first_seed(runs: Runs) -> int:
    return min((run.settings["seed"] for run in runs["cifar"]), default=0)
