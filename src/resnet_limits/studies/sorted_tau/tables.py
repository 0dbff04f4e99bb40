"""Sorted tau: run records to tidy tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resnet_limits.runs import Run, Runs, collect
from resnet_limits.stats import CONFIDENCE, means

METHODS = ("vanilla", "sorted_tau")
PAPER = Path(__file__).with_name("paper_table1.csv")
POWER = 0.8
HALF_A_POINT = 0.5
TABLE1 = [
    "network", "status",
    "vanilla", "vanilla_low", "vanilla_high", "paper_vanilla",
    "sorted_tau", "sorted_tau_low", "sorted_tau_high", "paper_sorted_tau",
    "difference", "difference_low", "difference_high", "paper_difference",
    "pairs", "diverged", "detectable", "needed", "dataset", "epochs", "schedule",
    "paper_dataset", "paper_schedule",
]  # fmt: skip


def curves(runs: Runs) -> pd.DataFrame:
    """Measurements at the end of every epoch."""
    return collect(_all(runs), ["network", "method"])


def pairs(runs: Runs) -> pd.DataFrame:
    """Both methods' test errors at the end, one row per network and seed.

    A run that diverged counts with the error it had then, and its pair is marked.
    """
    table, pair = curves(runs), ["network", "seed", "dataset"]
    last = table[table["step"] == table.groupby([*pair, "method"])["step"].transform("max")]
    wide = last.pivot_table(index=pair, columns="method", values="test_error")
    wide = wide.reindex(columns=list(METHODS)).dropna().reset_index()
    difference = wide["sorted_tau"] - wide["vanilla"]
    diverged = last.groupby(pair)["diverged"].any().rename("diverged").reset_index()
    wins = (difference < 0).astype(int)
    return wide.assign(difference=difference, wins=wins).merge(diverged, on=pair)


def table1(runs: Runs) -> pd.DataFrame:
    """Table 1: a row for each of the paper's, and ours beside it where there are runs."""
    found = pairs(runs)
    schedules = {run.settings["network"]: run for run in _all(runs)}
    rows = []
    for paper in pd.read_csv(PAPER).to_dict("records"):
        name = paper["network"]
        ours = found[found["network"] == name]
        row = _measured(ours, schedules[name]) if len(ours) else {"status": "not run"}
        rows.append(
            {
                "network": name,
                **row,
                **{f"paper_{method}": paper[method] for method in METHODS},
                "paper_difference": round(paper["sorted_tau"] - paper["vanilla"], 2),
                "paper_dataset": paper["dataset"],
                "paper_schedule": _schedule(paper["epochs"], paper["milestones"].split(), 10),
            }
        )
    return pd.DataFrame(rows, columns=TABLE1)


def _measured(ours: pd.DataFrame, run: Run) -> dict[str, Any]:
    settings = run.settings
    row: dict[str, Any] = {"status": "run", "pairs": len(ours), "dataset": ours["dataset"].iloc[0]}
    row |= {"diverged": int(ours["diverged"].sum()), "epochs": settings["epochs"]}
    schedule = settings["schedule"]
    milestones, factor = schedule.get("milestones", []), schedule.get("factor", 1)
    row["schedule"] = _schedule(settings["epochs"], milestones, round(1 / factor))
    for column in (*METHODS, "difference"):
        line = means(ours.assign(all=0), "all", column).iloc[0]
        row |= {column: line["mean"], f"{column}_low": line["low"], f"{column}_high": line["high"]}
    return row | _power(ours["difference"])


def _schedule(epochs: int, milestones: Sequence[Any], factor: int) -> str:
    at = f", /{factor} at {', '.join(map(str, milestones))}" if milestones else ""
    return f"{epochs} epochs{at}"


def _power(differences: pd.Series) -> dict[str, float]:
    """Return what this number of pairs can detect, and the number that detects half a point."""
    from statsmodels.stats.power import TTestPower  # slow to import, and only needed here

    spread, n = float(differences.std()), len(differences)
    if n < 2 or spread == 0:
        return {"detectable": np.nan, "needed": np.nan}
    test, options = TTestPower(), {"alpha": 1 - CONFIDENCE, "power": POWER}
    effect = float(test.solve_power(effect_size=None, nobs=n, **options))
    needed = HALF_A_POINT / spread
    # From an effect of several standard deviations on, two pairs are enough.
    count = 2.0 if needed > 20 else float(test.solve_power(effect_size=needed, **options))
    return {"detectable": effect * spread, "needed": max(2, int(np.ceil(count)))}


def steps(runs: Runs) -> pd.DataFrame:
    """Each block's step by index in its stage and by epoch, runs with sorted tau."""
    sorting = [run for run in _all(runs) if run.settings["method"] == "sorted_tau"]
    return collect(sorting, ["network"], "steps")


def cost(runs: Runs) -> pd.DataFrame:
    """Seconds of a gradient by both methods, their ratio, and the extra parameters."""
    table = collect(runs["cost"], [])
    extra = table["sorted_tau_parameters"] - table["vanilla_parameters"]
    return table.assign(
        ratio=table["sorted_tau_seconds"] / table["vanilla_seconds"],
        extra_parameters=extra,
        unexplained=extra - table["blocks"],
    )


def _all(runs: Runs) -> list[Run]:
    return [run for group in runs.values() for run in group]
