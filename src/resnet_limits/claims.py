"""Claims and verdicts: a claim names rows, a test and a bound; the interval decides."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from resnet_limits.analysis import read_table
from resnet_limits.errors import UserError, require_known
from resnet_limits.files import write_whole
from resnet_limits.spec import load_study
from resnet_limits.stats import CONFIDENCE, TESTS, Estimate, TooFewError

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
INCONCLUSIVE, NOT_TESTED = "inconclusive", "not tested"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTED)


def judge_study(study: str, scale: str, results: Path) -> None:
    """Judge all claims of a study by its tables and write ``claims.json``."""
    claims = load_study(study).claims
    tables = {
        name: read_table(results, scale, study, name)
        for name in sorted({claim["table"] for claim in claims})
    }
    verdicts = [judge(claim, tables[claim["table"]], scale) for claim in claims]
    path = results / scale / study / "claims.json"
    write_whole(path, json.dumps(verdicts, indent=1) + "\n")
    print(path)


def judge(claim: Mapping[str, Any], table: pd.DataFrame, scale: str) -> dict[str, Any]:
    """Return a claim's verdict with estimate, interval, n, test, bound and the reason.

    Parameters
    ----------
    claim
        An entry of claims.yaml.
    table
        The tidy table that it names.
    scale
        The scale that the table was made at.
    """
    result = {
        "id": claim["id"],
        "statement": claim["statement"],
        "kind": claim.get("kind", "claim"),
        "where": claim["where"],
        "paper": claim.get("paper", ""),
        "figure": claim.get("figure", ""),
        "estimate": None,
        "interval": None,
        "n": 0,
        "test": describe_test(claim),
        "bound": _bound_and_source(claim["bound"]),
        "verdict": NOT_TESTED,
        "data": "",
        "note": claim.get("note", ""),
    }
    if scale in claim.get("not_tested_at", {}):
        return result | {"why": claim["not_tested_at"][scale]}
    rows = select(table, claim.get("select", {}), claim["id"])
    if rows.empty:
        return result | {"why": _nothing_selected(claim, table, scale)}
    datasets = sorted(rows["dataset"].unique())
    result["data"] = f"{', '.join(datasets)}; scale {scale}"
    unfit = claim.get("not_tested_on", {})
    if any(name in unfit for name in datasets):
        return result | {"why": "; ".join(unfit[name] for name in datasets if name in unfit)}
    try:
        estimate = _estimate(claim, rows)
    except TooFewError as error:
        return result | {"n": len(rows), "verdict": INCONCLUSIVE, "why": f"{error}"}
    verdict, why = decide(estimate, claim["bound"], claim.get("least_n", 1))
    return result | {
        "estimate": estimate.value,
        "interval": [estimate.low, estimate.high],
        "n": estimate.n,
        "verdict": verdict,
        "why": why,
        "note": _sentences(claim.get("note"), estimate.note, _divergence(rows)),
    }


def decide(estimate: Estimate, bound: Mapping[str, Any], least_n: int = 1) -> tuple[str, str]:
    """Return the verdict and why: the whole interval must lie on one side of the bound."""
    lowest, highest = bound.get("above", -math.inf), bound.get("below", math.inf)
    region = describe_bound(bound)
    if estimate.n < least_n:
        return INCONCLUSIVE, f"{estimate.n} observations; the claim asks for {least_n}"
    if not all(map(math.isfinite, (estimate.value, estimate.low, estimate.high))):
        return INCONCLUSIVE, "the estimate or its interval is not finite"
    if lowest < estimate.low and estimate.high < highest:
        return REPRODUCED, f"the whole interval is {region}"
    if estimate.high < lowest or highest < estimate.low:
        return NOT_REPRODUCED, f"no part of the interval is {region}"
    return INCONCLUSIVE, f"the interval is partly {region}, partly not"


def select(table: pd.DataFrame, wanted: Mapping[str, Any], claim: str) -> pd.DataFrame:
    """Return the rows whose columns have the wanted value, or one of the wanted values."""
    for column, value in wanted.items():
        require_known(column, table.columns, f"claims.yaml: {claim}.select: column")
        values = value if isinstance(value, list) else [value]
        table = table[table[column].isin(values)]
    return table


def _nothing_selected(claim: Mapping[str, Any], table: pd.DataFrame, scale: str) -> str:
    wanted = ", ".join(f"{column} = {value}" for column, value in claim["select"].items())
    there = "; ".join(
        f"{column}: {', '.join(map(str, table[column].unique()[:12]))}"
        for column in claim["select"]
    )
    return f"no run of scale {scale} has {wanted} (there are {there})"


def describe_bound(bound: Mapping[str, Any]) -> str:
    """Return a bound in words: ``below -0.5``."""
    return " and ".join(f"{side} {bound[side]:g}" for side in ("above", "below") if side in bound)


def _bound_and_source(bound: Mapping[str, Any]) -> str:
    source = f" ({bound['source']})" if "source" in bound else ""
    return describe_bound(bound) + source


def describe_test(claim: Mapping[str, Any]) -> str:
    """Return a claim's test in words, arguments included."""
    arguments = ", ".join(f"{key}={value}" for key, value in claim.get("arguments", {}).items())
    return f"{claim['test']}({arguments}), {CONFIDENCE:.0%} interval"


def _estimate(claim: Mapping[str, Any], rows: pd.DataFrame) -> Estimate:
    where = f"claims.yaml: {claim['id']}"
    require_known(claim["test"], TESTS, f"{where}.test:")
    test, arguments = TESTS[claim["test"]], claim.get("arguments", {})
    known = [name for name in inspect.signature(test).parameters if name != "rows"]
    for name in arguments:
        require_known(name, known, f"{where}.arguments:")
    try:
        return test(rows, **arguments)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: test {claim['test']!r} cannot use its arguments: {error}"
        ) from None


def _sentences(*notes: str | None) -> str:
    return " ".join(f"{note.rstrip('.')}." for note in notes if note)


def _divergence(rows: pd.DataFrame) -> str:
    if "diverged" not in rows:
        return ""
    count = int(rows["diverged"].sum())
    return f"{count} of {len(rows)} rows are of runs that diverged" if count else ""
