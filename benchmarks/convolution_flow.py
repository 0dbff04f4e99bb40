"""Gradients of a convolutional residual flow: this package's engine against torchdiffeq.

The plain paths hand a module to ``torchdiffeq.odeint`` as vector field, with the midpoint rule. It
interpolates the trained weights at every call (``weights``), or evaluates the residuals of both
neighbouring nodes and interpolates these (``residuals``), as the authors' code does. All paths see
the same numbers, in one process and in turn. Ratios are medians over the turns; errors are
those in float64, on some of the samples.

    python benchmarks/convolution_flow.py --threads 1 2
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from resnet_limits.models.convolution_flow import ConvolutionFlow

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference.convolution_flow import Field

CASES = [("rkhs", channels, layers) for channels in (4, 8, 32) for layers in (5, 20)]
CASES += [("shl", 4, 20), ("shl", 32, 20)]
SAMPLES = 256
CHECKED = 32

Solve = Callable[[Tensor], Tensor]


def plain(field: Field) -> Solve:
    """Return the path through torchdiffeq."""
    options = {"step_size": 1 / (len(field.flow.outer) - 1)}

    def solve(z: Tensor) -> Tensor:
        ends = torch.tensor([0.0, 1.0], dtype=z.dtype)
        end: Tensor = odeint(field, z, ends, method="midpoint", options=options)[1]
        return end

    return solve


def in_bfloat16(solve: Solve) -> Solve:
    """Return the same path with convolutions in bfloat16."""

    def solve_in_bfloat16(z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return solve(z)

    return solve_in_bfloat16


def gradient(flow: ConvolutionFlow, solve: Solve, z: Tensor) -> list[Tensor]:
    """Return the output and the gradients of its mean square with respect to the weights."""
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


def seconds(
    flow: ConvolutionFlow, solvers: dict[str, Solve], z: Tensor, repeats: int
) -> dict[str, list[float]]:
    """Return the times of each path, the paths taking turns; the first turn is left out."""
    times: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(repeats + 1):
        for name, solve in solvers.items():
            start = time.perf_counter()
            gradient(flow, solve, z)
            times[name].append(time.perf_counter() - start)
    return {name: taken[1:] for name, taken in times.items()}


def error(flow: ConvolutionFlow, z: Tensor) -> float:
    """Return the largest error of output and gradients, each relative to its largest entry."""
    results = gradient(flow, flow, z), gradient(flow, plain(Field(flow)), z)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))


def compare(case: tuple[str, int, int], repeats: int) -> None:
    """Print one row."""
    flow, z = make(*case)
    solvers: dict[str, Solve] = {
        "flow": flow,
        "weights": plain(Field(flow)),
        "residuals": plain(Field(flow, "residuals")),
        "weights, bf16": in_bfloat16(plain(Field(flow))),
    }
    times = seconds(flow, solvers, z, repeats)
    ours = times.pop("flow")
    print(f"{case!s:18} {1e3 * statistics.median(ours):8.1f}", end=" ")
    for theirs in times.values():
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        print(f"{ratio:14.2f}", end=" ")
    print(f"{error(copy.deepcopy(flow).double(), z[:CHECKED].double()):10.1e}", flush=True)


def main() -> None:
    """Print a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"{threads} thread(s); times of torchdiffeq are in units of the flow's")
        print(
            f"{'(model, C, layers)':18} {'flow, ms':>8} {'weights':>14} {'residuals':>14}", end=" "
        )
        print(f"{'weights, bf16':>14} {'max error':>10}")
        for case in CASES:
            compare(case, arguments.repeats)


if __name__ == "__main__":
    main()
