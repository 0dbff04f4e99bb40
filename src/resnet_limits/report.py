"""``claims.csv`` and ``report.html``: what came out, for a reader."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from resnet_limits.analysis import read_table, run_folder
from resnet_limits.claims import VERDICTS
from resnet_limits.errors import UserError
from resnet_limits.files import write_table, write_whole
from resnet_limits.record import git_commit, read_record, source_hash
from resnet_limits.recorded import manifest
from resnet_limits.spec import Study, load_study

CLAIM_COLUMNS = (
    "study", "id", "kind", "verdict", "estimate", "low", "high", "n", "test", "bound", "paper",
    "statement", "where", "why", "data", "note",
)  # fmt: skip


def write_report(studies: Sequence[str], scale: str, results: Path, figures: Path) -> None:
    """Write ``results/<scale>/claims.csv`` and the self-contained page ``report.html``."""
    sections = [_section(load_study(name), scale, results, figures) for name in studies]
    write_table(results / scale / "claims.csv", claims_table(sections))
    page = results / scale / "report.html"
    write_whole(page, render(sections, scale))
    print(page)


@dataclass(frozen=True)
class Section:
    """What the page shows of one study."""

    study: Study
    claims: list[dict[str, Any]]
    figures: dict[str, str]
    tables: dict[str, pd.DataFrame]
    runs: list[dict[str, Any]]
    recorded: dict[str, Any] | None


def claims_table(sections: Sequence[Section]) -> pd.DataFrame:
    """Return all verdicts, one row each."""
    rows = []
    for section in sections:
        for claim in section.claims:
            low, high = claim["interval"] or (None, None)
            rows.append({**claim, "study": section.study.name, "low": low, "high": high})
    return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


def render(sections: Sequence[Section], scale: str) -> str:
    """Return the page's HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = _number
    environment.filters["slug"] = lambda verdict: verdict.replace(" ", "-")
    template = resources.files("resnet_limits").joinpath("report.html.j2").read_text("utf-8")
    claims = [claim for section in sections for claim in section.claims]
    counts = {
        kind: Counter(claim["verdict"] for claim in claims if claim["kind"] == kind)
        for kind in ("claim", "check")
    }
    return environment.from_string(template).render(
        sections=sections,
        scale=scale,
        commit=git_commit(),
        verdicts=VERDICTS,
        counts=counts,
    )


def _section(study: Study, scale: str, results: Path, figures: Path) -> Section:
    recorded = manifest(results, study.name) if scale == "recorded" else None
    runs_scale = recorded["scale"] if recorded else scale
    runs = []
    for config in study.runs(runs_scale):
        folder = run_folder(results, {**config, "scale": scale})
        runs.append(_run_row(read_record(folder / "record.json")))
    images = {name: _image(figures / scale / study.name / f"{name}.png") for name in study.figures}
    verdicts = _claims(results / scale / study.name / "claims.json")
    tables = {
        name: with_intervals(read_table(results, scale, study.name, name))
        for name, table in study.tables.items()
        if table.get("shown")
    }
    return Section(study, verdicts, images, tables, runs, recorded)


def _claims(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: no readable verdicts ({error}); run Snakemake.") from None


def _image(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError:
        raise UserError(f"{path}: no such figure; run Snakemake to draw it.") from None


def _run_row(record: Mapping[str, Any]) -> dict[str, Any]:
    config = record["config"]
    outcome, provenance, timing = record["outcome"], record["provenance"], record["timing"]
    return {
        "run": f"{config['experiment']}/{config['run']}",
        "data": f"{record['data']['name']} ({record['data']['hash'][:8]})",
        "state": outcome["state"],
        "members": outcome["members"],
        "diverged": len(outcome["diverged"]),
        "seconds": timing["seconds"],
        "memory": timing["peak_memory_mb"],
        "device": f"{provenance['device']}, {_count(provenance['threads'], 'thread')}",
        "commit": provenance["commit"],
        "torch": provenance["versions"]["torch"],
        "current": provenance["sources"] == source_hash(config["study"], config["experiment"]),
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
