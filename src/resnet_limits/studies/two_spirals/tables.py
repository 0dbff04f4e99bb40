"""Two Spirals: run records to tidy tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from resnet_limits.probes import evenly_spaced
from resnet_limits.runs import Runs, collect
from resnet_limits.stats import (
    Estimate,
    TooFewError,
    binomial_slope,
    fit_line,
    log_line,
    means,
)

PAPER_SEEDS = 3  # Section C.6
NEARLY_ZERO = 0.01  # a training error of at most this is "0 or nearly"
LINEAR = 0.9  # r^2 from which a decay is called linear on the log axis
MEMBER = ["field", "n_train", "seed"]


def curves(runs: Runs) -> pd.DataFrame:
    """All measurements over training."""
    return collect(runs["rate"], ["field"])


def final(runs: Runs) -> pd.DataFrame:
    """Measurements at the last step, with test errors as counts."""
    last = _last(collect(runs["rate"], ["field", "n_test"]))
    last["wrong"] = (last["test_error"] * last["n_test"]).round().astype(int)
    return last


def errors(runs: Runs) -> pd.DataFrame:
    """Mean test error with its interval by variant, size and number of seeds."""
    return pd.concat(
        [
            means(rows, ["field", "n_train", "dataset"], "test_error").assign(seeds=label)
            for label, rows in _seed_groups(final(runs)).items()
        ],
        ignore_index=True,
    )


def rates(runs: Runs) -> pd.DataFrame:
    """Slope of log test error over log n_train for each variant.

    Least squares on the logarithm of the mean over the first three seeds, as in Section C.6;
    the same with every seed; and binomial regression with log link of the counts of wrong test
    points, every seed.
    """
    rows = []
    for label, used in _seed_groups(final(runs)).items():
        for field, group in used.groupby("field", sort=False):
            marks = {"field": field, "seeds": label, "dataset": group["dataset"].iloc[0]}
            rows.append(marks | {"method": "least squares"} | _least_squares(group))
            rows.append(marks | {"method": "binomial"} | _binomial(group))
    return pd.DataFrame(rows)


def decay(runs: Runs) -> pd.DataFrame:
    """Per run, the rate of the training loss and whether the training error reached nearly 0.

    The rate is minus the slope of the log loss over steps, fitted to evenly spaced steps from
    the start to the smallest loss.
    """
    settings = runs["rate"][0].settings
    steps = evenly_spaced(settings["steps"], settings["probes"])
    rows = []
    for member, group in curves(runs).groupby(MEMBER, sort=False):
        even = group[group["step"].isin(steps)].sort_values("step")
        lowest = even["train_loss"].to_numpy().argmin()
        stretch = even.iloc[: lowest + 1]
        rows.append(
            {
                **dict(zip(MEMBER, member, strict=True)),
                **_decay_columns(stretch),
                "nearly_zero_error": bool((group["train_error"] <= NEARLY_ZERO).any()),
                "diverged": bool(group["diverged"].any()),
                "dataset": group["dataset"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def gram(runs: Runs) -> pd.DataFrame:
    """Smallest eigenvalues over training and their ratio to the start.

    ``kept`` tells, at a run's last row, whether the ratio never fell below 1/2 (Lemma 4.4).
    """
    trained = [run for run in runs["rate"] if "gram.csv" in run.record["files"]]
    table = collect(trained, ["field"], "gram")
    start = table[table["step"] == 0].set_index(MEMBER)["g_min"]
    table = table.join(start.rename("g_start"), on=MEMBER)
    table["ratio"] = table["g_min"] / table["g_start"]
    table["smallest_ratio"] = table.groupby(MEMBER)["ratio"].transform("min")
    table["last"] = table["step"] == table.groupby(MEMBER)["step"].transform("max")
    table["kept"] = table["smallest_ratio"] >= 0.5
    return table


def depths(runs: Runs) -> pd.DataFrame:
    """Test error at the last step by depth and seed."""
    return _last(collect(runs["depth"], ["depth"]))


def depth_errors(runs: Runs) -> pd.DataFrame:
    """Mean test error with its interval by depth."""
    return means(depths(runs), ["depth", "n_train", "dataset"], "test_error")


def boundary(runs: Runs) -> pd.DataFrame:
    """Output of the trained networks on a grid, field constant in depth."""
    constant = [run for run in runs["rate"] if run.settings["field"] == "constant"]
    return collect(constant, [], "boundary").drop(columns=["step", "diverged"])


def samples(runs: Runs) -> pd.DataFrame:
    """Training points of the networks in `boundary`."""
    return collect(runs["rate"][:1], [], "samples")


def _last(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["step"] == table["step"].max()].reset_index(drop=True)


def _seed_groups(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of the first seeds, as many as the paper has, and all rows."""
    seeds = sorted(table["seed"].unique())
    return {
        "paper": table[table["seed"].isin(seeds[:PAPER_SEEDS])],
        "all": table,
    }


def _least_squares(rows: pd.DataFrame) -> dict[str, float | None]:
    try:
        line, _ = log_line(rows, "n_train", "test_error", mean_over="seed")
    except TooFewError:
        return {}
    return _slope_columns(line.slope) | {
        "standard_error": line.standard_error,
        "intercept": line.intercept,
    }


def _binomial(rows: pd.DataFrame) -> dict[str, float | None]:
    try:
        return _slope_columns(binomial_slope(rows, "n_train", "wrong", "n_test"))
    except TooFewError:
        return {}


def _slope_columns(estimate: Estimate) -> dict[str, float | None]:
    return {
        "slope": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "p_value": estimate.p_value,
        "points": estimate.n,
    }


def _decay_columns(stretch: pd.DataFrame) -> dict[str, float]:
    columns = {"first_step": stretch["step"].min(), "last_step": stretch["step"].max()}
    try:
        with np.errstate(divide="ignore"):
            line = fit_line(stretch["step"], np.log(stretch["train_loss"]))
    except TooFewError:
        return columns | {"rate": np.nan, "r_squared": np.nan, "falls": False, "linear": False}
    return columns | {
        "rate": -line.slope.value,
        "r_squared": line.r_squared,
        "falls": line.slope.high < 0,
        "linear": line.slope.high < 0 and line.r_squared >= LINEAR,
    }
