"""Sorted tau: run records to tidy tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resnet_limits.runs import Run, Runs, collect
from resnet_limits.stats import CONFIDENCE, means, share_means

METHODS = ("vanilla", "steps", "sorted_tau")
PAIRED = ("vanilla", "sorted_tau")
PAPER = Path(__file__).with_name("paper_table1.csv")
POWER = 0.8
PAPER_RUNS = 3
CONDITIONS = ["dataset", "protocol", "departures"]  # of a run; the same within an experiment
COMPARISONS = {
    "trained steps": ("steps", "vanilla"),
    "sorting": ("sorted_tau", "steps"),
    "both": ("sorted_tau", "vanilla"),
}
TABLE1 = [
    "network", "status",
    "vanilla", "vanilla_low", "vanilla_high", "paper_vanilla",
    "sorted_tau", "sorted_tau_low", "sorted_tau_high", "paper_sorted_tau",
    "difference", "difference_low", "difference_high", "paper_difference",
    "pairs", "diverged", "least_changes", "most_changes",
    "spread", "power", "needed", "power_of_three", "dataset", "protocol", "epochs", "schedule",
    "paper_dataset", "paper_schedule",
]  # fmt: skip
NEAR_BEST = 5.0  # points of training error within which a time scale counts as training well


def curves(runs: Runs) -> pd.DataFrame:
    """Measurements at the end of every epoch."""
    return _curves(_all(runs))


def pairs(runs: Runs) -> pd.DataFrame:
    """Errors of plain training and sorted tau at the end, one row per network and seed.

    A run that diverged counts with the error it had then, and its pair is marked. ``changes`` is
    the number of updates that changed the order of blocks.
    """
    wide = _last_errors(_all(runs), PAIRED)
    return wide.assign(difference=wide["sorted_tau"] - wide["vanilla"])


def table1(runs: Runs) -> pd.DataFrame:
    """Table 1: a row for each of the paper's, and ours beside it where there are runs."""
    found = pairs(runs)
    settings = {run.settings["network"]: run.settings for run in _all(runs)}
    rows = []
    for paper in pd.read_csv(PAPER).to_dict("records"):
        name, difference = paper["network"], paper["sorted_tau"] - paper["vanilla"]
        ours = found[found["network"] == name]
        row = {"status": "not run"}
        if len(ours):
            row = _measured(ours, settings[name]) | _power(ours["difference"], difference)
        rows.append(
            {
                "network": name,
                **row,
                **{f"paper_{method}": paper[method] for method in PAIRED},
                "paper_difference": round(difference, 2),
                "paper_dataset": paper["dataset"],
                "paper_schedule": _schedule(paper["epochs"], paper["milestones"].split(), 10),
            }
        )
    return pd.DataFrame(rows, columns=TABLE1)


def row_means(runs: Runs) -> pd.DataFrame:
    """Mean difference of every row of Table 1, and whether it is lower.

    ``enough`` tells whether the row has as many pairs as the paper's, three.
    """
    table = pairs(runs)
    if table.empty:
        return table
    by = ["network", *[name for name in CONDITIONS if name in table]]
    found = table.groupby(by, sort=False).agg(
        pairs=("seed", "count"), difference=("difference", "mean"), diverged=("diverged", "any")
    )
    found = found.assign(lower=found["difference"] < 0, enough=found["pairs"] >= PAPER_RUNS)
    return found.reset_index()


def _measured(ours: pd.DataFrame, settings: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"status": "run", "pairs": len(ours), "epochs": settings["epochs"]}
    row |= {name: ours[name].iloc[0] for name in ("dataset", "protocol") if name in ours}
    row |= {"diverged": int(ours["diverged"].sum())}
    row |= {"least_changes": ours["changes"].min(), "most_changes": ours["changes"].max()}
    schedule = settings["schedule"]
    milestones, factor = schedule.get("milestones", []), schedule.get("factor", 1)
    row["schedule"] = _schedule(settings["epochs"], milestones, round(1 / factor))
    whole = ours.assign(all=0)
    lines = {method: share_means(whole, "all", method, whole=100) for method in PAIRED}
    lines["difference"] = means(whole, "all", "difference")
    for column, found in lines.items():
        line = found.iloc[0]
        row |= {column: line["mean"], f"{column}_low": line["low"], f"{column}_high": line["high"]}
    return row


def _schedule(epochs: int, milestones: Sequence[Any], factor: int) -> str:
    at = f", /{factor} at {', '.join(map(str, milestones))}" if milestones else ""
    return f"{epochs} epochs{at}"


def _power(differences: pd.Series, wanted: float) -> dict[str, float]:
    """Return what a one-sided paired t test could have shown, were the paper exactly right.

    ``spread`` is the standard deviation of the differences; ``power`` the probability that so many
    pairs show a difference as large as the paper's, ``power_of_three`` that the paper's three do;
    ``needed`` the number of pairs that show it with probability 0.8.
    """
    from statsmodels.stats.power import TTestPower  # slow to import, and only needed here

    spread, n = float(differences.std()), len(differences)
    if n < 2 or spread == 0:
        return {"spread": np.nan, "power": np.nan, "power_of_three": np.nan, "needed": np.nan}
    test, effect = TTestPower(), abs(wanted) / spread
    options = {"effect_size": effect, "alpha": 1 - CONFIDENCE, "alternative": "larger"}
    # From an effect of several standard deviations on, two pairs are enough.
    count = 2.0 if effect > 20 else float(test.solve_power(nobs=None, power=POWER, **options))
    return {
        "spread": spread,
        "power": float(test.power(nobs=n, **options)),
        "power_of_three": float(test.power(nobs=PAPER_RUNS, **options)),
        "needed": max(2, int(np.ceil(count))),
    }


def comparisons(runs: Runs) -> pd.DataFrame:
    """Sorting or step sizes: differences of test errors at the end, per seed, in points.

    ``trained steps`` is steps minus vanilla, ``sorting`` sorted tau minus steps, and ``both`` their
    sum. ``changes`` is the number of updates that changed the order in the run with sorted tau.
    """
    wide = _last_errors(_all(runs), METHODS)
    frames = [
        wide.assign(comparison=name, difference=wide[method] - wide[baseline])
        for name, (method, baseline) in COMPARISONS.items()
    ]
    return pd.concat(frames, ignore_index=True).drop(columns=list(METHODS))


def _last_errors(runs: Sequence[Run], methods: Sequence[str]) -> pd.DataFrame:
    """Return the methods' test errors at the end in columns, for seeds that have all of them."""
    table = _curves(runs)
    present = [name for name in CONDITIONS if name in table]
    pair = ["network", "seed", *present]
    last = table[table["step"] == table.groupby([*pair, "method"])["step"].transform("max")]
    last = last[last["method"].isin(methods)]
    wide = last.pivot_table(index=pair, columns="method", values="test_error")
    wide = wide.reindex(columns=list(methods)).dropna().reset_index()
    diverged = last.groupby(pair)["diverged"].any().rename("diverged").reset_index()
    changes = _steps(runs)
    changes = changes[changes["method"] == "sorted_tau"]
    counts = changes.groupby(["network", "seed"])["changes"].max().reset_index()
    return wide.merge(diverged, on=pair).merge(counts, on=["network", "seed"], how="left")


def steps(runs: Runs) -> pd.DataFrame:
    """Each block's step by index in its stage and by epoch, runs whose steps are trained."""
    return _steps(_all(runs))


def method_steps(runs: Runs) -> pd.DataFrame:
    """Return the table of `steps` for the comparison of methods."""
    return steps(runs)


def method_curves(runs: Runs) -> pd.DataFrame:
    """Return the table of `curves` for the comparison of methods."""
    return curves(runs)


def pilot(runs: Runs) -> pd.DataFrame:
    """Per time scale and seed, whether the order changed; and which time scale the rule chooses.

    The rule (README): of the time scales at which the order changes in every seed, no run diverges,
    and the last epoch's mean training error is within 5 points of the lowest, the nearest to 1 in
    ratio, and the larger of two that are equally near.
    """
    errors = collect(_all(runs), ["network", "time_scale"])
    if errors.empty:
        return errors
    errors = errors[errors["step"] == errors["step"].max()]
    counts = _steps(_all(runs), "time_scale").groupby(["time_scale", "seed"])["changes"].max()
    table = errors.merge(counts.reset_index(), on=["time_scale", "seed"], how="left")
    by_scale = table.groupby("time_scale")
    error = by_scale["train_error"].mean()
    fits = (by_scale["changes"].min() > 0) & ~by_scale["diverged"].any()
    fits &= error <= error.min() + NEAR_BEST
    return table.assign(chosen=table["time_scale"] == _nearest_to_one(fits[fits].index))


def _nearest_to_one(values: pd.Index) -> float:
    ordered = sorted(values, key=lambda value: (round(abs(np.log(value)), 9), -value))
    return float(ordered[0]) if ordered else np.nan


def cost(runs: Runs) -> pd.DataFrame:
    """Seconds of a gradient by each method, their ratios, and the extra parameters."""
    table = collect(runs["cost"], [])
    extra = table["sorted_tau_parameters"] - table["vanilla_parameters"]
    ratios = {
        "ratio": table["sorted_tau_seconds"] / table["vanilla_seconds"],
        "steps_ratio": table["steps_seconds"] / table["vanilla_seconds"],
        "sorting_ratio": table["sorted_tau_seconds"] / table["steps_seconds"],
    }
    return table.assign(**ratios, extra_parameters=extra, unexplained=extra - table["blocks"])


def _curves(runs: Sequence[Run]) -> pd.DataFrame:
    return collect(runs, ["network", "method"])


def _steps(runs: Sequence[Run], *columns: str) -> pd.DataFrame:
    trained = [run for run in runs if run.settings["method"] != "vanilla"]
    table = collect(trained, ["network", "method", *columns], "steps")
    return table if len(table) else table.assign(seed=[], changes=[])


def _all(runs: Runs) -> list[Run]:
    return [run for group in runs.values() for run in group]
