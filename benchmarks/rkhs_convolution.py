"""One gradient of a convolutional residual flow: this package's engine against torchdiffeq.

The plain paths hand a module to ``torchdiffeq.odeint`` as vector field, with the midpoint rule. It
interpolates the trained weights at every call (``weights``), or evaluates the residuals of both
neighbouring nodes and interpolates these (``residuals``), which for fixed hidden layers gives the
same and is how such fields are published. Every path has the same numbers, in one process, taking
turns; errors are those of float64 on some of the samples.
Run it on an idle machine: ``python benchmarks/rkhs_convolution.py``.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchdiffeq import odeint

from resnet_limits.models.rkhs_convolution import ConvolutionFlow

CASES = [("rkhs", 32, 20), ("shl", 32, 20), ("rkhs", 32, 5), ("rkhs", 8, 20), ("rkhs", 4, 20)]
SAMPLES = 256
CHECKED = 32


class Field(nn.Module):
    """The vector field that everyone writes first, on a flow's weights."""

    def __init__(self, flow: ConvolutionFlow, interpolated: str) -> None:
        super().__init__()
        self.flow, self.interpolated = flow, interpolated
        self.layers = len(flow.outer) - 1

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt."""
        place = float(t) * self.layers
        left = min(int(place + 1e-3), self.layers - 1)
        share = place - left
        (U0, U1), (W0, W1) = (
            (nodes[left], nodes[left + 1]) if len(nodes) > 1 else (nodes[0], nodes[0])
            for nodes in (self.flow.inner, self.flow.outer)
        )
        if self.interpolated == "weights":
            U = U0 if U0 is U1 else torch.lerp(U0, U1, share)
            return conv(F.relu(conv(z, U)), torch.lerp(W0, W1, share))
        hidden = F.relu(conv(z, U0))
        other = hidden if U0 is U1 else F.relu(conv(z, U1))
        return (1 - share) * conv(hidden, W0) + share * conv(other, W1)


def conv(z: Tensor, kernel: Tensor) -> Tensor:
    """Return the convolution that keeps the size."""
    return F.conv2d(z, kernel, padding=1)


def plain(flow: ConvolutionFlow, interpolated: str) -> Callable[[Tensor], Tensor]:
    """Return the path through torchdiffeq."""
    field = Field(flow, interpolated)

    def solve(z: Tensor) -> Tensor:
        ends = torch.tensor([0.0, 1.0], dtype=z.dtype)
        options = {"step_size": 1 / field.layers}
        return odeint(field, z, ends, method="midpoint", options=options)[1]

    return solve


def gradient(flow: ConvolutionFlow, solve: Callable[[Tensor], Tensor], z: Tensor) -> list[Tensor]:
    """Return the output and the gradients of its mean square by everything that is trained."""
    output = solve(z)
    trained = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    return [output.detach(), *torch.autograd.grad(output.square().mean(), trained)]


def make(model: str, channels: int, layers: int) -> tuple[ConvolutionFlow, Tensor]:
    """Return a flow with random weights, and states."""
    generator = torch.Generator().manual_seed(0)
    flow = ConvolutionFlow(model, channels, channels, layers, generator)
    for W in flow.outer:
        nn.init.normal_(W, 0, 0.1 / channels**0.5, generator=generator)
    return flow, torch.randn(SAMPLES, channels, 5, 5, generator=generator)


def medians(paths: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return each path's median seconds, the paths taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, run in paths.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def error(flow: ConvolutionFlow, z: Tensor) -> float:
    """Return the largest error of output and gradients, each relative to its largest entry."""
    results = gradient(flow, flow, z), gradient(flow, plain(flow, "weights"), z)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))


def compare(case: tuple[str, int, int], repeats: int) -> None:
    """Print one row."""
    flow, z = make(*case)
    solvers: dict[str, Callable[[Tensor], Tensor]] = {
        "flow": flow,
        "weights": plain(flow, "weights"),
    }
    if case[0] == "rkhs":
        solvers["residuals"] = plain(flow, "residuals")
    paths: dict[str, Callable[[], object]] = {
        name: lambda solve=solve: gradient(flow, solve, z) for name, solve in solvers.items()
    }

    def bfloat16() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return gradient(flow, solvers["weights"], z)

    paths["weights, bf16"] = bfloat16
    times = medians(paths, repeats)
    print(f"{case!s:18} {1e3 * times['flow']:8.1f}", end=" ")
    for name in ("weights", "residuals", "weights, bf16"):
        print(f"{times[name] / times['flow'] if name in times else float('nan'):14.2f}", end=" ")
    print(f"{error(copy.deepcopy(flow).double(), z[:CHECKED].double()):10.1e}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("times of torchdiffeq are in units of the flow's")
    print(f"{'(model, C, layers)':18} {'flow, ms':>8} {'weights':>14} {'residuals':>14}", end=" ")
    print(f"{'weights, bf16':>14} {'max error':>10}")
    for case in CASES:
        compare(case, arguments.repeats)


if __name__ == "__main__":
    main()
