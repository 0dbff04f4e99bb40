"""``fit``: the one training loop. It knows no study."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resnet_limits.checkpoint import Checkpoint, Columns, Marks, pack, read_marks, unpack
from resnet_limits.contract import METRICS, Contract
from resnet_limits.documents import parse_json, read_json
from resnet_limits.errors import UserError, require_known
from resnet_limits.files import named, remove, remove_temporaries, write_atomic
from resnet_limits.layout import CHECKPOINT, KEPT_RECORD, LOCK, PROGRESS, RECORD
from resnet_limits.locks import locked
from resnet_limits.memory import require_memory
from resnet_limits.problem import Context, Probe, Problem
from resnet_limits.provenance import git_commit, versions
from resnet_limits.runs import ConfigFile, Run, read_record, write_record
from resnet_limits.settings import build
from resnet_limits.spec import RunConfig, Study, load_study, study_names


def choose_device(name: str) -> torch.device:
    """Return the device called ``cpu`` or ``cuda``, or for ``auto`` a GPU if there is one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("workflow/config.yaml: device: cuda, but torch sees no GPU; use auto.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


LOSSES = ("loss", "train_loss", "test_loss")  # columns of metrics that tell a diverged member


@dataclass
class LoopState:
    """Where training stands; all that a checkpoint holds besides the problem's state.

    Rows are kept as a checkpoint has them, so that a resumed run cannot write others.
    """

    diverged_at: Tensor
    step: int = 0
    measured: int = -1
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: float = 0.0
    resumed: int = 0
    rows: dict[str, list[Columns]] = field(default_factory=dict)


def train(config: RunConfig, folder: Path, context: Context, checkpoint_seconds: float) -> None:
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
    study = load_study(config.key.study)
    sources = study.sources(config.key.experiment)
    with locked(folder / LOCK):
        remove_temporaries(folder)
        if _is_finished(config, sources, folder / RECORD):
            print(f"{folder}: has been trained already.")
        elif _put_back(config, sources, context, folder):
            print(f"{folder}: had finished; its record is put back.")
        else:
            _train(study, config, sources, folder, context, checkpoint_seconds)
        remove(folder / CHECKPOINT)  # of a run that was killed when its record was written


def _train(
    study: Study,
    config: RunConfig,
    sources: str,
    folder: Path,
    context: Context,
    checkpoint_seconds: float,
) -> None:
    require_memory(config, context.device)
    _use_threads_of(folder / CHECKPOINT)
    build_problem = study.load("problems", study.experiments[config.key.experiment].problem)
    fit(build_problem(config.settings, context), config, sources, folder, checkpoint_seconds)


def _is_finished(config: RunConfig, sources: str, path: Path) -> bool:
    """Whether a record of this configuration and these sources is there, measurements and all."""
    try:
        record = read_record(path)
        for file in record.files:
            Run(path.parent, record).content(file)
    except UserError:
        return False
    return record.digest == config.digest and record.provenance.sources == sources


def _put_back(config: RunConfig, sources: str, context: Context, folder: Path) -> bool:
    """Restore the record of a run that finished, if training would give the same numbers.

    When Snakemake is killed, its jobs go on and may finish. It does not know, and deletes their
    outputs before it runs them again.
    """
    kept = folder / KEPT_RECORD
    if not _is_finished(config, sources, kept):
        return False
    provenance = read_record(kept).provenance
    same_device = provenance.device.split(":")[0] == context.device.type
    if provenance.versions != versions() or not same_device:
        return False
    write_atomic(folder / RECORD, kept.read_bytes())
    return True


def _use_threads_of(checkpoint: Path) -> None:
    """Continue with as many threads as before: sums have another order with another number."""
    marks = read_marks(checkpoint)
    threads = marks and marks.get("threads")
    if isinstance(threads, int) and 0 < threads != torch.get_num_threads():
        print(f"Continuing with {threads} threads, as the run was started.", flush=True)
        torch.set_num_threads(threads)


def fit(
    problem: Problem, config: RunConfig, sources: str, folder: Path, checkpoint_seconds: float
) -> None:
    """Train a problem to its end and write its record.

    Continues from the folder's checkpoint if that is of the same configuration, sources,
    versions, device, threads, engine and precision, and then ends with the same bits as an
    undisturbed run. Members whose loss stops being finite, also by the last measurement's columns
    ``loss``, ``train_loss`` and ``test_loss``, are recorded as diverged; the others go on.

    Parameters
    ----------
    problem
        What to train.
    config
        The run's resolved configuration; goes into the record.
    sources
        Digest of the sources that can change the numbers.
    folder
        Where measurements, record, checkpoint and progress lines go.
    checkpoint_seconds
        Seconds between checkpoints.

    Raises
    ------
    UserError
        If the problem does not keep its contract (`Problem`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    loop = _Loop(problem, config, sources, folder, checkpoint_seconds)
    loop.run()
    loop.mark_lost()
    _write(problem, loop.state, config, sources, folder)
    loop.checkpoint.remove()


def _marks(problem: Problem, config: RunConfig, sources: str) -> Marks:
    return {
        "configuration": config.digest,
        "sources": sources,
        "versions": versions(),
        "device": str(_device(problem)),
        "threads": torch.get_num_threads(),
        "engine": problem.engine,
        "precision": problem.precision,
    }


class _Loop:
    """The training loop of one problem, from its checkpoint or from the start."""

    def __init__(
        self,
        problem: Problem,
        config: RunConfig,
        sources: str,
        folder: Path,
        checkpoint_seconds: float,
    ) -> None:
        self.problem = problem
        self.contract = Contract(problem)  # first, since all else relies on it
        self.lines = folder / PROGRESS
        marks = _marks(problem, config, sources)
        self.checkpoint = Checkpoint(folder / CHECKPOINT, marks, problem)
        self.checkpoint_seconds = checkpoint_seconds
        self.due = _due(problem.probes)
        self.checked = False  # the first step is looked at more closely
        self.state = self._first_state()

    def _first_state(self) -> LoopState:
        device = _device(self.problem)
        state = self.checkpoint.restore(lambda progress: LoopState(**progress))
        if state is None:
            self.lines.unlink(missing_ok=True)
            return LoopState(
                diverged_at=torch.full((len(self.problem.members),), -1, device=device)
            )
        state.diverged_at = state.diverged_at.to(device)
        state.resumed += 1
        print(f"Continuing from step {state.step} of {self.problem.steps}.", flush=True)
        return state

    def run(self) -> None:
        problem, state = self.problem, self.state
        start, saved = time.monotonic() - state.seconds, time.monotonic()
        while True:
            state.seconds = time.monotonic() - start
            probes = self.due.get(state.step, ())
            # A checkpoint may have been taken after this step's measurements.
            if state.step > state.measured and probes:
                self._measure(probes)
                self._report()
                if problem.is_done() or bool((state.diverged_at >= 0).all()):
                    return
            if state.step == problem.steps:
                return
            late = time.monotonic() - saved > self.checkpoint_seconds
            if late or state.step in problem.milestones:
                self._save()
                saved = time.monotonic()
            self._advance()

    def _advance(self) -> None:
        problem, state = self.problem, self.state
        problem.optimizer.zero_grad(set_to_none=True)
        losses = problem.loss_and_grad()
        if not self.checked:
            self.contract.check_losses(losses)
            self.contract.check_gradients()
        problem.optimizer.step()
        if problem.scheduler is not None:
            problem.scheduler.step()
        if not self.checked:
            self.contract.check_state()
            self.checked = True
        # Kept on the device: asking for a bool here would stall a GPU at every step.
        lost = (state.diverged_at < 0) & ~torch.isfinite(losses)
        state.diverged_at.masked_fill_(lost, state.step)
        state.step += 1

    def mark_lost(self) -> None:
        """Mark members whose last measured losses are not finite: the last step lost them."""
        if METRICS not in self.state.rows:
            return
        metrics = pd.concat(map(unpack, self.state.rows[METRICS]), ignore_index=True)
        for index, member in enumerate(self.problem.members):
            at = _lost_at(metrics, member)
            if at is not None and self.state.diverged_at[index] < 0:
                self.state.diverged_at[index] = at

    def _save(self) -> None:
        """Write a checkpoint, unless it would not hold all that has changed."""
        self.contract.check_state()
        self.checkpoint.save(vars(self.state))

    def _measure(self, probes: Sequence[Probe]) -> None:
        state = self.state
        for probe in probes:
            frame = probe.measure()
            self.contract.check_rows(probe.name, frame)
            steps = torch.full((len(frame),), state.step)
            state.rows.setdefault(probe.name, []).append({"step": steps, **pack(frame)})
        state.measured = state.step

    def _report(self) -> None:
        """Append one line for people: where training stands and what was measured last."""
        state, problem = self.state, self.problem
        if METRICS not in state.rows:
            return
        last = unpack(state.rows[METRICS][-1])
        measured = last.drop(columns=["step", *problem.members[0]], errors="ignore")
        median = measured.median(numeric_only=True).dropna()
        line = {
            "step": state.step,
            "steps": problem.steps,
            "seconds": round(state.seconds, 2),
            "pid": os.getpid(),
            "median": _finite({key: float(f"{value:.4g}") for key, value in median.items()}),
        }
        text = json.dumps(line, allow_nan=False)
        with named(self.lines), self.lines.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text, flush=True)


def _lost_at(metrics: pd.DataFrame, member: Mapping[str, Any]) -> int | None:
    """Return the step of a member's last measurement, if one of its losses is not finite."""
    keys = [key for key in member if key in metrics]
    own = metrics[(metrics[keys] == [member[key] for key in keys]).all(axis=1)]
    last = own[own["step"] == own["step"].max()]
    losses = last[[name for name in LOSSES if name in last]].astype(float)
    return None if np.isfinite(losses).all(axis=None) else int(last["step"].iloc[0])


def _due(probes: Sequence[Probe]) -> dict[int, list[Probe]]:
    due: dict[int, list[Probe]] = {}
    for probe in probes:
        for step in probe.steps:
            due.setdefault(step, []).append(probe)
    return due


def _write(
    problem: Problem, state: LoopState, config: RunConfig, sources: str, folder: Path
) -> None:
    data = {"name": problem.data.name, "hash": problem.data.hash, "note": problem.data.note}
    record = {
        "config": config.to_json(),
        "outcome": _outcome(problem, state),
        "data": data,
        "provenance": {
            "commit": git_commit(),
            "sources": sources,
            "versions": versions(),
            "device": str(_device(problem)),
            "threads": torch.get_num_threads(),
            "engine": problem.engine,
            "precision": problem.precision,
        },
        "timing": {
            "started": state.started,
            "seconds": round(state.seconds, 2),
            "resumed": state.resumed,
            "peak_memory_mb": round(_peak_memory_mb(_device(problem)), 1),
        },
    }
    tables = {
        name: pd.concat(map(unpack, rows), ignore_index=True) for name, rows in state.rows.items()
    }
    write_record(folder, record, tables)


def _outcome(problem: Problem, state: LoopState) -> dict[str, Any]:
    diverged = [
        {**_finite(member), "step": at}
        for member, at in zip(problem.members, state.diverged_at.tolist(), strict=True)
        if at >= 0
    ]
    return {
        "state": "diverged" if len(diverged) == len(problem.members) else "finished",
        "steps": state.step,
        "members": len(problem.members),
        "diverged": diverged,
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with infinity and NaN as words, since JSON has no such numbers."""
    return {
        k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in values.items()
    }


def _device(problem: Problem) -> torch.device:
    device: torch.device = problem.optimizer.param_groups[0]["params"][0].device
    return device


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def read_config(source: str) -> RunConfig:
    """Read a run's configuration from JSON text or from the file of that name.

    Raises
    ------
    UserError
        If it is no configuration, or has a setting that its study does not know.
    FileNotFoundError
        If there is no such file.
    """
    given = source.lstrip().startswith("{")
    where = "--config" if given else source
    content = parse_json(source, where) if given else read_json(Path(source))
    document = build(ConfigFile, content, where)
    require_known(document.study, study_names(), f"{where}: study")
    return load_study(document.study).config(document.model_dump(), where)
