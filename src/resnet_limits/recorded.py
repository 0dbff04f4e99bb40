"""The scale ``recorded``: tables and records kept from a finished scale, never trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from resnet_limits.analysis import run_folder, table_path
from resnet_limits.errors import UserError
from resnet_limits.files import hash_file, write_whole
from resnet_limits.record import git_commit, read_run
from resnet_limits.spec import load_study

RECORDED = "recorded"


def record_study(study: str, scale: str, results: Path, force: bool = False) -> None:
    """Copy a study's records, tables and verdicts of a finished scale to ``results/recorded``.

    Raises
    ------
    UserError
        If anything is missing or is not of the configuration that study.yaml asks for; then
        nothing is copied. Also if another scale is recorded already, without ``force``.
    """
    spec = load_study(study)
    if scale == RECORDED:
        raise UserError("--scale recorded: name the scale to copy from, such as paper.")
    _refuse_to_replace(results / RECORDED / study / "manifest.json", scale, force)
    copies: dict[Path, Path] = {}
    for config in spec.runs(scale):
        folder = run_folder(results, config)
        read_run(folder, config)
        target = run_folder(results, {**config, "scale": RECORDED})
        copies[folder / "record.json"] = target / "record.json"
    for table in spec.tables:
        source = table_path(results, scale, study, table)
        copies[source] = table_path(results, RECORDED, study, table)
    verdicts = Path(study) / "claims.json"
    copies[results / scale / verdicts] = results / RECORDED / verdicts
    missing = [str(source) for source in copies if not source.exists()]
    if missing:
        raise UserError(
            f"{missing[0]}: missing; finish the scale first: snakemake --config scale={scale}"
        )
    _replace(results / RECORDED / study, copies, scale)


def _refuse_to_replace(path: Path, scale: str, force: bool) -> None:
    if path.exists() and not force:
        recorded = json.loads(path.read_text("utf-8"))["scale"]
        if recorded != scale:
            raise UserError(f"{path}: scale {recorded} is recorded; to replace it add --force.")


def _replace(folder: Path, copies: dict[Path, Path], scale: str) -> None:
    commit = git_commit()  # before our own files make the checkout dirty
    shutil.rmtree(folder, ignore_errors=True)
    for source, target in copies.items():
        write_whole(target, source.read_bytes())
    files = {str(target.relative_to(folder)): hash_file(target) for target in copies.values()}
    content = {"scale": scale, "commit": commit, "files": files}
    write_whole(folder / "manifest.json", json.dumps(content, indent=1) + "\n")
    print(f"{folder}: {len(files)} files recorded from scale {scale}")


def manifest(results: Path, study: str) -> dict[str, Any]:
    """Return what was recorded, from which scale and commit.

    Raises
    ------
    UserError
        If the manifest or a file that it names is missing or was changed.
    """
    folder = results / RECORDED / study
    path = folder / "manifest.json"
    remedy = "Restore it with `git checkout -- results/recorded`."
    if not path.exists():
        raise UserError(
            f"{path}: {study} is not recorded; leave it out of `studies`, or record a finished "
            f"scale: resnet-limits record {study} --scale quick"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        raise UserError(f"{path}: missing or not readable. {remedy}") from None
    for name, wanted in content["files"].items():
        file = folder / name
        if not file.exists() or hash_file(file) != wanted:
            raise UserError(f"{file}: missing, or not as it was recorded. {remedy}")
    return content
