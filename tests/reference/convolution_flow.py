"""A convolutional residual flow as a plain vector field, and the midpoint rule as a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_limits.models.convolution_flow import ConvolutionFlow


class Field(nn.Module):
    """The vector field W(t) * relu(U(t) * z) of a flow.

    Parameters
    ----------
    flow
        Holder of the weights.
    interpolated
        What is linear between nodes: the ``weights``, or the ``residuals`` of both neighbouring
        nodes. With a fixed hidden layer the two agree. ``authors``: as their code has it, residuals
        if the hidden layer is trained, and otherwise weights that are extrapolated from the
        interval before.
    """

    def __init__(
        self,
        flow: ConvolutionFlow,
        interpolated: Literal["weights", "residuals", "authors"] = "weights",
    ) -> None:
        super().__init__()
        self.flow = flow
        self.interpolated = interpolated

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        """Return dz/dt."""
        inner, outer = self.flow.inner, self.flow.outer
        if self.interpolated == "weights":
            hidden = F.relu(convolve(z, interpolate(inner, float(t))))
            return convolve(hidden, interpolate(outer, float(t)))
        left, share = locate(len(outer) - 1, float(t))
        if self.interpolated == "authors" and len(inner) == 1 and left > 0 and share > 1e-3:
            left, share = left - 1, share + 1
        hidden = F.relu(convolve(z, inner[left if len(inner) > 1 else 0]))
        other = F.relu(convolve(z, inner[left + 1])) if len(inner) > 1 else hidden
        return torch.lerp(convolve(hidden, outer[left]), convolve(other, outer[left + 1]), share)


def convolve(z: Tensor, kernel: Tensor) -> Tensor:
    """Return the convolution that keeps the size."""
    return F.conv2d(z, kernel, padding=1)


def locate(layers: int, t: float) -> tuple[int, float]:
    """Return the node at the left end of the interval around t, and where in it t is, 0 to 1."""
    left = min(int(t * layers + 1e-3), layers - 1)  # t = k / layers may be rounded down
    return left, t * layers - left


def interpolate(nodes: Sequence[Tensor] | nn.ParameterList, t: float) -> Tensor:
    """Return the weights at t, linear between the nodes k / layers; one node is constant."""
    if len(nodes) == 1:
        return nodes[0]
    left, share = locate(len(nodes) - 1, t)
    return torch.lerp(nodes[left], nodes[left + 1], share)


def midpoint(field: Callable[[float, Tensor], Tensor], z: Tensor, steps: int) -> Tensor:
    """Return the state at t = 1 by so many steps of the explicit midpoint rule from t = 0."""
    for k in range(steps):
        middle = z + field(k / steps, z) / (2 * steps)
        z = z + field((k + 0.5) / steps, middle) / steps
    return z
