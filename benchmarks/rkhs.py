"""Cost of training random-feature ResNets: the engine against a plain autograd loop.

The engine advances all draws of the features together; the loop is what one would write for one
draw, and runs draw after draw. Same data, features, steps and precision; both in this process, in
turn, medians over repetitions. Prints their ratio and how far their losses are apart.

    python benchmarks/rkhs.py --samples 32 --widths 16 64 256 1024
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from resnet_limits.data.synthetic import jittered_grid, standard_normal
from resnet_limits.models.kernels import Gaussian
from resnet_limits.models.rkhs import FeatureResNet, scaling_maps


class PlainResNet(torch.nn.Module):
    """One draw's network, written for autograd."""

    def __init__(self, input_map, output_map, frequencies, depth):
        super().__init__()
        width, q = frequencies.shape
        self.input_map, self.output_map, self.frequencies = input_map, output_map, frequencies
        self.layers = torch.nn.ParameterList(torch.zeros(q, 2 * width) for _ in range(depth))

    def features(self, z):
        """Return the random Fourier features of the states ``(N, q)``."""
        angles = z @ self.frequencies.T
        return torch.cat([angles.cos(), angles.sin()], dim=1) / len(self.frequencies) ** 0.5

    def forward(self, x):
        """Return the outputs ``(N, d')`` of the inputs ``(N, d)``."""
        z = x @ self.input_map.T
        for layer in self.layers:
            z = z + self.features(z) @ layer.T / len(self.layers)
        return z @ self.output_map.T


def train_together(data, maps, frequencies, depth, steps):
    """Return the last losses of all draws, and the seconds that a step took."""
    model = FeatureResNet(*(tensor[None] for tensor in data), *maps, frequencies, depth)
    optimizer = torch.optim.SGD([model.weights], lr=1.0)
    start = time.perf_counter()
    for _ in range(steps):
        losses = model.loss_and_grad()
        optimizer.step()
    return losses, (time.perf_counter() - start) / steps


def train_one_by_one(data, maps, frequencies, depth, steps):
    """Do the same by autograd, draw after draw."""
    (x, y), losses, seconds = data, [], 0.0
    for draw in frequencies:
        model = PlainResNet(*maps, draw, depth)
        # The gradient in L2([0, 1]) is depth times the derivative.
        optimizer = torch.optim.SGD(model.parameters(), lr=float(depth))
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(x) - y).square().sum() / (2 * len(x))
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        losses.append(loss.detach())
    return torch.stack(losses), seconds / steps


def main():
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
    data = [tensor.float() for tensor in (points, targets)]
    maps = [tensor.float() for tensor in scaling_maps(1.0, 2, 2)]
    print("samples  width  together ms  one by one ms  ratio  losses differ by")
    for width in options.widths:
        frequencies = Gaussian().frequencies((options.draws, width, 4), generator).float()
        setting = (data, maps, frequencies, options.depth, options.steps)
        seconds = {train_together: [], train_one_by_one: []}
        losses = {}
        for _ in range(options.repeats):
            for train, taken in seconds.items():
                losses[train], spent = train(*setting)
                taken.append(spent)
        fast, slow = (1e3 * statistics.median(taken) for taken in seconds.values())
        ours, plain = losses.values()
        difference = ((ours - plain) / plain).abs().max().item()
        print(
            f"{options.samples:7}  {width:5}  {fast:11.2f}  {slow:13.2f}  {slow / fast:5.1f}"
            f"  {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
