"""Checks that a `Problem` keeps its contract, so that a broken one ends with a remedy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
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


def training_state(problem: Problem) -> dict[str, Stateful]:
    """Return all tensors and generators that a resumed run needs, by name, each once.

    These are the modules and generators among the attributes, what the optimizer trains, and
    what the problem declares.
    """
    found: dict[str, Stateful] = {}
    for name, value in attributes(problem):
        if isinstance(value, nn.Module):
            tensors = value.state_dict(prefix=f"{name}.")
            found |= {key: tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
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
    """Tell tensors apart by where their numbers are: ``state_dict`` makes new tensors of them."""
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
        for name, value in self._snapshot().items():
            if name not in self._before or value != self._before[name]:
                self._fail(
                    f"the attribute {name!r} changes while training, but no checkpoint holds it: "
                    "keep it as a tensor, change it in place and list it in `state`, or name it "
                    "in `scratch` if it can be computed afresh"
                )
        for source, state in _global_random_state().items():
            if state != self._random[source]:
                self._fail(
                    f"random numbers were drawn from the global generator of {source}, which no "
                    "checkpoint holds: draw them from resnet_limits.random.generator(seed, purpose)"
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

    def _snapshot(self) -> dict[str, Any]:
        """Return what tells whether an attribute was changed, of those that nothing restores."""
        problem = self.problem
        kept = {_identity(value) for value in training_state(problem).values()}
        found = {}
        for name, value in attributes(problem):
            restored = isinstance(value, nn.Module | torch.Generator | Optimizer | LRScheduler)
            restored |= isinstance(value, Tensor) and _identity(value) in kept
            if not restored and name.split(".")[0] not in problem.scratch:
                found[name] = _mark(value)
        return found

    def _fail(self, what: str) -> None:
        raise UserError(f"{type(self.problem).__module__}.{type(self.problem).__name__}: {what}.")


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.nbytes < 2**20 else id(value)
    if isinstance(value, int | float | complex | str | bytes | None):
        return repr(value)
    return id(value)


def _global_random_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002 (what a study may have used)
        "python": random.getstate(),
    }
