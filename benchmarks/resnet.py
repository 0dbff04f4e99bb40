"""One step of training a ResNet on images: this package's against the loop that everyone writes.

Ours is a step of `Classification`: images held as bytes, crops and flips as one tensor, channels
last, bfloat16 where the processor computes with it, sorted time steps or none. The plain loop crops
and flips float images one by one and writes the same layers with slices, in float32, contiguous.
All start from the same weights and see the same batches, in one process, taking turns; a step
includes its batch and the optimizer. Run it on an idle machine: ``python benchmarks/resnet.py``.
"""

import argparse
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_limits.classification import Classification
from resnet_limits.data.batches import Draw
from resnet_limits.models.resnet import NAMES, ResNet, network
from resnet_limits.random import generator
from resnet_limits.train import Context

COMPARED = 3  # steps; later losses differ by what training makes of rounding
PATHS = {
    "vanilla": ("vanilla", "auto"),
    "sorted tau": ("sorted_tau", "auto"),
    "vanilla, float32": ("vanilla", "float32"),
}


def settings_of(arguments: argparse.Namespace, method: str, precision: str) -> SimpleNamespace:
    """Return the settings of a training as in the paper, but for its length."""
    return SimpleNamespace(
        network=arguments.network,
        method=method,
        dataset=arguments.dataset,
        train_images=0,
        size=arguments.size,
        batch=arguments.batch,
        epochs=arguments.repeats,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        schedule={"kind": "step", "milestones": [], "factor": 0.1},
        augmentation={"pad": 4, "flip": True},
        precision={"cpu": precision, "cuda": precision},
        seed=0,
    )


class Ours:
    """A training by this package."""

    def __init__(self, settings: SimpleNamespace, root: Path) -> None:
        def build(images, _size):
            channels, classes = images.train.images.shape[-1], len(images.classes)
            weights = generator(0, "weights")
            return network(settings.network, channels, classes, settings.method, weights)

        self.problem = Classification(settings, Context(torch.device("cpu"), root), build)

    def step(self) -> Tensor:
        """Take one step."""
        loss = self.problem.step()
        self.problem.optimizer.step()
        self.problem.scheduler.step()
        return loss


class Plain:
    """The training that `Ours` does in float32, by plain means."""

    def __init__(self, settings: SimpleNamespace, root: Path) -> None:
        problem = Ours(settings, root).problem
        self.settings, self.model = settings, problem.network
        self.model.to(memory_format=torch.contiguous_format)
        mean, std = (
            torch.tensor(v)[:, None, None] for v in (problem.images.mean, problem.images.std)
        )
        images = torch.as_tensor(problem.images.train.images).permute(0, 3, 1, 2) / 255
        border = (settings.size - images.shape[-1]) // 2 + settings.augmentation["pad"]
        # Normalized after padding with black, as in the package.
        self.images = ((F.pad(images, [border] * 4) - mean) / std).contiguous()
        self.labels = torch.as_tensor(problem.images.train.labels)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, 0.9, weight_decay=1e-4)
        self.epochs = self._epochs()

    def step(self) -> Tensor:
        """Take one step."""
        images, labels = next(self.epochs)
        loss = F.cross_entropy(plain_forward(self.model, images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _epochs(self):
        for epoch in range(self.settings.epochs):
            draw = Draw.epoch(len(self.labels), self.settings.augmentation, 0, epoch)
            for first in range(0, len(self.labels), self.settings.batch):
                yield self._batch(draw[first : first + self.settings.batch])

    def _batch(self, draw: Draw) -> tuple[Tensor, Tensor]:
        size, images = self.settings.size, []
        for row, down, right, flipped in zip(*vars(draw).values(), strict=True):
            image = self.images[row, :, down : down + size, right : right + size]
            images.append(image.flip(-1) if flipped else image)
        return torch.stack(images), self.labels[draw.rows]


def plain_forward(model: ResNet, x: Tensor) -> Tensor:
    """Apply a vanilla network's layers as they are usually written down."""
    x = model.stem(x)
    for block in (block for blocks in model.stages for block in blocks):
        first = hidden = F.relu(block.norms[0](x))
        for convolution, norm in zip(block.inner, block.norms[1:], strict=True):
            hidden = F.relu(norm(convolution(hidden)))
        if block.projection is not None:
            x = block.projection(first)
        elif block.changes_shape:
            x = F.pad(x[:, :, :: block.stride, :: block.stride], [0] * 5 + [block.new_channels])
        x = x + block.last(hidden)
    return model.classifier(F.relu(model.norm(x)).mean((2, 3)))


def main() -> None:
    """Print one row for each path, and what sorted time steps cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NAMES, default="resnet20")
    parser.add_argument("--dataset", default="digits", help="digits, or one in the data root")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--size", type=int, default=32, help="of the images, padded to it")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    plain = settings_of(arguments, "vanilla", "float32")
    paths = {"plain loop": Plain(plain, arguments.data_root)}
    for name, path in PATHS.items():
        paths[name] = Ours(settings_of(arguments, *path), arguments.data_root)
    losses = {name: [path.step().item() for _ in range(COMPARED)] for name, path in paths.items()}
    seconds = {name: [] for name in paths}
    for _ in range(arguments.repeats):
        for name, path in paths.items():
            start = time.perf_counter()
            path.step()
            seconds[name].append(time.perf_counter() - start)
    times = {name: statistics.median(values) for name, values in seconds.items()}

    print(f"{arguments.network}, {arguments.dataset} at {arguments.size} pixels", end=", ")
    print(f"batches of {arguments.batch}, {arguments.threads} threads")
    print(f"{'path':18} {'ms':>8} {'images/s':>9} {'speedup':>7} {'loss error':>10}")
    for name, values in losses.items():
        expected = losses["plain loop"]
        error = max(abs(a - b) / b for a, b in zip(values, expected, strict=True))
        cost = f"{1e3 * times[name]:8.1f} {arguments.batch / times[name]:9.0f}"
        print(f"{name:18} {cost} {times['plain loop'] / times[name]:7.2f} {error:10.1e}")
    print(f"a step with sorted time steps costs {times['sorted tau'] / times['vanilla']:.3f} steps")


if __name__ == "__main__":
    main()
