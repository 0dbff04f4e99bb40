"""``fit``: the one training loop. It knows no study."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.checkpoint import Checkpoint
from resnet_limits.errors import UserError
from resnet_limits.locks import LOCK, locked
from resnet_limits.probes import Probe
from resnet_limits.record import (
    git_commit,
    read_record,
    source_hash,
    versions,
    write_record,
)
from resnet_limits.schemas import schema, validate
from resnet_limits.spec import Config, digest, load_study

CHECKPOINT_SECONDS = 20.0
PROGRESS = "progress.jsonl"


@dataclass(frozen=True)
class Context:
    """Where a run is trained; nothing in it may change what is trained."""

    device: torch.device
    data_root: Path


def choose_device(name: str) -> torch.device:
    """Return the device called ``cpu`` or ``cuda``, or for ``auto`` a GPU if there is one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("workflow/config.yaml: device: cuda, but torch sees no GPU; use auto.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@dataclass(frozen=True)
class Data:
    """What a problem was trained on: name, hash of the tensors, and what to know about it."""

    name: str
    hash: str
    note: str = ""

    @classmethod
    def of(cls, name: str, tensors: Sequence[Tensor], note: str = "") -> Data:
        """Name a data set made of tensors by the hash of their bytes."""
        content = hashlib.sha256()
        for tensor in tensors:
            content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return cls(name, content.hexdigest()[:16], note)


class Problem:
    """What an experiment hands to `fit`.

    Subclasses set the attributes and write ``step``; where they draw random numbers or change
    tensors while training, they list these in ``state``.

    Attributes
    ----------
    members
        What tells the slots of the batched tensor axes apart, e.g. ``{"seed": 0}``; a run that
        trains one network has one member.
    steps
        Number of optimizer steps.
    data
        The data set's name and hash.
    optimizer, scheduler
        From torch; the scheduler may be None.
    probes
        What is measured, and before which steps.
    milestones
        Steps after which a checkpoint is due, besides those by time; e.g. the ends of epochs.
    precision
        Type of most of the arithmetic, where there is a choice; goes into the record.
    state
        Parameters, buffers and generators that a resumed run needs, by name.
    """

    members: list[dict[str, Any]]
    steps: int
    data: Data
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    probes: Sequence[Probe] = ()
    milestones: Container[int] = ()
    precision: str = ""
    state: Mapping[str, Tensor | torch.Generator]

    def step(self) -> Tensor:
        """Compute every member's loss, shape ``(members,)``, and leave gradients in ``.grad``."""
        raise NotImplementedError

    def is_done(self) -> bool:
        """Whether to stop before the last step; asked after every measurement."""
        return False


@dataclass
class Progress:
    """Where a training stands; all that a checkpoint holds besides the problem's state."""

    diverged_at: Tensor
    step: int = 0
    measured: int = -1
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: float = 0.0
    resumed: int = 0
    rows: dict[str, list[pd.DataFrame]] = field(default_factory=dict)


def train(config: Config, folder: Path, context: Context, checkpoint_seconds: float) -> None:
    """Train one run unless its record is there already.

    Parameters
    ----------
    config
        The run's resolved configuration.
    folder
        Where record and measurements go.
    context
        Device and data root.
    checkpoint_seconds
        Seconds between checkpoints.
    """
    with locked(folder / LOCK):
        if _is_finished(config, folder):
            print(f"{folder}: has been trained already.")
            return
        module, function = load_study(config["study"]).builder(config["experiment"])
        found = importlib.import_module(f"resnet_limits.studies.{config['study']}.{module}")
        problem = getattr(found, function)(SimpleNamespace(**config["settings"]), context)
        fit(problem, config, folder, checkpoint_seconds)


def _is_finished(config: Config, folder: Path) -> bool:
    try:
        record = read_record(folder / "record.json")
    except UserError:
        return False
    same = record["config"] == config
    return same and record["provenance"]["sources"] == _sources(config)


def _sources(config: Config) -> str:
    return source_hash(config["study"], config["experiment"])


def fit(problem: Problem, config: Config, folder: Path, checkpoint_seconds: float) -> None:
    """Train a problem to its end and write its record.

    Continues from the folder's checkpoint if that is of the same configuration and sources,
    and then ends with the same bits as an undisturbed run. Members whose loss stops being
    finite are recorded as diverged; the others go on.

    Parameters
    ----------
    problem
        What to train.
    config
        The run's resolved configuration; goes into the record.
    folder
        Where metrics, record, checkpoint and progress lines go.
    checkpoint_seconds
        Seconds between checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marks = {"digest": digest(config), "sources": _sources(config)}
    checkpoint = Checkpoint(folder / "checkpoint.pt", marks, problem)
    progress = _start(checkpoint, problem)
    _loop(problem, progress, checkpoint, checkpoint_seconds)
    _write(problem, progress, config, folder, marks["sources"])
    checkpoint.remove()


def _start(checkpoint: Checkpoint, problem: Problem) -> Progress:
    restored = checkpoint.restore()
    if restored is not None:
        progress = Progress(**restored)
        progress.resumed += 1
        progress.diverged_at = progress.diverged_at.to(_device(problem))
        print(f"Continuing from step {progress.step} of {problem.steps}.", flush=True)
        return progress
    (checkpoint.path.parent / PROGRESS).unlink(missing_ok=True)
    return Progress(diverged_at=torch.full((len(problem.members),), -1, device=_device(problem)))


def _loop(
    problem: Problem, progress: Progress, checkpoint: Checkpoint, checkpoint_seconds: float
) -> None:
    due = _due(problem.probes)
    start, saved = time.monotonic() - progress.seconds, time.monotonic()
    while True:
        probes = due.get(progress.step, ())
        # A checkpoint may have been taken after this step's measurements.
        if progress.step > progress.measured and probes:
            _measure(progress, probes)
            progress.seconds = time.monotonic() - start
            _report(problem, progress, checkpoint.path.with_name(PROGRESS))
            if problem.is_done() or bool((progress.diverged_at >= 0).all()):
                return
        if progress.step == problem.steps:
            return
        late = time.monotonic() - saved > checkpoint_seconds
        if late or progress.step in problem.milestones:
            progress.seconds = time.monotonic() - start
            checkpoint.save(vars(progress))
            saved = time.monotonic()
        _advance(problem, progress)


def _advance(problem: Problem, progress: Progress) -> None:
    losses = problem.step()
    problem.optimizer.step()
    if problem.scheduler is not None:
        problem.scheduler.step()
    # Kept on the device: asking for a bool here would stall a GPU at every step.
    lost = (progress.diverged_at < 0) & ~torch.isfinite(losses)
    progress.diverged_at.masked_fill_(lost, progress.step)
    progress.step += 1


def _due(probes: Sequence[Probe]) -> dict[int, list[Probe]]:
    due: dict[int, list[Probe]] = {}
    for probe in probes:
        for step in probe.steps:
            due.setdefault(step, []).append(probe)
    return due


def _measure(progress: Progress, probes: Sequence[Probe]) -> None:
    for probe in probes:
        frame = probe.measure()
        frame.insert(0, "step", progress.step)
        progress.rows.setdefault(probe.name, []).append(frame)
    progress.measured = progress.step


def _report(problem: Problem, progress: Progress, lines: Path) -> None:
    """Append one line for people: where the training stands and what was measured last."""
    if "metrics" not in progress.rows:
        return
    last = progress.rows["metrics"][-1].drop(columns=["step", *problem.members[0]])
    median = last.median(numeric_only=True).dropna()
    line = {
        "step": progress.step,
        "steps": problem.steps,
        "seconds": round(progress.seconds, 2),
        "pid": os.getpid(),
        "median": {key: float(f"{value:.4g}") for key, value in median.items()},
    }
    with lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _write(
    problem: Problem, progress: Progress, config: Config, folder: Path, sources: str
) -> None:
    data = {"name": problem.data.name, "hash": problem.data.hash}
    record = {
        "config": config,
        "outcome": _outcome(problem, progress),
        "data": data | ({"note": problem.data.note} if problem.data.note else {}),
        "provenance": {
            "commit": git_commit(),
            "sources": sources,
            "versions": versions(),
            "device": str(_device(problem)),
            "threads": torch.get_num_threads(),
        }
        | ({"precision": problem.precision} if problem.precision else {}),
        "timing": {
            "started": progress.started,
            "seconds": round(progress.seconds, 2),
            "resumed": progress.resumed,
            "peak_memory_mb": round(_peak_memory_mb(_device(problem)), 1),
        },
    }
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in progress.rows.items()}
    write_record(folder, record, tables)


def _outcome(problem: Problem, progress: Progress) -> dict[str, Any]:
    diverged = [
        {**member, "step": at}
        for member, at in zip(problem.members, progress.diverged_at.tolist(), strict=True)
        if at >= 0
    ]
    return {
        "state": "diverged" if len(diverged) == len(problem.members) else "finished",
        "steps": progress.step,
        "members": len(problem.members),
        "diverged": diverged,
    }


def _device(problem: Problem) -> torch.device:
    return problem.optimizer.param_groups[0]["params"][0].device


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def read_config(source: str) -> Config:
    """Read a run's configuration from JSON text or from the file of that name.

    Raises
    ------
    UserError
        If it is no configuration, or has a setting that its study does not know.
    """
    text = source if source.lstrip().startswith("{") else Path(source).read_text("utf-8")
    where = "--config" if text is source else source
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error}.") from None
    validate(config, schema("record")["properties"]["config"], where)
    load_study(config["study"]).check_config(config, where)
    return config
