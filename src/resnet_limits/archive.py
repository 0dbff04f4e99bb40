"""The scale ``recorded``: raw runs kept from finished scales, never trained.

A run is kept as its record, unchanged, and its measurements, compressed. Tables, verdicts and
figures are derived from them by the rules of every other scale.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from resnet_limits.documents import read_json
from resnet_limits.errors import UserError, require_known
from resnet_limits.files import remove, remove_temporaries, write_atomic
from resnet_limits.layout import MANIFEST, RECORD, RECORDED, Layout, RunKey
from resnet_limits.locks import locked
from resnet_limits.runs import COMPRESSED, Run, read_record, read_run
from resnet_limits.settings import Model, build
from resnet_limits.spec import Study, load_study
from resnet_limits.study_files import Name

# A run's folder in its experiment's, and nowhere else.
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]
NEW, OLD = "new", "old"  # ends of the hidden folders beside a run's while it is replaced
RESTORE = "Restore it with `git checkout -- results/recorded`."


class Kept(Model):
    """What the manifest says of an experiment."""

    scale: str = Field(description="the scale that all runs were trained at")
    commits: list[str] = Field(description="of the sources that trained them")
    runs: dict[RunName, str] = Field(description="the seal of each run's record, by run")
    other_sources: list[str] = Field(
        [], description="runs that other sources trained than those of the commit that kept them"
    )


class Manifest(Model):
    """What the archive holds of a study: manifest.json."""

    experiments: dict[Name, Kept]


def record(
    study: str,
    experiments: Sequence[str],
    runs: Sequence[str],
    scale: str,
    layout: Layout,
    force: bool = False,
) -> None:
    """Add finished runs of a scale to the archive.

    Parameters
    ----------
    study, experiments, runs
        Which: all experiments of the study unless some are named, and all of an experiment's
        runs that have finished unless some are named.
    scale
        The scale that trained them.
    layout
        Where runs and archive are.
    force
        Replace runs of another scale, and keep runs that other sources trained.

    Raises
    ------
    UserError
        If a run is missing or damaged, is not what study.yaml asks for, was trained by other
        sources, or is of another scale than the experiment's runs in the archive. Then the
        archive stays as it was.
    """
    spec = load_study(study)
    if scale == RECORDED:
        raise UserError("--scale recorded: name the scale to take runs from, such as paper.")
    for name in experiments:
        require_known(name, spec.experiments, f"{study}: experiment")
    with locked(layout.manifest(study).with_name(".lock")):
        _settle(study, layout)
        try:
            _add(spec, experiments, runs, scale, layout, force)
        finally:  # also where the disk is full
            _settle(study, layout)


def _add(
    spec: Study,
    experiments: Sequence[str],
    runs: Sequence[str],
    scale: str,
    layout: Layout,
    force: bool,
) -> None:
    """Check everything, write the runs, and with the manifest make them the archive's."""
    kept = dict(read_manifest(spec.name, layout).experiments)
    found = {
        name: _finished(spec, name, runs, scale, layout) for name in experiments or spec.experiments
    }
    if not any(found.values()):
        raise UserError(
            f"{layout.study(scale, spec.name)}: no run has finished; train one, or copy it here."
        )
    entries = {
        name: _entry(spec, name, chosen, kept.get(name), layout, force)
        for name, chosen in found.items()
        if chosen
    }
    for name in entries:
        for run in found[name]:
            _write_run(run, layout)
    _write_manifest(spec, kept | entries, layout)
    for name, entry in entries.items():
        folder = layout.study(RECORDED, spec.name) / name
        _drop_others(folder, entry.runs)
        print(f"{folder}: {len(found[name])} runs of scale {scale}")
    for name in kept.keys() - spec.experiments.keys():  # which study.yaml has dropped
        remove(layout.study(RECORDED, spec.name) / name)


def _finished(
    spec: Study, experiment: str, names: Sequence[str], scale: str, layout: Layout
) -> list[Run]:
    """Read the named runs, or whichever of the grid have finished."""
    configs = spec.experiment(experiment, scale).runs()
    for name in names:
        require_known(name, configs, f"{spec.name}/{experiment}: run")
    wanted = [configs[name] for name in names or configs]
    if not names:
        wanted = [config for config in wanted if layout.record(config.key).exists()]
    return [read_run(layout.run(config.key), config) for config in wanted]


def _entry(
    spec: Study, experiment: str, runs: list[Run], kept: Kept | None, layout: Layout, force: bool
) -> Kept:
    """Return what the manifest is to say once some runs have been added."""
    scale = runs[0].record.config.scale
    for run in runs:
        for file in run.record.files:
            run.content(file)
    sources = spec.sources(experiment)
    other = {run.record.config.run for run in runs if run.record.provenance.sources != sources}
    if other and not force:
        path = layout.record(RunKey(scale, spec.name, experiment, min(other)))
        raise UserError(
            f"{path}: was trained by other sources than the present ones; "
            "retrain it, or keep it all the same with --force."
        )
    before = kept or Kept(scale=scale, commits=[], runs={})
    if before.scale != scale:
        if not force:
            raise UserError(
                f"{layout.manifest(spec.name)}: {experiment} holds runs of scale {before.scale}, "
                f"and a mixture with {scale} is no experiment; to replace them add --force."
            )
        before = Kept(scale=scale, commits=[], runs={})
    records = {run.record.config.run: run.record for run in runs}
    for name in before.runs.keys() - records.keys():
        records[name] = _archived(spec.name, experiment, name, before, layout).record
        other |= {name} & set(before.other_sources)
    # In the order of the grid, so that sums are those of the scale itself.
    grid = spec.experiment(experiment, scale).runs()
    order = [*(name for name in grid if name in records), *sorted(records.keys() - grid.keys())]
    return Kept(
        scale=scale,
        commits=sorted({record.provenance.commit for record in records.values()}),
        runs={name: records[name].seal for name in order},
        other_sources=sorted(other),
    )


def _write_run(run: Run, layout: Layout) -> None:
    """Write a run whole beside the old one, then let it take the old one's place.

    The old one stays beside it until the manifest names the new one.
    """
    target = layout.archived(run.record.config.key)
    fresh, old = _beside(target, NEW), _beside(target, OLD)
    for file in run.record.files:
        packed = lzma.compress(run.content(file))
        write_atomic(fresh / (file + COMPRESSED), packed)
    write_atomic(fresh / RECORD, (run.folder / RECORD).read_bytes())
    if target.exists():
        target.rename(old)
    fresh.rename(target)


def _beside(target: Path, part: str) -> Path:
    return target.with_name(f".{target.name}.{part}")


def _settle(study: str, layout: Layout) -> None:
    """Make the archive what its manifest says, whatever a process left that was killed.

    Of two versions of a run, the one stays that the manifest names.
    """
    folder = layout.study(RECORDED, study)
    kept = read_manifest(study, layout).experiments
    for old in folder.glob(f"*/.*.{OLD}"):
        target = old.with_name(old.name[1:].removesuffix(f".{OLD}"))
        entry = kept.get(target.parent.name)
        wanted = entry.runs.get(target.name) if entry else None
        if not target.exists() or wanted == _seal(old):
            remove(target)
            old.rename(target)
        remove(old)
    for fresh in folder.glob(f"*/.*.{NEW}"):
        remove(fresh)
    remove_temporaries(folder)


def _seal(folder: Path) -> str:
    """Return the seal of a run's record, or nothing of one that is damaged."""
    try:
        return read_record(folder / RECORD).seal
    except UserError:
        return ""


def _drop_others(folder: Path, runs: Iterable[str]) -> None:
    """Remove what the manifest does not name."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in runs and not path.name.startswith("."):
            remove(path)


def _write_manifest(spec: Study, kept: dict[str, Kept], layout: Layout) -> None:
    content = {name: kept[name].model_dump() for name in spec.experiments if name in kept}
    text = json.dumps({"experiments": content}, indent=1)
    write_atomic(layout.manifest(spec.name), text + "\n")


def refuse_archive(path: Path) -> None:
    """Refuse to write into an archive, which `record` alone does.

    Raises
    ------
    UserError
        If a path, its links followed, is in the folder of the scale ``recorded``, here or
        elsewhere.
    """
    whole = path.resolve()
    here = Layout().results / RECORDED
    elsewhere = any(
        part.name == RECORDED and part.parent.name == here.parent.name
        for part in (whole, *whole.parents, path.absolute(), *path.absolute().parents)
    )
    if elsewhere or whole.is_relative_to(here.resolve()) or _has_manifest(whole):
        raise UserError(
            f"{path}: belongs to the archive, which only `resnet-limits record` writes; name "
            "another folder."
        )


def _has_manifest(path: Path) -> bool:
    """Whether a path is in an archive's folder of a study, which may have any name."""
    return any((parent / MANIFEST).exists() for parent in path.parents)


def read_manifest(study: str, layout: Layout) -> Manifest:
    """Return what the archive holds of a study; nothing if it has no manifest.

    Raises
    ------
    UserError
        If the manifest is damaged.
    """
    path = layout.manifest(study)
    try:
        return build(Manifest, read_json(path), str(path))
    except FileNotFoundError:
        return Manifest(experiments={})
    except UserError as error:
        raise UserError(f"{error} {RESTORE}") from None


def archived_keys(study: str, experiment: str, layout: Layout) -> list[RunKey]:
    """Return the keys of the runs that the archive holds of an experiment."""
    kept = read_manifest(study, layout).experiments.get(experiment)
    return [RunKey(RECORDED, study, experiment, run) for run in (kept.runs if kept else ())]


def archived_runs(study: str, experiment: str, layout: Layout) -> list[Run]:
    """Read the runs that the archive holds of an experiment.

    Raises
    ------
    UserError
        If one is missing or is not the one that the manifest names.
    """
    kept = read_manifest(study, layout).experiments.get(experiment)
    return [_archived(study, experiment, run, kept, layout) for run in kept.runs] if kept else []


def _archived(study: str, experiment: str, run: str, kept: Kept, layout: Layout) -> Run:
    path = layout.record(RunKey(RECORDED, study, experiment, run))
    found = read_record(path, RESTORE)
    if found.seal != kept.runs[run]:
        raise UserError(f"{path}: not the record that the manifest names. {RESTORE}")
    return Run(path.parent, found, RESTORE)


def completeness(spec: Study, experiment: str, layout: Layout) -> str:
    """Say where an experiment's archive differs from the grid that study.yaml asks for, if it does.

    For example ``8 of 12 runs``, or which settings differ from those of today.
    """
    kept = read_manifest(spec.name, layout).experiments.get(experiment)
    if kept is None:
        return "not recorded"
    wanted = spec.experiment(experiment, kept.scale).runs()
    present = kept.runs.keys() & wanted.keys()
    parts = [f"{len(present)} of {len(wanted)} runs"] if len(present) < len(wanted) else []
    digests = {
        run: _archived(spec.name, experiment, run, kept, layout).record.digest for run in kept.runs
    }
    other = sum(run not in wanted or digests[run] != wanted[run].digest for run in digests)
    if other:
        parts.append(f"{other} of other settings than study.yaml now asks for")
    if kept.other_sources:
        parts.append(f"{len(kept.other_sources)} trained by other sources")
    return "; ".join(parts)
