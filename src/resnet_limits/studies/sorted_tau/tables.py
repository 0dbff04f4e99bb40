"""Sorted tau: run records to tidy tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resnet_limits.runs import Run, Runs, collect
from resnet_limits.stats import CONFIDENCE, TooFewError, fit_line, means

METHODS = ("vanilla", "sorted_tau")
PAPER = Path(__file__).with_name("paper_table1.csv")
POWER = 0.8
HALF_A_POINT = 0.5
CASE = ["activation", "start", "depth"]


def curves(runs: Runs) -> pd.DataFrame:
    """Measurements at the end of every epoch."""
    return _collect(runs, ["network", "method"], "metrics", CURVES)


CURVES = ["step", "seed", "epoch", "train_loss", "train_error", "test_loss", "test_error"]


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
    schedules = {run.settings["network"]: run for group in runs.values() for run in group}
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


TABLE1 = [
    "network", "status",
    "vanilla", "vanilla_low", "vanilla_high", "paper_vanilla",
    "sorted_tau", "sorted_tau_low", "sorted_tau_high", "paper_sorted_tau",
    "difference", "difference_low", "difference_high", "paper_difference",
    "pairs", "diverged", "detectable", "needed", "dataset", "epochs", "schedule",
    "paper_dataset", "paper_schedule",
]  # fmt: skip


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


def _schedule(epochs: int, milestones: list, factor: int) -> str:
    at = f", /{factor} at {', '.join(map(str, milestones))}" if milestones else ""
    return f"{epochs} epochs{at}"


def _power(differences: pd.Series) -> dict[str, float]:
    """Return what so many pairs can detect, and how many find half a point, by their spread."""
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
    """Each block's step by place in its stage and epoch, sorted-tau runs."""
    sorting = {
        name: [run for run in group if run.settings["method"] == "sorted_tau"]
        for name, group in runs.items()
    }
    return _collect(sorting, ["network"], "steps", STEPS)


STEPS = ["step", "stage", "place", "block", "size", "changes", "seed", "epoch"]


def cost(runs: Runs) -> pd.DataFrame:
    """Seconds of a gradient by both methods, their ratio, and the extra parameters."""
    table = collect(runs["cost"], [])
    extra = table["sorted_tau_parameters"] - table["vanilla_parameters"]
    return table.assign(
        ratio=table["sorted_tau_seconds"] / table["vanilla_seconds"],
        extra_parameters=extra,
        unexplained=extra - table["blocks"],
    )


def expansion(runs: Runs) -> pd.DataFrame:
    """Norms of terms per seed, with mean and interval over seeds, and 1/k! from the first."""
    table = _dense(runs, "terms")
    group = [*CASE, "trained", "order"]
    for column in ("norm", "remainder"):
        summary = means(table, group, column).drop(columns="n")
        names = {name: f"{column}_{name}" for name in ("mean", "low", "high")}
        table = table.merge(summary.rename(columns=names), on=group)
    first = table[table["order"] == 1].set_index([*CASE, "trained", "seed"])["norm"]
    firsts = first.reindex(pd.MultiIndex.from_frame(table[[*CASE, "trained", "seed"]]))
    return table.assign(factorial=firsts.to_numpy() / table["order"].map(math.factorial))


def expansion_slopes(runs: Runs) -> pd.DataFrame:
    """Per network, slope of the log ratio of successive terms over the log of their order."""
    rows = []
    keys = [*CASE, "trained", "deepest", "seed", "dataset"]
    for key, terms in _dense(runs, "terms").groupby(keys, sort=False):
        norms = terms.sort_values("order")["norm"].to_numpy()[1:]
        norms = norms[norms > 0]  # L linear blocks have no terms beyond order L
        ratios = np.diff(np.log(norms))
        try:
            value = fit_line(np.log(np.arange(2, len(norms) + 1)), ratios).slope.value
        except TooFewError:
            value = np.nan
        rows.append({**dict(zip(keys, key, strict=True)), "slope": value})
    return pd.DataFrame(rows)


def adjoint(runs: Runs) -> pd.DataFrame:
    """Norm of the adjoint over depth relative to its end: mean, least and greatest of seeds."""
    table = _dense(runs, "adjoint")
    keys = [*CASE, "trained", "deepest", "time", "dataset"]
    return table.groupby(keys, sort=False)["ratio"].agg(["mean", "min", "max"]).reset_index()


def gradients(runs: Runs) -> pd.DataFrame:
    """Per network, before and after training: adjoint's extremes, gradients' ratio."""
    table = _dense(runs, "metrics")
    table = table[(table["step"] == 0) | table["trained"]]
    ratio = table["gradient"] / table["shallow_gradient"]
    return table.assign(
        adjoint_factor=np.maximum(table["adjoint_most"], 1 / table["adjoint_least"]),
        gradient_ratio=ratio,
        gradient_factor=np.maximum(ratio, 1 / ratio),
    )


def _dense(runs: Runs, probe: str) -> pd.DataFrame:
    """Return a probe's rows, marking the last step and the greatest depth."""
    table = collect(runs["dense"], [], probe)
    last, deepest = table["step"] == table["step"].max(), table["depth"] == table["depth"].max()
    return table.assign(trained=last, deepest=deepest)


def _collect(runs: Runs, columns: list[str], probe: str, rest: list[str]) -> pd.DataFrame:
    """Stack a probe of all experiments; where nothing was run, an empty table."""
    frames = [collect(group, columns, probe) for group in runs.values() if group]
    if not frames:
        return pd.DataFrame(columns=[*rest, *columns, "diverged", "dataset"])
    return pd.concat(frames, ignore_index=True)
