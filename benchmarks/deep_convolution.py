"""One training step of a deep convolutional network: this package's engines against plain modules.

All paths train the network of `resnet_limits.models.deep_convolution` from the same weights on the
same batches, optimizer included, in one process, taking turns. The plain one is a module per layer,
contiguous, with biases that batch norm cancels. Errors are those of the first step's loss and of
the gradient of the first convolution, behind which are all layers, against the plain path in
float64 and relative to its largest entry.
Run it on an idle machine: ``python benchmarks/deep_convolution.py``.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_limits.models.deep_convolution import DeepConvolution

ACTIVATIONS = {"identity": nn.Identity, "gelu": nn.GELU, "relu": nn.ReLU}
STARTED = 0.1  # of bn2's weights: those of 0 would leave most gradients 0


class PlainLayer(nn.Module):
    """One residual layer."""

    def __init__(self, depth: int, channels: int, activation: str) -> None:
        super().__init__()
        self.depth, self.sigma = depth, ACTIVATIONS[activation]()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, h: Tensor) -> Tensor:
        """Apply the layer."""
        return h + self.bn2(self.conv2(self.sigma(self.bn1(self.conv1(h))))) / self.depth


def plain(network: DeepConvolution) -> nn.Module:
    """Write the network as everyone writes it first, with a copy of its parameters."""
    channels = network.stem.out_channels
    layers = [PlainLayer(network.depth, channels, network.activation) for _ in range(network.depth)]
    for k, layer in enumerate(layers):
        for name, kernels in network.kernels().items():
            getattr(layer, name).weight.data.copy_(kernels[k])
        layer.bn2.weight.data.copy_(network.bn2_weight[k])
    stem = nn.Conv2d(*network.stem.weight.shape[1::-1], 5, stride=3, padding=1, bias=False)
    head = nn.Linear(network.head.in_features, network.head.out_features)
    stem.load_state_dict(network.stem.state_dict())
    head.load_state_dict(network.head.state_dict())
    norm = nn.BatchNorm2d(channels)
    return nn.Sequential(stem, norm, nn.ReLU(), *layers, nn.AvgPool2d(4), nn.Flatten(), head)


class Training:
    """A network, its optimizer and its batch."""

    def __init__(self, network: nn.Module, batch: tuple[Tensor, Tensor], bfloat16: bool) -> None:
        self.network, self.bfloat16 = network, bfloat16
        self.x, self.y = batch
        stem = network.stem if isinstance(network, DeepConvolution) else network[0]
        self.stem = stem.weight
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=0.04, momentum=0.9, weight_decay=5e-4
        )

    def step(self) -> list[Tensor]:
        """Train by one step; return the loss and the first convolution's gradient."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, self.bfloat16):
            logits = self.network(self.x)
        loss = F.cross_entropy(logits.to(self.stem.dtype), self.y)
        loss.backward()
        self.optimizer.step()
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

    last = {"memory_format": torch.channels_last}
    return {
        "reference": Training(plain(start("torch")).double(), (x.double(), y), False),
        "plain": Training(plain(start("torch")), (x, y), False),
        "plain, bfloat16": Training(plain(start("torch")).to(**last), (x.to(**last), y), True),
        "torch": Training(start("torch").to(**last), (x.to(**last), y), False),
        "torch, bfloat16": Training(start("torch").to(**last), (x.to(**last), y), True),
        "numba": Training(start("numba").to(**last), (x.to(**last), y), False),
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
        ratios = [a / b for a, b in zip(seconds["plain"], times, strict=True)]
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
