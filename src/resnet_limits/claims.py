"""Claims and verdicts: a claim names rows, a test and a bound; the interval decides."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from resnet_limits.analysis import read_table
from resnet_limits.documents import read_json
from resnet_limits.errors import UserError, require_known
from resnet_limits.files import write_atomic
from resnet_limits.layout import Layout
from resnet_limits.spec import load_study
from resnet_limits.stats import CONFIDENCE, TESTS, Estimate, TooFewError
from resnet_limits.study_files import Bound, Claim

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
INCONCLUSIVE, NOT_TESTED = "inconclusive", "not tested"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTED)


@dataclass(frozen=True)
class Verdict:
    """What came out for a claim, as claims.json has it.

    Attributes
    ----------
    id, statement, kind, where, paper, figure
        From the claim.
    estimate, interval, n
        Of the test; None and 0 where it was not made.
    test, bound
        In words.
    verdict, why
        One of `VERDICTS`, and the reason.
    data
        Data sets and scale.
    note
        What a reader should know besides.
    """

    id: str
    statement: str
    kind: str
    where: str
    paper: str
    figure: str
    test: str
    bound: str
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    verdict: str = NOT_TESTED
    why: str = ""
    data: str = ""
    note: str = ""


def judge_study(study: str, scale: str, layout: Layout) -> None:
    """Judge all claims of a study by its tables and write ``claims.json``."""
    claims = load_study(study).claims
    tables = {
        name: read_table(study, name, scale, layout)
        for name in sorted({claim.table for claim in claims})
    }
    verdicts = [judge(claim, tables[claim.table], scale) for claim in claims]
    path = layout.claims(scale, study)
    write_atomic(path, json.dumps([asdict(v) for v in verdicts], indent=1) + "\n")
    print(path)


def read_verdicts(study: str, scale: str, layout: Layout) -> list[Verdict]:
    """Read what `judge_study` wrote; `UserError` if it is missing or damaged."""
    path = layout.claims(scale, study)
    try:
        return TypeAdapter(list[Verdict]).validate_python(read_json(path))
    except (OSError, ValidationError, UserError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path}: no readable verdicts ({why}); run Snakemake.") from None


def judge(claim: Claim, table: pd.DataFrame, scale: str) -> Verdict:
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
    untested = Verdict(
        id=claim.id,
        statement=claim.statement,
        kind=claim.kind,
        where=claim.where,
        paper=claim.paper,
        figure=claim.figure,
        test=describe_test(claim),
        bound=_bound_and_source(claim.bound),
        note=claim.note,
    )
    if scale in claim.not_tested_at:
        return replace(untested, why=claim.not_tested_at[scale])
    if table.empty:
        return replace(untested, why=f"nothing that it needs was run at scale {scale}")
    rows = select(table, claim.select, claim.id)
    if rows.empty and "diverged" in table and table["diverged"].all():
        return replace(untested, verdict=INCONCLUSIVE, why="every run diverged")
    if rows.empty:
        return replace(untested, why=_nothing_selected(claim, table, scale))
    datasets = sorted(rows["dataset"].unique())
    data = f"{', '.join(datasets)}; scale {scale}"
    unfit = [claim.not_tested_on[name] for name in datasets if name in claim.not_tested_on]
    if unfit:
        return replace(untested, data=data, why="; ".join(unfit))
    try:
        estimate = _estimate(claim, rows)
    except TooFewError as error:
        return replace(untested, data=data, n=len(rows), verdict=INCONCLUSIVE, why=f"{error}")
    verdict, why = decide(estimate, claim.bound, claim.least_n)
    return replace(
        untested,
        data=data,
        estimate=_or_none(estimate.value),
        interval=_interval(estimate),
        n=estimate.n,
        verdict=verdict,
        why=why,
        note=_sentences(claim.note, estimate.note, _divergence(rows)),
    )


def decide(estimate: Estimate, bound: Bound, least_n: int = 1) -> tuple[str, str]:
    """Return the verdict and why: the whole interval must lie on one side of the bound."""
    lowest = -math.inf if bound.above is None else bound.above
    highest = math.inf if bound.below is None else bound.below
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


def _nothing_selected(claim: Claim, table: pd.DataFrame, scale: str) -> str:
    wanted = ", ".join(f"{column} = {value}" for column, value in claim.select.items())
    there = "; ".join(
        f"{column}: {', '.join(map(str, table[column].unique()[:12]))}" for column in claim.select
    )
    return f"no run of scale {scale} has {wanted} (there are {there})"


def describe_bound(bound: Bound) -> str:
    """Return a bound in words: ``below -0.5``."""
    sides = {"above": bound.above, "below": bound.below}
    return " and ".join(f"{side} {value:g}" for side, value in sides.items() if value is not None)


def _bound_and_source(bound: Bound) -> str:
    return describe_bound(bound) + (f" ({bound.source})" if bound.source else "")


def describe_test(claim: Claim) -> str:
    """Return a claim's test in words, arguments included."""
    arguments = ", ".join(f"{key}={value}" for key, value in claim.arguments.items())
    return f"{claim.test}({arguments}), {CONFIDENCE:.0%} interval"


def _estimate(claim: Claim, rows: pd.DataFrame) -> Estimate:
    try:
        return TESTS[claim.test](rows, **claim.arguments)
    except (KeyError, TypeError, UserError) as error:
        raise UserError(
            f"claims.yaml: {claim.id}: test {claim.test!r} cannot use its arguments: "
            f"{str(error).rstrip('.')}. The columns are {', '.join(rows.columns)}."
        ) from None


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _interval(estimate: Estimate) -> tuple[float, float] | None:
    ends = (estimate.low, estimate.high)
    return ends if all(map(math.isfinite, ends)) else None


def _sentences(*notes: str) -> str:
    return " ".join(f"{note.rstrip('.')}." for note in notes if note)


def _divergence(rows: pd.DataFrame) -> str:
    if "diverged" not in rows:
        return ""
    count = int(rows["diverged"].sum())
    return f"{count} of {len(rows)} rows are of runs that diverged" if count else ""
