"""One training iteration of a dense chain: this package's engines against the naive autograd loop.

Every path computes the loss and both gradients from the same numbers, in float32, in one process,
taking turns. Memory is what one iteration adds at its peak, gradients included (Linux only).
Run it on an idle machine: ``python benchmarks/chains.py``.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from resnet_limits.models.activations import LayerRule
from resnet_limits.models.chains import ChainLoss, chain

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference import chains as reference

SHAPES = [(64, 100, 16, 32), (64, 50, 16, 64), (1024, 100, 16, 32), (16384, 100, 16, 32)]
FAMILY = [2**k for k in range(1, 11)] + [16384]


class Problem:
    """Data and weights of one chain, and the paths from them to loss and gradients."""

    def __init__(self, depth: int, samples: int, dimension: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rule = LayerRule(1 / depth)
        self.x, self.y = torch.randn(2, samples, dimension, generator=generator)
        self.W = torch.randn(depth, width, dimension, generator=generator)
        self.V = torch.randn(depth, dimension, width, generator=generator) / width

    def naive(self) -> list[Tensor]:
        """Differentiate the naive autograd loop."""
        return self._differentiate(reference.chain)

    def chain(self) -> list[Tensor]:
        """Differentiate the same with one node for the whole chain."""
        return self._differentiate(chain)

    def _differentiate(self, model: Callable[..., Tensor]) -> list[Tensor]:
        output = model(self.x, self.W.requires_grad_(), self.V.requires_grad_(), self.rule)
        loss = (output - self.y).square().mean()
        return [loss.detach(), *torch.autograd.grad(loss, [self.W, self.V])]

    def chain_loss(self, backend: str) -> Callable[[], list[Tensor]]:
        """Return the path through `ChainLoss`, whose buffers live as long as it does."""
        gradients = [torch.empty_like(self.W), torch.empty_like(self.V)]
        loss = ChainLoss(self.x, self.y, self.W, self.rule, backend=backend)
        return lambda: [loss(self.W, self.V, *gradients), *gradients]

    def paths(self) -> dict[str, Callable[[], Callable[[], list[Tensor]]]]:
        """Return what makes each path ready to run."""
        return {
            "naive autograd": lambda: self.naive,
            "chain": lambda: self.chain,
            "ChainLoss": lambda: self.chain_loss("auto"),
            "ChainLoss, torch": lambda: self.chain_loss("torch"),
        }


def peak_memory(make: Callable[[], Callable[[], object]]) -> float:
    """Return the MB that making a path and running it once adds to this process at its peak."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except (OSError, AttributeError):
        return float("nan")
    before = _status("VmRSS")
    make()()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def medians(paths: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return each path's median seconds, the paths taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, run in paths.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def difference(result: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest error of loss and gradients, each relative to its largest entry."""
    return max(
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(result, expected, strict=True)
    )


def compare(shape: tuple[int, int, int, int], repeats: int) -> None:
    """Print one row for each path."""
    problem = Problem(*shape)
    makers = problem.paths()
    memory = {name: peak_memory(make) for name, make in makers.items()}
    paths = {name: make() for name, make in makers.items()}
    expected = problem.naive()
    errors = {name: difference(run(), expected) for name, run in paths.items()}
    times = medians(paths, repeats)
    for name in paths:
        ratio = times["naive autograd"] / times[name]
        cost = f"{1e3 * times[name]:9.2f} {ratio:7.1f} {memory[name]:8.1f}"
        share = memory[name] / memory["naive autograd"]
        print(f"{shape!s:22} {name:18} {cost} {share:7.2f} {errors[name]:9.1e}", flush=True)


def time_family(repeats: int) -> None:
    """Print the time of one iteration of every depth of a family, and the memory of it all."""
    paths = [Problem(depth, 100, 16, 32).chain_loss("auto") for depth in FAMILY]
    seconds = medians({"family": lambda: [run() for run in paths]}, repeats)["family"]
    print(f"depths {FAMILY}: {seconds:.3f} s an iteration, {_status('VmRSS'):.0f} MB of process")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--max-depth", type=int, default=16384)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    Problem(2, 2, 2, 2).chain_loss("auto")()  # compile
    if arguments.max_depth >= max(FAMILY):
        time_family(arguments.repeats)
    print(f"{'(L, n, d, m)':22} {'path':18} {'ms':>9} {'speedup':>7} {'peak MB':>8}", end=" ")
    print(f"{'share':>7} {'max error':>9}")
    for shape in SHAPES:
        if shape[0] <= arguments.max_depth:
            compare(shape, arguments.repeats)


if __name__ == "__main__":
    main()
