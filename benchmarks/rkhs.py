"""Cost of training random-feature ResNets: the engine against a naive autograd loop.

The engine advances all draws of the features together, the reference implementation runs draw
after draw. Data, features, steps and precision are the same; both run in this process, in turn.
Prints medians over repetitions, their ratio, and the largest relative difference of the losses.

    python benchmarks/rkhs.py --samples 32 --widths 16 64 256 1024
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from resnet_limits.data.synthetic import jittered_grid, standard_normal
from resnet_limits.models.embeddings import scaling_maps
from resnet_limits.models.kernels import Gaussian
from resnet_limits.models.rkhs import FeatureResNet

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference import rkhs as reference

Pair = tuple[Tensor, Tensor]


def train_together(
    data: Pair, maps: Pair, frequencies: Tensor, depth: int, steps: int
) -> tuple[Tensor, float]:
    """Return the last losses of all draws, and the seconds that a step took."""
    (x, y), (A, B) = data, maps
    model = FeatureResNet(x[None], y[None], A, B, frequencies, depth)
    optimizer = torch.optim.SGD([model.weights], lr=1.0)
    start = time.perf_counter()
    for _ in range(steps):
        losses = model.loss_and_grad()
        optimizer.step()
    return losses, (time.perf_counter() - start) / steps


def train_one_by_one(
    data: Pair, maps: Pair, frequencies: Tensor, depth: int, steps: int
) -> tuple[Tensor, float]:
    """Do the same by autograd, draw after draw."""
    losses, seconds = [], 0.0
    states = len(maps[0])
    for draw in frequencies:
        weights = [torch.zeros(states, 2 * len(draw), requires_grad=True) for _ in range(depth)]
        # The gradient in L2([0, 1]) is depth times the plain one.
        optimizer = torch.optim.SGD(weights, lr=float(depth))
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = reference.losses(*data, *maps, draw, weights, depth)
            torch.autograd.backward(loss)
            optimizer.step()
        seconds += time.perf_counter() - start
        losses.append(loss.detach())
    return torch.stack(losses), seconds / steps


def main() -> None:
    """Print one line for each width."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    generator = torch.Generator().manual_seed(0)
    points = jittered_grid(options.samples, 2, 2.5, 0.1, generator)
    targets = standard_normal(options.samples, 2, generator)
    data = points.float(), targets.float()
    A, B = scaling_maps(1.0, 2, 2)
    maps = A.float(), B.float()
    print("samples  width  together ms  one by one ms  ratio  max difference")
    for width in options.widths:
        frequencies = Gaussian().frequencies((options.draws, width, 4), generator).float()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.repeats):
            ours, seconds = train_together(data, maps, frequencies, options.depth, options.steps)
            times[0].append(seconds)
            plain, seconds = train_one_by_one(data, maps, frequencies, options.depth, options.steps)
            times[1].append(seconds)
        fast, slow = (1e3 * statistics.median(taken) for taken in times)
        difference = ((ours - plain) / plain).abs().max().item()
        print(
            f"{options.samples:7}  {width:5}  {fast:11.2f}  {slow:13.2f}  {slow / fast:5.1f}"
            f"  {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
