"""One training step of a deep convolutional network: this package's engines against plain modules.

All paths train the network of `resnet_limits.models.deep_convolution` from the same weights on the
same batches, optimizer included, in one process, taking turns. The naive one is a module per layer,
contiguous, with biases that batch norm cancels. Errors are those of the first step's loss and of
the gradient of the first convolution, behind which are all layers, against the naive path in
float64 and relative to its largest entry.
Run it on an idle machine: ``python benchmarks/deep_convolution.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_limits.models.deep_convolution import DeepConvolution

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference.deep_convolution import ACTIVATIONS, modules

STARTED = 0.1  # of bn2's weights: those of 0 would leave most gradients 0


class Training:
    """A network, its optimizer and its batch."""

    def __init__(self, network: nn.Module, batch: tuple[Tensor, Tensor], bfloat16: bool) -> None:
        self.network = network
        self.bfloat16 = bfloat16
        self.x, self.y = batch
        stem = "stem" if isinstance(network, DeepConvolution) else "0"
        self.stem = network.get_submodule(stem).get_parameter("weight")
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=0.04, momentum=0.9, weight_decay=5e-4
        )

    def step(self) -> list[Tensor]:
        """Train by one step; return the loss and the first convolution's gradient."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, self.bfloat16):
            logits = self.network(self.x)
        loss = F.cross_entropy(logits.to(self.stem.dtype), self.y)
        torch.autograd.backward(loss)
        self.optimizer.step()
        assert self.stem.grad is not None
        return [loss.detach(), self.stem.grad]


def trainings(depth: int, arguments: argparse.Namespace) -> dict[str, Training]:
    """Return every path, the reference in float64 first."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, generator=source)
    y = torch.randint(10, (arguments.batch,), generator=source)

    def start(backend: str) -> DeepConvolution:
        weights, size = torch.Generator().manual_seed(1), arguments.size
        network = DeepConvolution(
            depth, arguments.activation, "iid", weights, size=size, backend=backend
        )
        nn.init.constant_(network.bn2_weight, STARTED)
        return network

    def channels_last(model: nn.Module, bfloat16: bool = False) -> Training:
        model = model.to(memory_format=torch.channels_last)
        return Training(model, (x.to(memory_format=torch.channels_last), y), bfloat16)

    return {
        "reference": Training(modules(start("torch")).double(), (x.double(), y), False),
        "naive": Training(modules(start("torch")), (x, y), False),
        "naive, bfloat16": channels_last(modules(start("torch")), bfloat16=True),
        "torch": channels_last(start("torch")),
        "torch, bfloat16": channels_last(start("torch"), bfloat16=True),
        "numba": channels_last(start("numba")),
    }


def difference(result: list[Tensor], reference: list[Tensor]) -> float:
    """Return the largest error, relative to the largest entry."""
    return max(
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(result, reference, strict=True)
    )


def compare(depth: int, arguments: argparse.Namespace) -> None:
    """Print one row for each path."""
    paths = trainings(depth, arguments)
    reference = paths.pop("reference").step()
    errors = {name: difference(path.step(), reference) for name, path in paths.items()}
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(arguments.repeats):
        for name, path in paths.items():
            start = time.perf_counter()
            path.step()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds["naive"], times, strict=True)]
        cost = f"{1e3 * statistics.median(times):9.1f} {statistics.median(ratios):7.2f}"
        print(f"{depth:5} {name:18} {cost} {errors[name]:9.1e}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--depths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="gelu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'depth':5} {'path':18} {'ms':>9} {'speedup':>7} {'error':>9}")
    for depth in arguments.depths:
        compare(depth, arguments)


if __name__ == "__main__":
    main()
