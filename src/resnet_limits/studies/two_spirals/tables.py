"""Two Spirals: run records to tidy tables."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
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
    paired_difference,
    share_means,
)

PAPER_SEEDS = 3  # Section C.6
NEARLY_ZERO = 0.01  # a training error of at most this is "0 or nearly"
MEMBER = ["field", "n_train", "seed"]
MARKS = ("dataset", "protocol")
LINE = ["slope", "low", "high", "p_value", "points", "standard_error", "intercept"]
DECAY = ["first_step", "last_step", "rate", "r_squared", "falls"]


def curves(runs: Runs) -> pd.DataFrame:
    """All measurements over training."""
    return collect(runs["rate"], ["field"])


def final(runs: Runs) -> pd.DataFrame:
    """Measurements at the last step, with test errors as counts.

    ``variant`` is the field, and ``frozen_wide`` and ``removed_wide`` where the output layer is as
    wide as makes up for the weights of the untrained field.
    """
    plain, wide = (collect(runs[name], ["field", "n_test"]) for name in ("rate", "matched"))
    plain["variant"], wide["variant"] = plain["field"], wide["field"] + "_wide"
    found = [table for table in (plain, wide) if not table.empty]
    table = pd.concat(found, ignore_index=True) if found else plain
    return _count_wrong(last_rows(table, ["variant", "n_train", "seed"]))


def errors(runs: Runs) -> pd.DataFrame:
    """Mean test error with its interval by variant, size and number of seeds.

    Also ``scaled_mean``, ``scaled_low`` and ``scaled_high``, times the root of the size.
    """
    groups = _seed_groups(final(runs)).items()
    by = ["variant", "n_train", "dataset"]
    table = pd.concat(
        [_error_means(rows, by).assign(seeds=label) for label, rows in groups], ignore_index=True
    )
    for name in ("mean", "low", "high"):
        table[f"scaled_{name}"] = table[name] * table["n_train"] ** 0.5
    return table


def rates(runs: Runs) -> pd.DataFrame:
    """Slope of log test error over log n_train for each variant.

    Least squares on the logarithm of the mean over the first three seeds, as in Section C.6;
    the same with every seed; and binomial regression with log link of the counts of wrong test
    points, every seed.
    """
    rows = []
    for label, used in _seed_groups(final(runs)).items():
        for variant, group in used.groupby("variant", sort=False):
            cell = {"variant": variant, "seeds": label, "dataset": group["dataset"].iloc[0]}
            rows.append(cell | {"method": "least squares"} | _line(group))
            rows.append(cell | {"method": "binomial"} | _binomial(group))
    return pd.DataFrame(rows)


def local_slopes(runs: Runs) -> pd.DataFrame:
    """Slope of log mean test error between neighbouring sizes, with its interval over seeds.

    The interval is that of the linearized slope: a seed's errors, each relative to the mean at its
    size, so that what the sizes of one seed share cancels.
    """
    rows = [
        _slope_between(group, sizes).assign(variant=variant, dataset=group["dataset"].iloc[0])
        for variant, group in final(runs).groupby("variant", sort=False)
        for sizes in pairwise(sorted(group["n_train"].unique()))
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["dataset"])


def _slope_between(rows: pd.DataFrame, sizes: tuple[int, int]) -> pd.DataFrame:
    wide = rows.pivot(index="seed", columns="n_train", values="test_error")[list(sizes)].dropna()
    center, ratio = wide.mean(), math.log(sizes[1] / sizes[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.diff(np.log(center))[0] / ratio
        relative = wide / center
    linearized = slope + (relative[sizes[1]] - relative[sizes[0]]) / ratio
    found = means(pd.DataFrame({"between": 0, "slope": linearized}), "between", "slope")
    middle = math.sqrt(sizes[0] * sizes[1])
    return found.drop(columns="between").assign(smaller=sizes[0], larger=sizes[1], middle=middle)


def noise(runs: Runs) -> pd.DataFrame:
    """Measurements at the last step by the width of the noise, field constant in depth."""
    constant = [run for run in runs["rate"] if run.settings["field"] == "constant"]
    table = collect([*runs["noise"], *constant], ["noise", "n_test"])
    return table if table.empty else _count_wrong(last_rows(table, ["noise", *MEMBER[1:]]))


def noise_errors(runs: Runs) -> pd.DataFrame:
    """Mean test error with its interval by noise and size."""
    table = noise(runs)
    return table if table.empty else _error_means(table, ["noise", "n_train", "dataset"])


def noise_rates(runs: Runs) -> pd.DataFrame:
    """Slope of log mean test error over log n_train by noise, every seed."""
    return pd.DataFrame(
        {"noise": width, "dataset": group["dataset"].iloc[0]} | _line(group)
        for width, group in noise(runs).groupby("noise")
    ).reindex(columns=["noise", "dataset", *LINE])


def decay(runs: Runs) -> pd.DataFrame:
    """Per run, the rate of the training loss and whether the training error ended nearly at 0.

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
                "nearly_zero_error": bool(even["train_error"].iloc[-1] <= NEARLY_ZERO),
                "diverged": bool(group["diverged"].any()),
                **marks(group),
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
    return last_rows(collect(runs["depth"], ["depth", "n_test"]), ["depth", "n_train", "seed"])


def depth_errors(runs: Runs) -> pd.DataFrame:
    """Mean test error with its interval by depth."""
    return _error_means(depths(runs), ["depth", "n_train", "dataset"])


def depth_differences(runs: Runs) -> pd.DataFrame:
    """Test error minus that at the smallest depth, in standard deviations of the latter's seeds."""
    table = depths(runs)
    if table.empty:
        return table
    least, *deeper = sorted(table["depth"].unique())
    rows = [
        {"depth": depth, "least": least, **_in_deviations(table, depth, least), **marks(table)}
        for depth in deeper
    ]
    return pd.DataFrame(rows, columns=["depth", "least", "mean", "low", "high", "n", *MARKS])


def _in_deviations(table: pd.DataFrame, depth: int, least: int) -> dict[str, float]:
    with suppress(TooFewError):
        found = paired_difference(
            table, "test_error", "depth", depth, least, ["seed"], in_standard_deviations=True
        )
        return {"mean": found.value, "low": found.low, "high": found.high, "n": found.n}
    return {}


def boundary(runs: Runs) -> pd.DataFrame:
    """Output of the trained networks on a grid, field constant in depth."""
    constant = [run for run in runs["rate"] if run.settings["field"] == "constant"]
    table = collect(constant, [], "boundary")
    return table.drop(columns=["step", "diverged"], errors="ignore")


def samples(runs: Runs) -> pd.DataFrame:
    """Training points of the networks in `boundary`."""
    drawn = [run for run in runs["rate"] if run.has("samples")]
    return collect(drawn[:1], [], "samples")


def last_rows(table: pd.DataFrame, member: list[str]) -> pd.DataFrame:
    """Return each member's measurements at its last step."""
    last = table.groupby(member)["step"].transform("max")
    return table[table["step"] == last].reset_index(drop=True)


def marks(rows: pd.DataFrame) -> dict[str, Any]:
    """Return what a row made of others takes over: data set and protocol."""
    return {name: rows[name].iloc[0] for name in MARKS if name in rows}


def _error_means(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    return share_means(rows, by, "test_error", trials="n_test")


def _count_wrong(table: pd.DataFrame) -> pd.DataFrame:
    wrong = (table["test_error"] * table["n_test"]).round().astype(int)
    return table.assign(wrong=wrong)


def _line(rows: pd.DataFrame) -> dict[str, Any]:
    return line_columns(rows, "n_train", "test_error", LINE, mean_over="seed")


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
