"""Claims and verdicts: a claim names rows, a test and a bound; the interval decides.

docs/method.md states the rules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from resnet_limits.analysis import read_table
from resnet_limits.documents import read_json
from resnet_limits.errors import UserError, require_known
from resnet_limits.files import write_atomic
from resnet_limits.layout import Layout
from resnet_limits.power import WANTED, characteristics
from resnet_limits.spec import load_study
from resnet_limits.stats import CONFIDENCE, TESTS, Estimate, Summary, TooFewError
from resnet_limits.study_files import PAPER, PROTOCOLS, TRUNCATED, Bound, Claim

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
INCONCLUSIVE, NOT_TESTED = "inconclusive", "not tested"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTED)


@dataclass(frozen=True)
class Verdict:
    """What came out for a claim, as claims.json has it.

    Attributes
    ----------
    id, statement, kind, where, paper, figure, exact
        From the claim.
    estimate, interval, n
        Of the test; None and 0 where it was not made. The interval's ends are the limits that
        decide: one-sided ones at 95 % for a bound with one side. Exact numbers have none.
    test, bound
        In words.
    verdict, why
        One of `VERDICTS`, and the reason.
    protocol
        How the rows compare with the paper's protocol; of several, the farthest from it.
    power, power_at, size, needed_n
        Operating characteristics of the test (`power.Characteristics`).
    bound_range, sensitivity
        The bounds over which the verdict stands, or half-widths of a band (None where there is no
        end), and the same in words.
    p_value
        The smallest error rate at which the verdict stands; it is less than 0.05.
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
    exact: bool = False
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    verdict: str = NOT_TESTED
    why: str = ""
    protocol: str = ""
    power: float | None = None
    power_at: str = ""
    size: float | None = None
    needed_n: str = ""
    bound_range: tuple[float | None, float | None] | None = None
    sensitivity: str = ""
    p_value: float | None = None
    data: str = ""
    note: str = ""


def judge_study(study: str, scale: str, layout: Layout) -> None:
    """Judge all claims of a study by its tables and write ``claims.json``."""
    spec = load_study(study)
    tables = {
        name: read_table(study, name, scale, layout)
        for name in sorted({claim.table for claim in spec.claims})
    }
    verdicts = [
        judge(claim, tables[claim.table], scale, read_reference(claim, spec.folder))
        for claim in spec.claims
    ]
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


def judge(
    claim: Claim, table: pd.DataFrame, scale: str, reference: Summary | None = None
) -> Verdict:
    """Return a claim's verdict with all that led to it.

    Parameters
    ----------
    claim
        An entry of claims.yaml.
    table
        The tidy table that it names.
    scale
        The scale that the table was made at.
    reference
        The published runs that the claim compares with (`read_reference`).
    """
    untested = Verdict(
        id=claim.id,
        statement=claim.statement,
        kind=claim.kind,
        where=claim.where,
        paper=claim.paper,
        figure=claim.figure,
        test=describe_test(claim),
        bound=f"{describe_bound(claim.bound)} ({claim.bound.source})",
        exact=claim.exact,
        note=claim.note,
    )
    if table.empty:
        return replace(untested, why=f"nothing that it needs was run at scale {scale}")
    rows = select(table, claim.select, claim.id)
    if rows.empty and "diverged" in table and table["diverged"].all():
        return replace(untested, verdict=INCONCLUSIVE, why="every run diverged")
    if rows.empty:
        return replace(untested, why=_nothing_selected(claim, table, scale))
    _check_columns(claim, rows)
    datasets = sorted(rows["dataset"].unique())
    untested = replace(
        untested, data=f"{', '.join(datasets)}; scale {scale}", protocol=_protocol(rows)
    )
    unfit = [claim.not_tested_on[name] for name in datasets if name in claim.not_tested_on]
    unfit = unfit or _departures(claim, rows)
    if unfit:
        return replace(untested, why="; ".join(unfit))
    try:
        estimate = _estimate(claim, rows, reference, limits(claim.bound))
    except TooFewError as error:
        return replace(untested, n=len(rows), verdict=INCONCLUSIVE, why=f"{error}")
    judged = replace(
        untested,
        estimate=_or_none(estimate.value),
        n=0 if claim.exact else estimate.n,
        note=_sentences(claim.note, estimate.note, _divergence(rows)),
    )
    verdict, why = decide(estimate, claim.bound, claim.least_n)
    if not _is_finite(estimate):
        return replace(judged, verdict=verdict, why=why)
    judged = replace(judged, verdict=verdict, why=why, **_sensitivity(claim, estimate, verdict))
    if not claim.exact:
        found = characteristics(
            claim, rows, estimate, reference, limits(claim.bound), strictest(claim)
        )
        judged = replace(
            judged,
            interval=(estimate.low, estimate.high),
            p_value=_p_value(claim, rows, reference, verdict),
            **vars(found),
        )
    return _with_doubts(judged, claim)


def limits(bound: Bound) -> float:
    """Return the confidence of the interval whose ends decide.

    Both ends of a 90 % interval are one-sided limits at 95 %.
    """
    return 2 * CONFIDENCE - 1 if bound.one_sided else CONFIDENCE


def decide(estimate: Estimate, bound: Bound, least_n: int = 1) -> tuple[str, str]:
    """Return the verdict and why: the whole interval must lie on one side of the bound."""
    lowest, highest = bound.ends
    region = describe_bound(bound)
    if estimate.n < least_n:
        return INCONCLUSIVE, f"{estimate.n} observations; the claim asks for {least_n}"
    if not _is_finite(estimate):
        return INCONCLUSIVE, "the estimate or its interval is not finite"
    is_number = estimate.low == estimate.high
    if bound.has(estimate.low, estimate.high):
        return REPRODUCED, f"{'the number' if is_number else 'the whole interval'} is {region}"
    if is_number:
        return NOT_REPRODUCED, f"the number is not {region}"
    if estimate.high < lowest or highest < estimate.low:
        return NOT_REPRODUCED, f"no part of the interval is {region}"
    return INCONCLUSIVE, f"the interval is partly {region}, partly not"


def standing(estimate: Estimate, bound: Bound, verdict: str) -> tuple[float, float]:
    """Return the bounds over which a verdict stands; of a band, its half-widths about its middle.

    They follow from the interval's ends: a claim that something is above a bound is reproduced
    for every bound below the lower end, not reproduced above the upper one, and neither between.
    """
    lowest, highest = bound.ends
    if bound.one_sided:
        below, above = (-math.inf, estimate.low), (estimate.high, math.inf)
        wanted, other = (above, below) if bound.above is None else (below, above)
        between = (estimate.low, estimate.high)
    else:
        middle = (lowest + highest) / 2
        inner = max(estimate.low - middle, middle - estimate.high, 0.0)
        outer = max(estimate.high - middle, middle - estimate.low)
        wanted, other, between = (outer, math.inf), (0.0, inner), (inner, outer)
    return {REPRODUCED: wanted, NOT_REPRODUCED: other}.get(verdict, between)


def doubled(claim: Claim) -> tuple[float, float] | None:
    """Return the bounds over which a verdict must stand: half to twice the margin.

    The margin of a bound is its distance from what would be exactly true: the claim's effect, all
    or none of a proportion, or else 0. That of a band is its half-width. A bound of the paper, and
    0 as the bound of a sign, have none.
    """
    lowest, highest = claim.bound.ends
    if not claim.bound.is_ours:
        return None
    if not claim.bound.one_sided:
        return (highest - lowest) / 4, highest - lowest
    bound, is_below = (highest, True) if claim.bound.above is None else (lowest, False)
    origin = 0.0
    if claim.effect is not None:
        origin = claim.effect
    elif claim.test == "proportion":
        origin = 0.0 if is_below else 1.0
    if bound in (0, origin):
        return None
    near, far = (origin + factor * (bound - origin) for factor in (0.5, 2))
    return min(near, far), max(near, far)


def strictest(claim: Claim) -> Bound:
    """Return the bound within which an interval must lie for the verdict `reproduced`."""
    margins = doubled(claim)
    if margins is None:
        return claim.bound
    lowest, highest = claim.bound.ends
    if not claim.bound.one_sided:
        middle = (lowest + highest) / 2
        ends = {"above": middle - margins[0], "below": middle + margins[0]}
    else:
        ends = {"below": margins[0]} if claim.bound.above is None else {"above": margins[1]}
    return claim.bound.model_copy(update=ends)


def read_reference(claim: Claim, folder: Path) -> Summary | None:
    """Read the published runs that a claim compares with.

    Raises
    ------
    UserError
        If a column is missing, or it is not one row that is selected.
    """
    wanted = claim.reference
    if wanted is None:
        return None
    table = pd.read_csv(folder / wanted.file)
    where = f"claims.yaml: {claim.id}.reference"
    for column in filter(None, [wanted.mean, wanted.sd, wanted.n, wanted.least, wanted.largest]):
        require_known(column, table.columns, f"{where}: column")
    rows = select(table, wanted.select, f"{claim.id}.reference")
    if len(rows) != 1:
        raise UserError(f"{where}.select: {len(rows)} rows of {wanted.file}; select one.")
    row = rows.iloc[0]
    mean, sd = float(row[wanted.mean]), float(row[wanted.sd])
    return Summary(
        mean=mean,
        sd=sd,
        n=int(row[wanted.n]),
        # Where the range is not published, two standard deviations stand for it.
        least=float(row[wanted.least]) if wanted.least else mean - 2 * sd,
        largest=float(row[wanted.largest]) if wanted.largest else mean + 2 * sd,
        one_draw=wanted.one_draw,
    )


def holm(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the verdicts on claims once Holm's correction has been made for all of them.

    A verdict that does not survive is inconclusive. Checks and exact numbers have none.
    """
    tested = [v for v in verdicts if v.kind == "claim" and v.interval is not None]
    corrected = {}
    allowed, stopped = len(tested), False
    for verdict in sorted(tested, key=lambda v: 1.0 if v.p_value is None else v.p_value):
        error = 1.0 if verdict.p_value is None else verdict.p_value
        stopped = stopped or error > (1 - CONFIDENCE) / allowed
        corrected[id(verdict)] = INCONCLUSIVE if stopped else verdict.verdict
        allowed -= 1
    return [corrected.get(id(verdict), "") for verdict in verdicts]


def select(table: pd.DataFrame, wanted: Mapping[str, Any], claim: str) -> pd.DataFrame:
    """Return the rows whose columns have the wanted value, or one of the wanted values."""
    for column, value in wanted.items():
        require_known(column, table.columns, f"claims.yaml: {claim}.select: column")
        values = value if isinstance(value, list) else [value]
        table = table[table[column].isin(values)]
    return table


def _check_columns(claim: Claim, rows: pd.DataFrame) -> None:
    """Refuse a claim that names a column which its rows lack, whether they can decide it or not."""
    for key, columns in claim.columns.items():
        for column in columns:
            where = f"claims.yaml: {claim.id}.{key}: table {claim.table}: column"
            require_known(column, rows.columns, where)


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


def describe_test(claim: Claim) -> str:
    """Return a claim's test in words, arguments included."""
    told = {**claim.arguments, **({"replicate": claim.replicate} if claim.replicates else {})}
    arguments = ", ".join(f"{key}={value}" for key, value in told.items())
    if claim.exact:
        return f"{claim.test}({arguments}), exact"
    sides = "one-sided limits" if claim.bound.one_sided else "interval"
    return f"{claim.test}({arguments}), {CONFIDENCE:.0%} {sides}"


def _estimate(
    claim: Claim, rows: pd.DataFrame, reference: Summary | None, confidence: float
) -> Estimate:
    told = dict(claim.arguments)
    if not claim.exact:
        told["confidence"] = confidence
    if claim.replicates:
        told["replicate"] = claim.replicates
    if reference is not None:
        told["reference"] = reference
    try:
        return TESTS[claim.test](rows, **told)
    except (KeyError, TypeError, UserError) as error:
        raise UserError(
            f"claims.yaml: {claim.id}: test {claim.test!r} cannot use its arguments: "
            f"{str(error).rstrip('.')}. The columns are {', '.join(rows.columns)}."
        ) from None


def _protocol(rows: pd.DataFrame) -> str:
    """Return the protocol farthest from the paper's among some rows."""
    found = set(rows.get("protocol", []))
    return max(found, key=PROTOCOLS.index, default="")


def _departures(claim: Claim, rows: pd.DataFrame) -> list[str]:
    """Say why rows cannot decide a claim about the paper's protocol."""
    if claim.kind == "check" or "protocol" not in rows:
        return []
    fit = (PAPER, TRUNCATED) if claim.truncated else (PAPER,)
    unfit = rows[~rows["protocol"].isin(fit)]
    texts = unfit["protocol"] + ": " + unfit["departures"]
    return [f"not the paper's protocol but {text}" for text in sorted(set(texts))]


def _sensitivity(claim: Claim, estimate: Estimate, verdict: str) -> dict[str, Any]:
    low, high = standing(estimate, claim.bound, verdict)
    what, none = ("bounds", -math.inf) if claim.bound.one_sided else ("half-widths", 0.0)
    words = f"{what} from {low:.3g} to {high:.3g}"
    if high == math.inf:
        words = f"all {what}" if low == none else f"{what} above {low:.3g}"
    elif low == none:
        words = f"{what} below {high:.3g}"
    return {"bound_range": (_or_none(low), _or_none(high)), "sensitivity": words}


def _with_doubts(judged: Verdict, claim: Claim) -> Verdict:
    """Make a verdict inconclusive that hangs on a bound of ours; name the power of the test."""
    needed, range_ = doubled(claim), judged.bound_range
    if needed and range_ and judged.verdict in (REPRODUCED, NOT_REPRODUCED):
        low, high = range_
        stands = (low is None or low <= needed[0]) and (high is None or needed[1] <= high)
        if not stands:
            why = (
                f"{judged.why}, but that is a bound of ours, and {judged.verdict} stands for "
                f"{judged.sensitivity} only, not from {needed[0]:.3g} to {needed[1]:.3g}"
            )
            judged = replace(judged, verdict=INCONCLUSIVE, why=why)
    if judged.verdict == INCONCLUSIVE and judged.power is not None and judged.power < WANTED:
        need = f"the test's power is {judged.power:.2f}, {WANTED:g} needs n = {judged.needed_n}"
        judged = replace(judged, why=f"{judged.why}; {need}")
    nominal = (1 - limits(claim.bound)) / 2
    if judged.size is not None and judged.size > 1.5 * nominal:
        note = f"the test's size, {judged.size:.2f}, is above the nominal {nominal:g}"
        judged = replace(judged, note=_sentences(judged.note, f"{note}: the data are not normal"))
    return judged


def _p_value(
    claim: Claim, rows: pd.DataFrame, reference: Summary | None, verdict: str
) -> float | None:
    """Return the smallest error rate at which a verdict stands; None if there is none."""
    if verdict not in (REPRODUCED, NOT_REPRODUCED):
        return None
    sides = 2 if claim.bound.one_sided else 1
    stands, falls = 1 - CONFIDENCE, 1e-12
    for _ in range(15):
        middle = math.sqrt(stands * falls)
        estimate = _estimate(claim, rows, reference, 1 - sides * middle)
        same = decide(estimate, claim.bound, claim.least_n)[0] == verdict
        stands, falls = (middle, falls) if same else (stands, middle)
    return stands


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_finite(estimate: Estimate) -> bool:
    return all(map(math.isfinite, (estimate.value, estimate.low, estimate.high)))


def _sentences(*notes: str) -> str:
    return " ".join(f"{note.rstrip('.')}." for note in notes if note)


def _divergence(rows: pd.DataFrame) -> str:
    if "diverged" not in rows:
        return ""
    count = int(rows["diverged"].sum())
    return f"{count} of {len(rows)} rows are of runs that diverged" if count else ""
