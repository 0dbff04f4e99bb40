"""What the author of a study writes: a `Problem`, its `Probe` measurements and its `Data`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """Where a run is trained; nothing in it may change what is trained."""

    device: torch.device
    data_root: Path


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


@dataclass(frozen=True)
class Probe:
    """A measurement.

    Attributes
    ----------
    name
        The measurement's file is ``<name>.csv``; ``metrics`` is the one that every run has.
    steps
        Numbers of optimizer steps after which it is taken; 0 is before the first.
    measure
        Returns tidy rows, columns of members included.
    """

    name: str
    steps: Sequence[int]
    measure: Callable[[], pd.DataFrame]


class Problem:
    """What one run trains and measures.

    A subclass ``XProblem`` takes ``(settings: XSettings, context: Context)``, sets the attributes
    below and writes `loss_and_grad`. `resnet_limits.train.fit` does the rest: it zeroes the
    gradients, updates, measures, writes checkpoints and the record.

    A checkpoint holds what the optimizer trains, and every `torch.nn.Module`, optimizer,
    scheduler and `torch.Generator` among the problem's attributes. Whatever else changes while
    training goes into ``state``. `fit` ends with an error if an attribute changes that is in
    neither, or if random numbers come from a global generator: such a run could not be resumed.

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
        What is measured, and before which steps; one of them is called ``metrics``.
    milestones
        Steps after which a checkpoint is due, besides those by time; e.g. the ends of epochs.
    state
        Tensors and generators that change besides, by name: counters, running sums. They are
        restored in place.
    scratch
        Names of attributes that change but need no checkpoint, since they can be computed afresh.
    engine
        What computes, where there is a choice: ``torch`` or ``numba``; goes into the record.
    precision
        Type of most of the arithmetic, where there is a choice; goes into the record.
    """

    members: Sequence[Mapping[str, Any]]
    steps: int
    data: Data
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    probes: Sequence[Probe]
    milestones: Container[int] = ()
    state: Mapping[str, Tensor | torch.Generator] = {}
    scratch: Container[str] = ()
    engine: str = "torch"
    precision: str = ""

    def loss_and_grad(self) -> Tensor:
        """Compute every member's loss, shape ``(members,)``, and leave gradients in ``.grad``.

        It changes no parameter: the optimizer's update is `fit`'s.
        """
        raise NotImplementedError

    def is_done(self) -> bool:
        """Whether to stop before the last step; asked after every measurement."""
        return False
