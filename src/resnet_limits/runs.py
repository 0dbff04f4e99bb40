"""Runs: what a finished run says of itself, and its measurements."""

from __future__ import annotations

import io
import json
import lzma
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field

from resnet_limits.documents import read_json
from resnet_limits.errors import UserError
from resnet_limits.files import hash_bytes, write_atomic
from resnet_limits.layout import KEPT_RECORD, RECORD, RunKey
from resnet_limits.provenance import digest
from resnet_limits.settings import Model, build
from resnet_limits.spec import RunConfig, load_study
from resnet_limits.study_files import PROTOCOLS

COMPRESSED = ".xz"  # how the archive keeps measurements: the same bytes at every time and place
# What a compressed file may need and hold, since a few kilobytes could hold terabytes.
DECODER_BYTES = 128 * 2**20
LARGEST_FILE = 512 * 2**20
FileName = Annotated[str, Field(pattern=r"^\w[\w-]*\.csv$")]  # beside the record, nowhere else


class ConfigFile(Model):
    """A run's resolved configuration."""

    scale: str
    study: str
    experiment: str
    run: str
    settings: dict[str, Any]

    @property
    def key(self) -> RunKey:
        """What tells the run from others."""
        return RunKey(self.scale, self.study, self.experiment, self.run)


class Outcome(Model):
    """How a run ended."""

    state: Literal["finished", "diverged"]
    steps: int = Field(ge=0)
    members: int = Field(ge=1)
    diverged: list[dict[str, Any]]


class DataFile(Model):
    """What a run was trained on."""

    name: str
    hash: str
    note: str = ""


class Provenance(Model):
    """What computed a run's numbers."""

    commit: str
    sources: str
    versions: dict[str, str]
    device: str
    threads: int
    engine: str = Field(description="what computed: torch or numba")
    precision: str = Field("", description="type of most of the arithmetic, where one can choose")


class Timing(Model):
    """What a run cost."""

    started: str
    seconds: float
    resumed: int
    peak_memory_mb: float


class Record(Model):
    """record.json."""

    config: ConfigFile
    digest: str = Field(description="hash of config")
    outcome: Outcome
    data: DataFile
    provenance: Provenance
    timing: Timing
    files: dict[FileName, str] = Field(description="hashes of the measurements")
    seal: str = Field(description="hash of everything above")


def write_record(
    folder: Path, record: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]
) -> None:
    """Write a run's measurements, then its record with their hashes and a seal, last of all."""
    contents = {
        f"{name}.csv": frame.to_csv(index=False, lineterminator="\n").encode()
        for name, frame in tables.items()
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
    files = {name: hash_bytes(content) for name, content in contents.items()}
    body = {**record, "digest": digest(record["config"]), "files": files}
    sealed = json.dumps({**body, "seal": digest(body)}, indent=1, allow_nan=False)
    for name in (KEPT_RECORD, RECORD):
        write_atomic(folder / name, sealed + "\n")


def read_record(path: Path, remedy: str = "") -> Record:
    """Read a record and check that it is whole and as it was written.

    Parameters
    ----------
    path
        The file.
    remedy
        What to do if it is not, if not to train the run.

    Raises
    ------
    UserError
        If it is missing, truncated, of another form, or was edited.
    """
    train = remedy or "Run Snakemake to train it, or copy its folder from where it was trained."
    remedy = remedy or f"To retrain only this run: snakemake --cores 1 --force {path}"
    try:
        content = read_json(path)
        record = build(Record, content, str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such record. {train}") from None
    except UserError as error:
        raise UserError(f"{error} {remedy}") from None
    body = {key: value for key, value in content.items() if key != "seal"}
    if digest(body) != record.seal or digest(content["config"]) != record.digest:
        raise UserError(f"{path}: was changed after it was written. {remedy}")
    return record


def read_run(folder: Path, expected: RunConfig) -> Run:
    """Read a run's record and refuse it unless it is of the configuration asked for."""
    path = folder / RECORD
    record = read_record(path)
    if record.digest != expected.digest:
        found = difference(record.config.model_dump(), expected.to_json())
        raise UserError(
            f"{path}: record of another configuration: {found}. Restore study.yaml, or retrain "
            f"it: snakemake --cores 1 --force {path}"
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
    """A finished run: its configuration, its record and its measurements.

    Parameters
    ----------
    folder, record
        Where it is, and what it says of itself.
    remedy
        What to do if its measurements are missing or damaged, if not to copy or retrain it.
    """

    def __init__(self, folder: Path, record: Record, remedy: str = "") -> None:
        self.folder = folder
        self.record = record
        self.remedy = remedy or f"To retrain it: snakemake --cores 1 --force {folder / RECORD}"
        copy = f"Copy the whole folder {folder} from where the run was trained."
        self.fetch = remedy or f"{copy} {self.remedy}"

    @property
    def settings(self) -> dict[str, Any]:
        """The run's resolved settings."""
        return self.record.config.settings

    @cached_property
    def protocol(self) -> tuple[str, str]:
        """How the run compares with its experiment's protocol, as `Study.protocol_of` says."""
        config = self.record.config
        return load_study(config.study).protocol_of(config.experiment, config.settings)

    def has(self, probe: str) -> bool:
        """Whether the run has a probe's measurements."""
        return f"{probe}.csv" in self.record.files

    def content(self, file: str) -> bytes:
        """Return the bytes of a file of measurements, kept compressed or not.

        Raises
        ------
        UserError
            If it is missing or is not the one that the record names.
        """
        path = self.folder / file
        packed = path.with_name(file + COMPRESSED)
        try:
            raw = unpack(packed.read_bytes()) if packed.exists() else path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: missing, though the record names it. {self.fetch}") from None
        except (OSError, lzma.LZMAError):
            raw = b""
        if hash_bytes(raw) != self.record.files.get(file):
            raise UserError(f"{path}: not as the run's record has it. {self.remedy}")
        return raw

    def measurements(self, probe: str = "metrics") -> pd.DataFrame:
        """Return what a probe measured, one row per step and member.

        Raises
        ------
        UserError
            If the file is missing or is not the one that the record names.
        """
        return pd.read_csv(io.BytesIO(self.content(f"{probe}.csv")))


def unpack(packed: bytes) -> bytes:
    """Decompress a file of the archive, or as much of it as is allowed."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, DECODER_BYTES)
    return decoder.decompress(packed, LARGEST_FILE)


Runs = Mapping[str, list[Run]]  # by experiment; an experiment may have no runs, or not all yet


def collect(runs: Iterable[Run], columns: Iterable[str], probe: str = "metrics") -> pd.DataFrame:
    """Stack a probe's measurements of several runs.

    Parameters
    ----------
    runs
        The runs, as a table function is given them; those without the probe are passed over.
    columns
        Settings that become columns, such as the axes that tell the runs apart.
    probe
        Name of the probe.

    Returns
    -------
    DataFrame
        With columns ``dataset``, ``protocol`` (see `Study.protocol_of`), and ``diverged`` for
        members whose loss stopped being finite.
    """
    names = list(columns)
    frames = [_marked(run, names, probe) for run in runs if run.has(probe)]
    if not frames:
        return pd.DataFrame(columns=[*names, "diverged", "dataset", "protocol"])
    return pd.concat(frames, ignore_index=True)


def _marked(run: Run, columns: Iterable[str], probe: str) -> pd.DataFrame:
    frame = run.measurements(probe)
    for name in columns:
        frame[name] = run.settings[name]
    frame["diverged"] = False
    for member in run.record.outcome.diverged:
        keys = [key for key in member if key != "step" and key in frame]
        # Infinity is a word in the record, and a number in the table.
        wanted = [frame[key].dtype.type(member[key]) for key in keys]
        frame.loc[(frame[keys] == wanted).all(axis=1), "diverged"] = True
    return frame.assign(dataset=run.record.data.name, protocol=run.protocol[0])


def with_protocol(table: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """Add to a table what the claims need to know of its runs' protocols.

    Parameters
    ----------
    table
        As its function made it. Where it lost the column ``protocol``, every row counts as of
        the protocol farthest from the paper's among all runs.
    runs
        Those that the table was made from.

    Returns
    -------
    DataFrame
        With the columns ``protocol`` and ``departures``, the settings that differ from the
        paper's, of all runs of that protocol.
    """
    found = sorted({run.protocol for group in runs.values() for run in group})
    kinds = [kind for kind, _ in found]
    protocol = table.get("protocol", max(kinds, key=PROTOCOLS.index))
    departures = {kind: "; ".join(text for k, text in found if k == kind) for kind in kinds}
    table = table.assign(protocol=protocol)
    return table.assign(departures=table["protocol"].map(departures))
