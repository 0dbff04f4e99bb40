"""The authors' own trained networks, where a reader has put their files: nothing is trained."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.errors import UserError
from resnet_limits.models.deep_convolution import FILTER_SIZE
from resnet_limits.models.smoothness import smoothness
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.studies.weight_smoothness.image_problems import list_entries
from resnet_limits.studies.weight_smoothness.settings import PublishedSettings

# As the authors' code names them: learning rate 0.04 and seed 0.
FILE = (
    "ckpt_lr_4e-02_depth_{depth}_seed_0_use_bn_{batch_norm}_smooth_init_{smooth}"
    "_adaptive_False_non_lin_{activation}.pth"
)
PRESENT, ABSENT = "authors' networks", "authors' networks (absent)"
CONVOLUTIONS = ("conv1", "conv2")


class Published(NamedTuple):
    """A network that the authors published.

    Attributes
    ----------
    filters
        Of conv1 and conv2, each ``(L, channels, channels, 3, 3)``.
    test_accuracy, train_accuracy
        In % after every epoch, as the authors' log has them.
    """

    filters: dict[str, Tensor]
    test_accuracy: list[float]
    train_accuracy: list[float]


class PublishedProblem(Problem):
    """Smoothness and accuracy of the authors' eight networks.

    There is no step: everything is measured at the start. Networks whose files are absent are
    listed as not found, so that a scale finishes without them.
    """

    def __init__(self, settings: PublishedSettings, context: Context) -> None:
        self.settings = settings
        axes = (settings.activation, settings.init, settings.batch_norm)
        keys = ("activation", "init", "batch_norm")
        self.members = [dict(zip(keys, cell, strict=True)) for cell in itertools.product(*axes)]
        folder = context.data_root / settings.folder
        self.found = {
            index: read_published(path, settings.depth, settings.channels)
            for index, member in enumerate(self.members)
            if (path := folder / file_name(settings.depth, member)).exists()
        }
        self.data = self._describe()
        self.steps = 0
        self.optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0)  # every problem has one
        self.probes = [Probe("metrics", [0], self.measure)]
        if self.found:
            self.probes.append(Probe("smoothness", [0], self.measure_smoothness))
            self.probes.append(Probe("entries", [0], self.measure_entries))

    def measure(self) -> pd.DataFrame:
        """Which networks were found, and the accuracies that the authors' logs end with."""
        rows = []
        for index, member in enumerate(self.members):
            network = self.found.get(index)
            rows.append(
                {
                    **member,
                    "depth": self.settings.depth,
                    "found": network is not None,
                    "test_accuracy": network.test_accuracy[-1] if network else math.nan,
                    "best_test_accuracy": max(network.test_accuracy) if network else math.nan,
                    "train_accuracy": network.train_accuracy[-1] if network else math.nan,
                }
            )
        return pd.DataFrame(rows)

    def measure_smoothness(self) -> pd.DataFrame:
        """Measure `smoothness` of each convolution (Table 1)."""
        rows = [
            {
                **self.members[index],
                "convolution": name,
                **{key: float(value) for key, value in smoothness(weights)._asdict().items()},
            }
            for index, network in self.found.items()
            for name, weights in network.filters.items()
        ]
        return pd.DataFrame(rows)

    def measure_entries(self) -> pd.DataFrame:
        """List some entries of the filters over layers (Figure 3)."""
        settings = self.settings
        frames = [
            list_entries(network.filters, settings.entries, settings.seed).assign(
                **self.members[index]
            )
            for index, network in self.found.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def _describe(self) -> Data:
        tensors = [
            weights for network in self.found.values() for weights in network.filters.values()
        ]
        count = f"{len(self.found)} of {len(self.members)} files in {self.settings.folder}/"
        return Data.of(PRESENT if tensors else ABSENT, tensors, count)


def file_name(depth: int, member: Mapping[str, Any]) -> str:
    """Return the name that the authors gave to a network's file."""
    return FILE.format(
        depth=depth,
        batch_norm=member["batch_norm"],
        smooth=member["init"] == "weight_tied",
        activation=member["activation"],
    )


def read_published(path: Path, depth: int, channels: int) -> Published:
    """Read one of the authors' files: a torch pickle, of which no code is executed.

    Raises
    ------
    UserError
        If it holds anything but tensors and plain values, or is not of the form that
        `Published` needs.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols; it is read or not
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read without executing it ({reason}).") from None
    try:
        net, log = content["net"], content["log_dict"]
        filters = {name: _stack(net, name, depth, channels) for name in CONVOLUTIONS}
        test, train = (_accuracies(log[f"{part}_acc"]) for part in ("test", "train"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not one of the authors' networks: {error}.") from None
    return Published(filters, test, train)


def _stack(net: dict[str, Any], name: str, depth: int, channels: int) -> Tensor:
    """Return one convolution of all layers."""
    shape = (channels, channels, FILTER_SIZE, FILTER_SIZE)
    if f"residual_layers.{depth}.{name}.weight" in net:
        raise ValueError(f"it has more than {depth} layers")
    layers = [net[f"residual_layers.{index}.{name}.weight"] for index in range(depth)]
    for layer in layers:
        if not isinstance(layer, Tensor) or layer.shape != shape or not layer.is_floating_point():
            raise ValueError(f"{name} is not of shape {shape} in every layer")
        if not torch.isfinite(layer).all():
            raise ValueError(f"{name} is not finite")
    return torch.stack([layer.detach().float() for layer in layers])


def _accuracies(values: Any) -> list[float]:
    found = [float(value) for value in values]
    if not found or not all(0 <= value <= 100 for value in found):
        raise ValueError("its accuracies are not percentages")
    return found
