"""Checks that a `Problem` keeps its contract, so that a broken one ends with a remedy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from resnet_limits.errors import UserError
from resnet_limits.problem import Problem

Stateful = Tensor | torch.Generator
METRICS = "metrics"  # the probe that every run has
# Descriptions, which no step may change.
FIXED = ("members", "probes", "milestones", "state")
WORDS = int | float | str | None  # what a column or a member may hold; a bool is an int
COMPARED_BYTES = 2**20  # arrays up to this size are compared, larger ones only told apart


def training_state(problem: Problem) -> dict[str, Stateful]:
    """Return all tensors and generators that a resumed run needs, by name, each once.

    These are the modules and generators among the attributes, what the optimizer trains, and
    what the problem declares.
    """
    found: dict[str, Stateful] = {}
    for name, value in attributes(problem):
        if isinstance(value, nn.Module):
            found |= dict(value.named_parameters(name))
            found |= dict(value.named_buffers(name))  # those that state_dict leaves out, too
        elif isinstance(value, torch.Generator):
            found[name] = value
    for number, group in enumerate(problem.optimizer.param_groups):
        found |= {f"parameters.{number}.{i}": p for i, p in enumerate(group["params"])}
    found |= {f"state.{name}": value for name, value in problem.state.items()}
    first: dict[Any, str] = {}
    for name, value in found.items():
        first.setdefault(_identity(value), name)
    return {name: found[name] for name in first.values()}


def attributes(problem: Problem) -> Iterator[tuple[str, Any]]:
    """Yield a problem's attributes by name, and the items of those that are containers."""
    for name, value in vars(problem).items():
        if name not in FIXED:
            yield from _items(name, value)


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _items(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _items(f"{name}.{index}", item)
    else:
        yield name, value


def _identity(value: Stateful) -> Any:
    """Tell tensors apart by where their numbers are, which views share."""
    if isinstance(value, torch.Generator) or value.numel() == 0:
        return id(value)
    return value.device, value.data_ptr(), value.shape


class Contract:
    """Watches one problem while it is trained.

    Raises
    ------
    UserError
        From every method, where the problem breaks its contract.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._check_description()
        self._before = self._snapshot()
        self._random = _global_random_state()

    def check_losses(self, losses: Tensor) -> None:
        """Ask for a loss for each member."""
        wanted = (len(self.problem.members),)
        if not isinstance(losses, Tensor) or losses.shape != wanted:
            found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            self._fail(
                f"loss_and_grad() returned {found}, not a tensor of shape {wanted}: "
                "return the loss of every member, such as loss.reshape(1) of a single network"
            )

    def check_gradients(self) -> None:
        """Ask for a gradient of something that the optimizer trains."""
        groups = self.problem.optimizer.param_groups
        if all(p.grad is None for group in groups for p in group["params"]):
            self._fail(
                "loss_and_grad() left no gradient: call loss.backward(), or set .grad of the "
                "tensors that the optimizer was given"
            )

    def check_state(self) -> None:
        """Ask that whatever has changed since the start is in the checkpoint."""
        before, now = self._before, self._snapshot()
        for name in {**before, **now}:
            if name not in before or name not in now or before[name][1] != now[name][1]:
                self._fail(
                    f"the attribute {name!r} changes while training, but no checkpoint holds it: "
                    "keep it as a tensor, change it in place and list it in `state`, or name it "
                    "in `scratch` if it can be computed afresh"
                )
        for source, state in _global_random_state().items():
            if state != self._random.get(source, state):
                self._fail(
                    f"random numbers were drawn from the global generator of {source}, which no "
                    "checkpoint holds: draw them from resnet_limits.random.generator(seed, purpose)"
                )

    def check_rows(self, probe: str, frame: pd.DataFrame) -> None:
        """Ask a probe for a data frame of numbers and words, which a checkpoint can hold."""
        if not isinstance(frame, pd.DataFrame):
            self._fail(f"the probe {probe!r} returned {type(frame).__name__}, not a DataFrame")
        for name in frame.columns:
            if name == "step" or list(frame.columns).count(name) > 1:
                self._fail(f"the probe {probe!r} returned a second column {name!r}: rename it")
            values = frame[name].to_numpy()
            if values.dtype.kind not in "biufO":
                self._fail_column(probe, name, str(values.dtype))
            for value in values if values.dtype == object else ():
                if not isinstance(value, WORDS | np.generic):
                    self._fail_column(probe, name, type(value).__name__)

    def _fail_column(self, probe: str, name: str, found: str) -> None:
        self._fail(
            f"the probe {probe!r} returned a column {name!r} of type {found}: make its values "
            "numbers or words"
        )

    def _check_description(self) -> None:
        problem = self.problem
        wanted = ("members", "steps", "data", "optimizer", "probes")
        for name in wanted:
            if not hasattr(problem, name):
                self._fail(f"lacks the attribute {name!r}: set it in __init__")
        names = [probe.name for probe in problem.probes]
        if METRICS not in names:
            self._fail(f"has no probe called {METRICS!r}, which every run needs: add one")
        for probe in problem.probes:
            if names.count(probe.name) > 1:
                self._fail(f"has two probes called {probe.name!r}: rename one")
            if not probe.steps or not 0 <= min(probe.steps) <= max(probe.steps) <= problem.steps:
                self._fail(f"the probe {probe.name!r} needs steps from 0 to {problem.steps}")
        if not problem.members:
            self._fail("has no members: a run of one network has one, such as {'seed': 0}")
        for member in problem.members:
            for key, value in member.items():
                if not isinstance(value, WORDS):
                    self._fail(
                        f"the member's {key!r} is of type {type(value).__name__}: give a number "
                        "of Python's or a word"
                    )

    def _snapshot(self) -> dict[str, tuple[Any, Any]]:
        """Return the attributes that nothing restores, each with what tells whether it changed.

        Holding the attributes keeps others from taking their identity.
        """
        problem = self.problem
        kept = {_identity(value) for value in training_state(problem).values()}
        found = {}
        for name, value in attributes(problem):
            restored = isinstance(value, nn.Module | torch.Generator | Optimizer | LRScheduler)
            restored |= isinstance(value, Tensor) and _identity(value) in kept
            if not restored and name.split(".")[0] not in problem.scratch:
                found[name] = value, _mark(value)
        return found

    def _fail(self, what: str) -> None:
        raise UserError(f"{type(self.problem).__module__}.{type(self.problem).__name__}: {what}.")


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version, _content(value)
    if isinstance(value, np.ndarray):
        return id(value), _content(torch.from_numpy(value)) if value.dtype.kind in "biuf" else None
    if isinstance(value, int | float | complex | str | bytes | set | None):
        return repr(value)
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, Iterator):
        return object()  # differs from any other: where an iterator stands cannot be seen
    return id(value)


def _content(value: Tensor) -> bytes | None:
    """Return a small tensor's bytes: numpy, which may share them, changes no version number."""
    if value.nbytes > COMPARED_BYTES:
        return None
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _global_random_state() -> dict[str, Any]:
    found = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002 (what a study may have used)
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["torch on the GPU"] = torch.cuda.get_rng_state().numpy().tobytes()
    return found
