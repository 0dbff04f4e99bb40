"""Gradients of a convolutional residual flow: this package's engine against torchdiffeq.

The plain paths hand a module to ``torchdiffeq.odeint`` as vector field, with the midpoint rule. It
interpolates the trained weights at every call (``weights``), or evaluates the residuals of both
neighbouring nodes and interpolates these (``residuals``), as the authors' code does; with a trained
hidden layer (shl) that is another function. Differences are those of output and gradients to
``weights`` in float64; where rounding changes the sign of a hidden unit near 0, some entries of
gradients jump. A case is the model, its channels and its layers.

    python benchmarks/convolution_flow.py --threads 2
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import _timing as timing
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from resnet_limits.models.convolution_flow import ConvolutionFlow

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference.convolution_flow import Field

CASES = [("rkhs", channels, layers) for channels in (4, 8, 32) for layers in (5, 20)]
CASES += [("shl", 4, 20), ("shl", 32, 20)]
SAMPLES = 256

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


def gradient(flow: ConvolutionFlow, solve: Solve, z: Tensor) -> timing.Run:
    """Return the path to the output and the gradients of its mean square by the weights."""
    trained = [parameter for parameter in flow.parameters() if parameter.requires_grad]

    def run() -> list[Tensor]:
        output = solve(z)
        return [output.detach(), *torch.autograd.grad(output.square().mean(), trained)]

    return run


def make(model: str, channels: int, layers: int) -> tuple[ConvolutionFlow, Tensor]:
    """Return a flow with random weights, and states."""
    generator = torch.Generator().manual_seed(0)
    flow = ConvolutionFlow(model, channels, channels, layers, generator)
    for W in flow.outer:
        nn.init.normal_(W, 0, 0.1 / channels**0.5, generator=generator)
    return flow, torch.randn(SAMPLES, channels, 5, 5, generator=generator)


def main() -> None:
    """Print the table, and how much faster than the authors' interpolation the flow is."""
    arguments = timing.parse(timing.parser(__doc__, repeats=15))
    table, speedups = timing.Table(arguments, baseline="weights"), []
    for model, channels, layers in CASES:
        flow, z = make(model, channels, layers)
        solvers: dict[str, Solve] = {
            "weights": plain(Field(flow)),
            "weights, bfloat16": in_bfloat16(plain(Field(flow))),
            "residuals": plain(Field(flow, "residuals")),
            "flow": flow,
        }
        paths = {name: gradient(flow, solve, z) for name, solve in solvers.items()}
        exact = copy.deepcopy(flow).double()
        reference = gradient(exact, plain(Field(exact)), z.double())
        times = table.add(f"{model}, {channels} x {layers}", paths, reference)
        speedups.append(times.ratio("residuals", "flow").median)
    table.save()
    print(f"The flow is {min(speedups):.1f} to {max(speedups):.1f} times as fast as `residuals`.")


if __name__ == "__main__":
    main()
