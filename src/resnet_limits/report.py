"""``claims.csv`` and ``report.html``: what came out, for a reader."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from resnet_limits.analysis import finished_runs, read_table
from resnet_limits.archive import completeness, read_manifest
from resnet_limits.claims import NOT_TESTED, VERDICTS, Verdict, holm, read_verdicts
from resnet_limits.errors import UserError
from resnet_limits.files import write_atomic, write_table
from resnet_limits.layout import RECORDED, Layout
from resnet_limits.provenance import git_commit
from resnet_limits.runs import Run
from resnet_limits.spec import Study, load_study
from resnet_limits.stats import CONFIDENCE

CLAIM_COLUMNS = (
    "study", "id", "kind", "verdict", "holm", "protocol", "exact", "estimate", "low", "high", "n",
    "p_value", "power", "power_at", "size", "needed_n", "test", "bound", "bound_low",
    "bound_high", "paper", "statement", "where", "why", "data", "note",
)  # fmt: skip


def write_report(studies: Sequence[str], scale: str, layout: Layout) -> None:
    """Write ``claims.csv`` and the self-contained page ``report.html`` of a scale."""
    sections = [_section(load_study(name), scale, layout) for name in studies]
    write_table(layout.all_claims(scale), claims_table(sections))
    page = layout.report(scale)
    write_atomic(page, render(sections, scale))
    print(page)


@dataclass(frozen=True)
class Section:
    """What the page shows of one study.

    Attributes
    ----------
    study, claims, figures, tables
        The study, its verdicts, its figures as base64 PNG, and the tables that it shows.
    runs
        A row for each run.
    origins
        How many runs each experiment has, and where they come from.
    """

    study: Study
    claims: list[Verdict]
    figures: dict[str, str]
    tables: dict[str, pd.DataFrame]
    runs: list[dict[str, Any]]
    origins: list[str]


def claims_table(sections: Sequence[Section]) -> pd.DataFrame:
    """Return all verdicts, one row each; ``holm`` is the verdict after Holm's correction."""
    named = [(section.study.name, claim) for section in sections for claim in section.claims]
    corrected = holm([claim for _, claim in named])
    rows = []
    for (study, claim), after in zip(named, corrected, strict=True):
        low, high = claim.interval or (None, None)
        first, last = claim.bound_range or (None, None)
        ends = {"low": low, "high": high, "bound_low": first, "bound_high": last}
        rows.append({**vars(claim), **ends, "study": study, "holm": after})
    return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


def multiplicity(claims: Sequence[Verdict]) -> dict[str, Any]:
    """Count the claims that are judged, and the wrong verdicts that their limits make by chance.

    Returns
    -------
    dict
        ``judged``, ``exact`` (of those, without an interval), ``tested`` (with one), ``by_chance``
        (the wrong verdicts to be expected at most), and ``lost``, the claims whose verdict Holm's
        correction for all of them makes inconclusive.
    """
    judged = [v for v in claims if v.kind == "claim" and v.verdict != NOT_TESTED]
    tested = [v for v in judged if v.interval is not None]
    lost = [
        verdict.id
        for verdict, after in zip(claims, holm(claims), strict=True)
        if after and after != verdict.verdict
    ]
    return {
        "judged": len(judged),
        "exact": sum(v.exact for v in judged),
        "tested": len(tested),
        "by_chance": (1 - CONFIDENCE) * len(tested),
        "lost": lost,
    }


def render(sections: Sequence[Section], scale: str) -> str:
    """Return the page's HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = _number
    environment.filters["slug"] = lambda verdict: verdict.replace(" ", "-")
    template = resources.files("resnet_limits").joinpath("report.html.j2").read_text("utf-8")
    claims = [claim for section in sections for claim in section.claims]
    counts = {
        kind: Counter(claim.verdict for claim in claims if claim.kind == kind)
        for kind in ("claim", "check")
    }
    return environment.from_string(template).render(
        sections=sections,
        scale=scale,
        commit=git_commit(),
        verdicts=VERDICTS,
        counts=counts,
        multiplicity=multiplicity(claims),
    )


def _section(study: Study, scale: str, layout: Layout) -> Section:
    runs = {name: finished_runs(study, name, scale, layout) for name in study.experiments}
    sources = {name: study.sources(name) for name in study.experiments}
    return Section(
        study=study,
        claims=read_verdicts(study.name, scale, layout),
        figures={name: _image(layout.figure(scale, study.name, name)) for name in study.figures},
        tables={
            name: with_intervals(read_table(study.name, name, scale, layout))
            for name, table in study.tables.items()
            if table.shown
        },
        runs=[_run_row(run, sources[name]) for name in runs for run in runs[name]],
        origins=_origins(study, scale, layout, {name: len(found) for name, found in runs.items()}),
    )


def _origins(study: Study, scale: str, layout: Layout, counts: dict[str, int]) -> list[str]:
    """Say which experiments are not complete, and at the scale ``recorded`` where each is from."""
    if scale != RECORDED:
        wanted = {name: len(study.experiment(name, scale).runs()) for name in counts}
        return [f"{n}: {counts[n]} of {wanted[n]} runs" for n in counts if counts[n] < wanted[n]]
    kept = read_manifest(study.name, layout).experiments
    sentences = []
    for name in study.experiments:
        remark = completeness(study, name, layout)
        parts = [remark] if remark else []
        if name in kept:
            commits = ", ".join(kept[name].commits)
            parts = [f"scale {kept[name].scale}, commit {commits}", *parts]
        sentences.append(f"{name}: {'; '.join(parts)}")
    return sentences


def _image(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError:
        raise UserError(f"{path}: no such figure; run Snakemake to draw it.") from None


def _run_row(run: Run, sources: str) -> dict[str, Any]:
    record = run.record
    provenance = record.provenance
    return {
        "run": f"{record.config.experiment}/{record.config.run}",
        "data": f"{record.data.name} ({record.data.hash[:8]})",
        "state": record.outcome.state,
        "members": record.outcome.members,
        "diverged": len(record.outcome.diverged),
        "seconds": record.timing.seconds,
        "memory": record.timing.peak_memory_mb,
        "device": f"{provenance.device}, {_count(provenance.threads, 'thread')}",
        "engine": " ".join(filter(None, [provenance.engine, provenance.precision])),
        "commit": provenance.commit,
        "torch": provenance.versions.get("torch", ""),
        "current": provenance.sources == sources,
    }


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table for people: ``x``, ``x_low`` and ``x_high`` as one column.

    Numbers get four digits; what is missing stays empty.
    """
    shown = table.map(_cell)
    for column in table.columns:
        ends = [f"{column}_low", f"{column}_high"]
        if set(ends) <= set(table.columns):
            low, high = (shown[end] for end in ends)
            interval = (" [" + low + ", " + high + "]").where(table[ends].notna().all(axis=1), "")
            shown[column] += interval
            shown = shown.drop(columns=ends)
    return shown


def _cell(value: Any) -> str:
    """Return a table's value for people; nothing for a missing one."""
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:.4g}"
