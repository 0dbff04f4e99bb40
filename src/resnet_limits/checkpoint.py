"""Checkpoints: a training's state in one file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from resnet_limits.train import Problem


class Checkpoint:
    """A training's state in one file, replaced whole.

    Parameters
    ----------
    path
        The file.
    marks
        Hashes of configuration and sources; a checkpoint with other marks is not continued,
        since its numbers would be a mixture.
    problem
        Whose state is saved and restored.
    """

    def __init__(self, path: Path, marks: Mapping[str, str], problem: Problem) -> None:
        self.path = path
        self.marks = dict(marks)
        self.problem = problem

    def save(self, progress: Mapping[str, Any]) -> None:
        """Write problem, optimizer, scheduler and the loop's own progress."""
        problem = self.problem
        content = {
            "marks": self.marks,
            "progress": dict(progress),
            "state": {name: _content(value) for name, value in problem.state.items()},
            "optimizer": problem.optimizer.state_dict(),
            "scheduler": problem.scheduler and problem.scheduler.state_dict(),
        }
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        torch.save(content, temporary)
        temporary.replace(self.path)

    def restore(self) -> dict[str, Any] | None:
        """Load the file into the problem; return the progress, or None to start afresh."""
        if not self.path.exists():
            return None
        content = self._load()
        if content.get("marks") != self.marks:
            print(f"{self.path}: of another configuration or other sources; starting over.")
            return None
        for name, value in content["state"].items():
            _restore(self.problem.state[name], value)
        self.problem.optimizer.load_state_dict(content["optimizer"])
        if self.problem.scheduler is not None:
            self.problem.scheduler.load_state_dict(content["scheduler"])
        return content["progress"]

    def _load(self) -> dict[str, Any]:
        try:
            # The file is our own, and holds data frames besides tensors.
            return torch.load(self.path, map_location="cpu", weights_only=False)
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError):
            return {}

    def remove(self) -> None:
        """Delete the file of a finished training."""
        self.path.unlink(missing_ok=True)


def _content(value: Tensor | torch.Generator) -> Tensor:
    return value.get_state() if isinstance(value, torch.Generator) else value.detach()


@torch.no_grad()
def _restore(target: Tensor | torch.Generator, value: Tensor) -> None:
    if isinstance(target, torch.Generator):
        target.set_state(value)
    else:
        target.copy_(value)
