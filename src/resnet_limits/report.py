"""``claims.csv`` and ``report.html``: what came out, for a reader."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL import Image

from resnet_limits.analysis import finished_runs, read_table
from resnet_limits.archive import completeness, read_manifest
from resnet_limits.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_TESTED,
    REPRODUCED,
    Verdict,
    describe_bound,
    holm,
    read_reference,
    read_verdicts,
)
from resnet_limits.errors import UserError
from resnet_limits.files import write_atomic, write_table
from resnet_limits.layout import RECORDED, Layout
from resnet_limits.provenance import git_commit
from resnet_limits.runs import Run
from resnet_limits.spec import Study, load_study, some_studies, study_names
from resnet_limits.stats import CONFIDENCE
from resnet_limits.study_files import PROTOCOLS, Claim
from resnet_limits.wording import method, outcome, quantity, typeset

CLAIM_COLUMNS = (
    "study", "id", "kind", "verdict", "holm", "protocol", "exact", "estimate", "low", "high", "n",
    "p_value", "power", "power_at", "size", "needed_n", "test", "bound", "bound_low",
    "bound_high", "paper", "statement", "where", "why", "data", "note",
)  # fmt: skip

SIGNS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗", INCONCLUSIVE: "~", NOT_TESTED: "–"}


def write_report(studies: Sequence[str], scale: str, layout: Layout) -> None:
    """Write ``claims.csv`` and the self-contained page ``report.html`` of a scale.

    If the studies are not all there are, the names of both files say which ones they are about.
    """
    some = some_studies(studies)
    sections = [_section(load_study(name), scale, layout) for name in studies]
    write_table(layout.all_claims(scale, some), claims_table(sections))
    page = layout.report(scale, some)
    left_out = [load_study(name).title for name in study_names() if some and name not in some]
    write_atomic(page, render(sections, scale, left_out))
    print(page)


@dataclass(frozen=True)
class Picture:
    """A figure inside the page: its data as a URI, and its size in CSS pixels."""

    data: str
    width: int
    height: int


@dataclass(frozen=True)
class Section:
    """What the page shows of one study.

    Attributes
    ----------
    study, claims, figures, tables
        The study, its verdicts, its figures, and the tables that it shows.
    runs
        A row for each run.
    origins
        How many runs each experiment has, and where they come from.
    """

    study: Study
    claims: list[Verdict]
    figures: dict[str, Picture]
    tables: dict[str, pd.DataFrame]
    runs: list[dict[str, Any]]
    origins: list[str]

    def verdicts(self, kind: str) -> list[Verdict]:
        """Return the verdicts on claims, or on checks."""
        return [verdict for verdict in self.claims if verdict.kind == kind]


@dataclass(frozen=True)
class Row:
    """A claim with its verdict in words, and the verdict after Holm's correction."""

    study: Study
    claim: Claim
    verdict: Verdict
    holm: str

    @property
    def anchor(self) -> str:
        """The claim's permanent address within the page."""
        return f"{self.study.name}.{self.claim.id}"

    @property
    def quantity(self) -> str:
        """What the estimate is."""
        return quantity(self.claim, self._words)

    @property
    def method(self) -> str:
        """How the claim is tested."""
        return method(self.claim, self._words)

    @property
    def bound(self) -> str:
        """Where the estimate must lie."""
        return describe_bound(self.claim.bound)

    @property
    def paper(self) -> str:
        """The paper's own number, or that of the authors' published runs."""
        runs = read_reference(self.claim, self.study.folder)
        if runs is None:
            return self.claim.paper
        return f"{runs.mean:.3g} ± {runs.sd:.2g}, mean and sd of the authors' {runs.n} runs"

    @property
    def names(self) -> dict[str, str]:
        """What a note may mention: columns and values, in words, and claims, as links."""
        link = Markup('<a href="#{0}.{1}">{1}</a>')
        claims = {claim.id: link.format(self.study.name, claim.id) for claim in self.study.claims}
        return {**self._words, **claims}

    @property
    def _words(self) -> dict[str, str]:
        return self.study.tables[self.claim.table].words


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


def render(sections: Sequence[Section], scale: str, left_out: Sequence[str] = ()) -> str:
    """Return the page's HTML.

    Parameters
    ----------
    sections
        The studies, in the order of the page.
    scale
        Their scale.
    left_out
        Titles of studies that the page is not about.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "slug": _slug, "typeset": typeset}
    script = _part("js")
    claims = [claim for section in sections for claim in section.claims]
    return environment.from_string(_part("html.j2")).render(
        sections=sections,
        scale=scale,
        left_out=left_out,
        commit=git_commit(),
        signs=SIGNS,
        protocols=PROTOCOLS,
        verdicts={kind: [v for v in claims if v.kind == kind] for kind in ("claim", "check")},
        counted=lambda found: Counter(verdict.verdict for verdict in found),
        outcome=outcome,
        rows=_rows(sections),
        multiplicity=multiplicity(claims),
        style=Markup(_part("css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _rows(sections: Sequence[Section]) -> dict[str, list[Row]]:
    """Return the rows of the table of claims by study."""
    corrected = iter(holm([verdict for section in sections for verdict in section.claims]))
    rows: dict[str, list[Row]] = {}
    for section in sections:
        claims = {claim.id: claim for claim in section.study.claims}
        rows[section.study.name] = [
            Row(section.study, claims[verdict.id], verdict, next(corrected))
            for verdict in section.claims
        ]
    return rows


def _part(suffix: str) -> str:
    return resources.files("resnet_limits").joinpath(f"report.{suffix}").read_text("utf-8")


def _section(study: Study, scale: str, layout: Layout) -> Section:
    runs = {name: finished_runs(study, name, scale, layout) for name in study.experiments}
    sources = {name: study.sources(name) for name in study.experiments}
    return Section(
        study=study,
        claims=_present_verdicts(study, scale, layout),
        figures={name: picture(layout.figure(scale, study.name, name)) for name in study.figures},
        tables={
            name: with_intervals(read_table(study.name, name, scale, layout))
            for name, table in study.tables.items()
            if table.shown
        },
        runs=[_run_row(run, sources[name]) for name in runs for run in runs[name]],
        origins=_origins(study, scale, layout, {name: len(found) for name, found in runs.items()}),
    )


def _present_verdicts(study: Study, scale: str, layout: Layout) -> list[Verdict]:
    """Read the verdicts; refuse those on other claims than claims.yaml has now."""
    verdicts = read_verdicts(study.name, scale, layout)
    if [verdict.id for verdict in verdicts] != [claim.id for claim in study.claims]:
        path = layout.claims(scale, study.name)
        raise UserError(f"{path}: its claims are not those of claims.yaml; run Snakemake.")
    return verdicts


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


def picture(path: Path) -> Picture:
    """Return a figure for the page, in 256 colours: a third of the bytes, and it looks the same.

    Raises
    ------
    UserError
        If there is no such file, or it is no picture.
    """
    try:
        image = Image.open(path).convert("RGB")
    except OSError:
        raise UserError(f"{path}: no such figure; run Snakemake to draw it.") from None
    palette = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    file = io.BytesIO()
    palette.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    # Figures have twice as many pixels as they need, for sharp print and screens.
    return Picture(f"data:image/png;base64,{data}", image.width // 2, image.height // 2)


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


def _number(value: float | None) -> Markup:
    return Markup() if value is None else typeset(f"{value:.3g}")


def _slug(text: str) -> str:
    return text.replace(" ", "-")


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
