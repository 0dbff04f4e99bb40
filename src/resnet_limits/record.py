"""Run records: what a finished run says of itself, written whole or not at all."""

from __future__ import annotations

import ast
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from resnet_limits.errors import UserError
from resnet_limits.files import hash_file, write_table, write_whole
from resnet_limits.schemas import schema, validate
from resnet_limits.spec import Config, digest, load_study

PACKAGE = Path(__file__).parent
PACKAGES = ("numpy", "torch", "torchdyn", "resnet-limits")
# Where the code is that can change a trained number; drawing and reporting cannot.
TRAINING = (
    "data/", "models/", "studies/",
    "checkpoint.py", "classification.py", "probes.py", "random.py", "train.py",
)  # fmt: skip


@cache
def source_hash(study: str, experiment: str) -> str:
    """Return a hash of all source files that can change an experiment's trained numbers.

    These are the training loop, the module that builds the experiment's problem, and whatever of
    the package's data and models they import, directly or not.
    """
    module, _ = load_study(study).builder(experiment)
    return hash_closure([PACKAGE / "train.py", PACKAGE / "studies" / study / f"{module}.py"])


def hash_closure(paths: Iterable[Path]) -> str:
    """Return a hash of some modules and of whatever they import of what trains."""
    found: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [imported for imported in _imports(path) if _trains(imported)]
    return digest({str(path.relative_to(PACKAGE)): hash_file(path) for path in found})


def _trains(path: Path) -> bool:
    return str(path.relative_to(PACKAGE)).startswith(TRAINING)


def _imports(path: Path) -> Iterator[Path]:
    """Yield the package's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            module = PACKAGE.joinpath(*parts[1:]).with_suffix(".py")
            if parts[0] == "resnet_limits" and len(parts) > 1 and module.exists():
                yield module


@cache
def git_commit() -> str:
    """Return the commit of the checkout we run from, ``-dirty`` if changed, or ``unknown``."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=PACKAGE,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages that make the numbers."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    } | {name: metadata.version(name) for name in PACKAGES}


def write_record(
    folder: Path, record: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]
) -> None:
    """Write a run's tables, then its record with their hashes and a seal, last of all."""
    for name, frame in tables.items():
        write_table(folder / f"{name}.csv", frame)
    files = {f"{name}.csv": hash_file(folder / f"{name}.csv") for name in tables}
    body = {**record, "digest": digest(record["config"]), "files": files}
    write_whole(folder / "record.json", json.dumps({**body, "seal": digest(body)}, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record and check that it is whole and as it was written.

    Raises
    ------
    UserError
        If it is missing, truncated, of another form, or was edited.
    """
    remedy = f"To train only this run again: snakemake --cores 1 --force {path}"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such record; run Snakemake to train it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path}: not a whole record (truncated?). {remedy}") from None
    try:
        validate(record, schema("record"), str(path))
    except UserError as error:
        raise UserError(f"{error} {remedy}") from None
    body = {key: value for key, value in record.items() if key != "seal"}
    if digest(body) != record["seal"] or digest(record["config"]) != record["digest"]:
        raise UserError(f"{path}: was changed after it was written. {remedy}")
    return record


def read_run(folder: Path, expected: Config) -> Run:
    """Read a run's record and refuse it unless it is of the configuration asked for."""
    record = read_record(folder / "record.json")
    if record["config"] != expected:
        raise UserError(
            f"{folder / 'record.json'}: record of another configuration: "
            f"{difference(record['config'], expected)}. "
            f"Restore study.yaml, or train it again: "
            f"snakemake --cores 1 --force {folder / 'record.json'}"
        )
    return Run(folder, record)


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Name the entries in which two configurations differ."""
    flat_found, flat_wanted = _flat(found), _flat(wanted)
    keys = sorted(flat_found.keys() | flat_wanted.keys())
    parts = (
        f"{key} is {flat_found.get(key, 'absent')}, "
        f"the study asks for {flat_wanted.get(key, 'none')}"
        for key in keys
        if flat_found.get(key) != flat_wanted.get(key)
    )
    return "; ".join(parts)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    outer = {key: value for key, value in config.items() if key != "settings"}
    return outer | dict(config["settings"])


class Run:
    """A finished run: its configuration, its record and its measurements."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self.record = record

    @property
    def settings(self) -> dict[str, Any]:
        """The run's resolved settings."""
        return self.record["config"]["settings"]

    def measurements(self, name: str = "metrics") -> pd.DataFrame:
        """Return what a probe measured, one row per step and member.

        Raises
        ------
        UserError
            If the file is missing or is not the one that the record names.
        """
        path = self.folder / f"{name}.csv"
        wanted = self.record["files"].get(path.name)
        if wanted is None or not path.exists() or hash_file(path) != wanted:
            raise UserError(
                f"{path}: missing, or not as the run's record has it. "
                f"To train it again: snakemake --cores 1 --force {self.folder / 'record.json'}"
            )
        return pd.read_csv(path)


def collect(runs: Iterable[Run], columns: Iterable[str], probe: str = "metrics") -> pd.DataFrame:
    """Stack a probe's measurements of several runs.

    Parameters
    ----------
    runs
        The runs, as a table function is given them.
    columns
        Settings that become columns, such as the axes that tell the runs apart.
    probe
        Name of the probe.

    Returns
    -------
    DataFrame
        With a column ``dataset``, and ``diverged`` for members whose loss stopped being finite.
    """
    return pd.concat([_marked(run, columns, probe) for run in runs], ignore_index=True)


def _marked(run: Run, columns: Iterable[str], probe: str) -> pd.DataFrame:
    frame = run.measurements(probe)
    for name in columns:
        frame[name] = run.settings[name]
    frame["diverged"] = False
    for member in run.record["outcome"]["diverged"]:
        keys = [key for key in member if key != "step" and key in frame]
        frame.loc[(frame[keys] == pd.Series(member)[keys]).all(axis=1), "diverged"] = True
    return frame.assign(dataset=run.record["data"]["name"])
