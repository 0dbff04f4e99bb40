"""One training iteration of a dense chain: this package's engines against the naive autograd loop.

Every path computes the loss and both gradients from the same numbers, in float32. Memory is what
one iteration adds at its peak, gradients included (Linux only), and share that of the naive loop's.
A case is (layers, samples, dimension, width).

    python benchmarks/chains.py --max-depth 1024
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import _timing as timing
import torch
from torch import Tensor

from resnet_limits.models.activations import LayerRule
from resnet_limits.models.chains import ChainLoss, chain

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference import chains as reference

CASES = [(64, 100, 16, 32), (64, 50, 16, 64), (1024, 100, 16, 32), (16384, 100, 16, 32)]
FAMILY = [2**k for k in range(1, 11)] + [16384]


class Iteration:
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

    def chain_loss(self, backend: str) -> timing.Run:
        """Return the path through `ChainLoss`, whose buffers live as long as it does."""
        gradients = [torch.empty_like(self.W), torch.empty_like(self.V)]
        loss = ChainLoss(self.x, self.y, self.W, self.rule, backend=backend)
        return lambda: [loss(self.W, self.V, *gradients), *gradients]

    def makers(self) -> dict[str, Callable[[], timing.Run]]:
        """Return what makes each path ready to run."""
        return {
            "naive loop": lambda: self.naive,
            "chain": lambda: self.chain,
            "ChainLoss": lambda: self.chain_loss("auto"),
            "ChainLoss, torch": lambda: self.chain_loss("torch"),
        }


def peak_memory(make: Callable[[], timing.Run]) -> float:
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


def time_family(repeats: int) -> None:
    """Print the time of one iteration of every depth of the study."""
    paths = [Iteration(depth, 100, 16, 32).chain_loss("auto") for depth in FAMILY]
    family = timing.measure({"family": lambda: [run() for run in paths]}, repeats)
    print(f"One iteration of depths {FAMILY}: {family.median('family'):.3f} s")


def main() -> None:
    """Print the time of the study's depths, and the table."""
    parser = timing.parser(__doc__, repeats=5)
    parser.add_argument("--max-depth", type=int, default=16384)
    arguments = timing.parse(parser)
    Iteration(2, 2, 2, 2).chain_loss("auto")()  # compile
    if arguments.max_depth >= max(FAMILY):
        time_family(arguments.repeats)
    table = timing.Table(arguments, baseline="naive loop")
    for case in CASES:
        if case[0] > arguments.max_depth:
            continue
        makers = Iteration(*case).makers()
        memory = {name: peak_memory(make) for name, make in makers.items()}
        share = {name: used / memory["naive loop"] for name, used in memory.items()}
        paths = {name: make() for name, make in makers.items()}
        table.add(f"{case}", paths, extra={"peak MB": memory, "share": share})
    table.save()


if __name__ == "__main__":
    main()
