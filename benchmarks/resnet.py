"""One step of training a ResNet on images: this package's against a naive autograd loop.

Ours is a step of `ResNetProblem`: images held as bytes, crops and flips as one tensor, channels
last, convolutions in bfloat16 where the processor computes with it and all else in float32, sorted
time steps or none. The naive loop crops and flips float images one by one and applies the reference
implementation in float32, contiguous.
All start from the same weights and see the same batches; a step includes its batch and the
optimizer.

    python benchmarks/resnet.py --network resnet20
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import _timing as timing
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_limits.data.batches import Draw
from resnet_limits.models.resnet import NAMES
from resnet_limits.problem import Context
from resnet_limits.settings import build, to_json
from resnet_limits.spec import load_study
from resnet_limits.studies.sorted_tau.problems import ResNetProblem
from resnet_limits.studies.sorted_tau.settings import ResNetSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference import resnet as reference

COMPARED = 3  # steps; training amplifies rounding errors in later ones
OURS = {
    "vanilla": ("vanilla", "auto"),
    "trained steps": ("steps", "auto"),
    "sorted tau": ("sorted_tau", "auto"),
    "vanilla, float32": ("vanilla", "float32"),
}


def settings_of(arguments: argparse.Namespace, method: str, precision: str) -> ResNetSettings:
    """Return the settings of the paper's training run of ResNet-20, but for the arguments."""
    run = next(load_study("sorted_tau").runs("paper", "resnet20"))
    changes = {name: getattr(arguments, name) for name in ("network", "dataset", "size", "batch")}
    changes |= {"method": method, "precision": {"cpu": precision, "cuda": precision}}
    return build(ResNetSettings, to_json(run.settings) | changes, "the benchmark's settings")


class Ours:
    """Training by this package."""

    def __init__(self, settings: ResNetSettings, root: Path) -> None:
        self.problem = ResNetProblem(settings, Context(torch.device("cpu"), root))

    def step(self) -> list[Tensor]:
        """Train by one step; return the loss."""
        self.problem.optimizer.zero_grad()
        loss = self.problem.loss_and_grad()
        self.problem.optimizer.step()
        assert self.problem.scheduler is not None
        self.problem.scheduler.step()
        return [loss]


class Naive:
    """What `Ours` does in float32, by a naive autograd loop."""

    def __init__(self, settings: ResNetSettings, root: Path) -> None:
        problem = Ours(settings, root).problem
        self.settings = settings
        self.model = problem.network
        self.model.to(memory_format=torch.contiguous_format)
        mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None]
            for values in (problem.images.mean, problem.images.std)
        )
        images = torch.as_tensor(problem.images.train.images).permute(0, 3, 1, 2) / 255
        border = (settings.size - images.shape[-1]) // 2 + settings.augmentation.pad
        # Normalized after padding with black, as in the package.
        self.images = ((F.pad(images, [border] * 4) - mean) / std).contiguous()
        self.labels = torch.as_tensor(problem.images.train.labels)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, 0.9, weight_decay=1e-4)
        self.batches = self._batches()

    def step(self) -> list[Tensor]:
        """Train by one step; return the loss."""
        images, labels = next(self.batches)
        loss = F.cross_entropy(reference.forward(self.model, images), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return [loss.detach()]

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in range(self.settings.epochs):
            augmentation = self.settings.augmentation
            draw = Draw.epoch(len(self.labels), augmentation.pad, augmentation.flip, 0, epoch)
            for first in range(0, len(self.labels), self.settings.batch):
                yield self._batch(draw[first : first + self.settings.batch])

    def _batch(self, draw: Draw) -> tuple[Tensor, Tensor]:
        size, images = self.settings.size, []
        for row, down, right, flipped in zip(*vars(draw).values(), strict=True):
            image = self.images[row, :, down : down + size, right : right + size]
            images.append(image.flip(-1) if flipped else image)
        return torch.stack(images), self.labels[draw.rows]


def main() -> None:
    """Print the table, and what sorted time steps cost."""
    parser = timing.parser(__doc__, repeats=10)
    parser.add_argument("--network", choices=NAMES, default="resnet20")
    parser.add_argument("--dataset", default="digits", help="digits, or one in the data root")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--size", type=int, default=32, help="of the images, padded to it")
    parser.add_argument("--batch", type=int, default=128)
    arguments = timing.parse(parser)

    naive = settings_of(arguments, "vanilla", "float32")
    paths = {"naive loop": Naive(naive, arguments.data_root).step}
    for name, path in OURS.items():
        paths[name] = Ours(settings_of(arguments, *path), arguments.data_root).step
    table = timing.Table(arguments, baseline="naive loop")
    times = table.add(f"{arguments.network}, {arguments.dataset}", paths, calls=COMPARED)
    table.save()
    cost = times.ratio("sorted tau", "vanilla")
    print(f"A step with sorted time steps costs {cost.median:.3f} vanilla steps.")


if __name__ == "__main__":
    main()
