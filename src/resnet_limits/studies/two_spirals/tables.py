"""Two Spirals: run records to tidy tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from resnet_limits.probes import evenly_spaced
from resnet_limits.runs import Runs, collect
from resnet_limits.stats import (
    TooFewError,
    binomial_slope,
    decay_columns,
    estimate_columns,
    line_columns,
    means,
)

PAPER_SEEDS = 3  # Section C.6
NEARLY_ZERO = 0.01  # a training error of at most this is "0 or nearly"
MEMBER = ["field", "n_train", "seed"]
LINE = ["slope", "low", "high", "p_value", "points", "standard_error", "intercept"]
DECAY = ["first_step", "last_step", "rate", "r_squared", "falls", "linear"]


def curves(runs: Runs) -> pd.DataFrame:
    """All measurements over training."""
    return collect(runs["rate"], ["field"])


def final(runs: Runs) -> pd.DataFrame:
    """Measurements at the last step, with test errors as counts."""
    last = _last(collect(runs["rate"], ["field", "n_test"]), MEMBER)
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
            line = line_columns(group, "n_train", "test_error", LINE, mean_over="seed")
            rows.append(marks | {"method": "least squares"} | line)
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
                **decay_columns(stretch, DECAY, loss="train_loss"),
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
    table = collect(runs["rate"], ["field"], "gram")
    if table.empty:
        return table.reindex(columns=[*MEMBER, "dataset"])
    start = table[table["step"] == 0].set_index(MEMBER)["g_min"]
    table = table.join(start.rename("g_start"), on=MEMBER)
    table["ratio"] = table["g_min"] / table["g_start"]
    table["smallest_ratio"] = table.groupby(MEMBER)["ratio"].transform("min")
    table["last"] = table["step"] == table.groupby(MEMBER)["step"].transform("max")
    table["kept"] = table["smallest_ratio"] >= 0.5
    return table


def depths(runs: Runs) -> pd.DataFrame:
    """Test error at the last step by depth and seed."""
    return _last(collect(runs["depth"], ["depth"]), ["depth", "n_train", "seed"])


def depth_errors(runs: Runs) -> pd.DataFrame:
    """Mean test error with its interval by depth."""
    return means(depths(runs), ["depth", "n_train", "dataset"], "test_error")


def boundary(runs: Runs) -> pd.DataFrame:
    """Output of the trained networks on a grid, field constant in depth."""
    constant = [run for run in runs["rate"] if run.settings["field"] == "constant"]
    table = collect(constant, [], "boundary")
    return table.drop(columns=["step", "diverged"], errors="ignore")


def samples(runs: Runs) -> pd.DataFrame:
    """Training points of the networks in `boundary`."""
    drawn = [run for run in runs["rate"] if run.has("samples")]
    return collect(drawn[:1], [], "samples")


def _last(table: pd.DataFrame, member: list[str]) -> pd.DataFrame:
    last = table.groupby(member)["step"].transform("max")
    return table[table["step"] == last].reset_index(drop=True)


def _seed_groups(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of the first seeds, as many as the paper has, and all rows."""
    seeds = sorted(table["seed"].unique())
    return {
        "paper": table[table["seed"].isin(seeds[:PAPER_SEEDS])],
        "all": table,
    }


def _binomial(rows: pd.DataFrame) -> dict[str, Any]:
    try:
        return estimate_columns("slope", binomial_slope(rows, "n_train", "wrong", "n_test"))
    except TooFewError:
        return {}
