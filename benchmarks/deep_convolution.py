"""One training step of a deep convolutional network: this package's engines against plain modules.

All paths train the network of `resnet_limits.models.deep_convolution` from the same weights on the
same batches, optimizer included. The naive one is a module per layer, contiguous, with biases that
batch norm cancels. Differences are those of the first step's loss and of the gradient of the first
convolution, behind which are all layers, to the naive path in float64.

    python benchmarks/deep_convolution.py --depths 64
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _timing as timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_limits.models.deep_convolution import DeepConvolution
from resnet_limits.models.engines import has_numba

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


class Paths:
    """Trainings of one network on one batch."""

    def __init__(self, depth: int, arguments: argparse.Namespace) -> None:
        self.depth, self.arguments = depth, arguments
        source = torch.Generator().manual_seed(0)
        self.x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, generator=source)
        self.y = torch.randint(10, (arguments.batch,), generator=source)

    def network(self, backend: str = "torch") -> DeepConvolution:
        """Return the network at the start."""
        weights, arguments = torch.Generator().manual_seed(1), self.arguments
        network = DeepConvolution(
            self.depth, arguments.activation, "iid", weights, size=arguments.size, backend=backend
        )
        nn.init.constant_(network.bn2_weight, STARTED)
        return network

    def exact(self) -> timing.Run:
        """Return the naive path in float64."""
        return Training(modules(self.network()).double(), (self.x.double(), self.y), False).step

    def naive(self) -> timing.Run:
        """Return the naive path."""
        return Training(modules(self.network()), (self.x, self.y), False).step

    def channels_last(self, model: nn.Module, bfloat16: bool = False) -> timing.Run:
        """Return the path of a model in channels last."""
        layout = torch.channels_last
        batch = self.x.to(memory_format=layout), self.y
        return Training(model.to(memory_format=layout), batch, bfloat16).step

    def all(self) -> dict[str, timing.Run]:
        """Return what is timed."""
        paths = {
            "naive": self.naive(),
            "naive, bfloat16": self.channels_last(modules(self.network()), bfloat16=True),
            "torch": self.channels_last(self.network()),
            "torch, bfloat16": self.channels_last(self.network(), bfloat16=True),
        }
        if has_numba():
            paths["numba"] = self.channels_last(self.network("numba"))
        return paths


def main() -> None:
    """Print the table."""
    parser = timing.parser(__doc__, repeats=5)
    parser.add_argument("--depths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="gelu")
    arguments = timing.parse(parser)
    table = timing.Table(arguments, baseline="naive")
    for depth in arguments.depths:
        paths = Paths(depth, arguments)
        table.add(f"depth {depth}", paths.all(), reference=paths.exact())
    table.save()


if __name__ == "__main__":
    main()
