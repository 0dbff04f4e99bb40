"""Checkpoints: the state of a training run in one file, verified before it is continued."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from resnet_limits.contract import Stateful, attributes, training_state
from resnet_limits.files import hash_bytes, remove, write_atomic
from resnet_limits.problem import Problem

T = TypeVar("T")
Marks = dict[str, Any]
Columns = dict[str, Tensor | list[Any]]


class Checkpoint:
    """The state of a training run in one file, replaced atomically.

    The file is a line of JSON with a digest and the marks, then tensors and plain values. Nothing
    in it is executed, and nothing is read before the digest of the whole content is right. A
    file that cannot be continued, for whatever reason, is named, removed, and training starts over.

    Parameters
    ----------
    path
        The file.
    marks
        What the run's numbers depend on besides the state: configuration, sources, versions,
        device, threads, engine and precision. A checkpoint with other marks is not continued,
        since its numbers would be a mixture.
    problem
        Whose state is saved and restored.
    """

    def __init__(self, path: Path, marks: Marks, problem: Problem) -> None:
        self.path = path
        self.marks = marks
        self.problem = problem

    def save(self, progress: Mapping[str, Any]) -> None:
        """Write the problem's state and the loop's own progress."""
        buffer = io.BytesIO()
        torch.save({**self._content(), "progress": dict(progress)}, buffer)
        payload = buffer.getvalue()
        marks = json.dumps(self.marks, sort_keys=True)
        header = {"digest": hash_bytes(marks.encode() + payload), "marks": self.marks}
        write_atomic(self.path, json.dumps(header).encode() + b"\n" + payload)

    def restore(self, read: Callable[[dict[str, Any]], T]) -> T | None:
        """Load the file into the problem.

        Parameters
        ----------
        read
            Makes of the progress what the loop wants.

        Returns
        -------
        T, optional
            What ``read`` made, or None to start over.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._discard(f"cannot be read ({error.strerror})")
            return None
        header = _header(raw)
        if header is None:
            self._discard("is damaged")
            return None
        differing = [key for key in self.marks if header["marks"].get(key) != self.marks[key]]
        if differing:
            self._discard(f"is of other {', '.join(differing)}")
            return None
        return self._load(_payload(raw), read)

    def _load(self, payload: bytes, read: Callable[[dict[str, Any]], T]) -> T | None:
        before = copy.deepcopy(self._content())
        try:
            content = torch.load(io.BytesIO(payload), "cpu", weights_only=True)
            progress = read(content["progress"])
            self._apply(content)
            return progress
        except Exception as error:  # whatever a file that is not of this problem may raise
            self._apply(before)
            self._discard(f"does not fit ({type(error).__name__})")
            return None

    def remove(self) -> None:
        """Delete the file of a finished run."""
        remove(self.path)

    def _discard(self, why: str) -> None:
        print(f"{self.path}: {why}; starting over.", flush=True)
        self.remove()

    def _content(self) -> dict[str, Any]:
        state = training_state(self.problem)
        return {
            "state": {name: _tensor(value) for name, value in state.items()},
            "steppers": {name: s.state_dict() for name, s in _steppers(self.problem).items()},
        }

    def _apply(self, content: Mapping[str, Any]) -> None:
        state = training_state(self.problem)
        steppers = _steppers(self.problem)
        if content["state"].keys() != state.keys() or content["steppers"].keys() != steppers.keys():
            raise KeyError("other names")
        for name, value in content["state"].items():
            _require_same_form(_tensor(state[name]), value)
        for name, value in content["state"].items():
            _restore(state[name], value)
        for name, value in content["steppers"].items():
            steppers[name].load_state_dict(value)


def read_marks(path: Path) -> Marks | None:
    """Return the marks of a whole checkpoint, or None where there is none."""
    try:
        header = _header(path.read_bytes())
    except OSError:
        return None
    return header and header["marks"]


def pack(frame: pd.DataFrame) -> Columns:
    """Return a data frame's columns as tensors, and as lists where they are not of one type."""
    return {name: _pack(frame[name].to_numpy()) for name in frame}


def unpack(columns: Columns) -> pd.DataFrame:
    """Undo `pack`, to the last bit."""
    return pd.DataFrame(
        {
            name: values.numpy() if isinstance(values, Tensor) else pd.Series(values, dtype=object)
            for name, values in columns.items()
        }
    )


def _pack(values: np.ndarray) -> Tensor | list[Any]:
    if values.dtype != object:
        return torch.from_numpy(values.copy())
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _steppers(problem: Problem) -> dict[str, Optimizer | LRScheduler]:
    """Return the optimizers and schedulers among the attributes."""
    found = dict(attributes(problem))
    return {name: v for name, v in found.items() if isinstance(v, Optimizer | LRScheduler)}


def _header(raw: bytes) -> dict[str, Any] | None:
    """Return the first line if it is ours and the digest is that of the content."""
    try:
        header = json.loads(raw[: raw.index(b"\n")])
        marks = json.dumps(header["marks"], sort_keys=True)
        whole = header["digest"] == hash_bytes(marks.encode() + _payload(raw))
        return header if whole and isinstance(header["marks"], dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _payload(raw: bytes) -> bytes:
    return raw[raw.index(b"\n") + 1 :]


def _tensor(value: Stateful) -> Tensor:
    return value.get_state() if isinstance(value, torch.Generator) else value.detach()


def _require_same_form(wanted: Tensor, found: Tensor) -> None:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ValueError("another shape or type")


@torch.no_grad()
def _restore(target: Stateful, value: Tensor) -> None:
    if isinstance(target, torch.Generator):
        target.set_state(value)
    else:
        target.copy_(value)
