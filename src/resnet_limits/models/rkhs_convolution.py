"""Residual flows of 3x3 convolutions whose weights are piecewise linear in depth.

The flow is dz/dt = W(t) * relu(U(t) * z) on [0, 1], z an image and * a convolution that keeps its
size (Barboni, Peyre and Vialard 2022, Eq. 6, with convolutions for the linear maps). W is
trained from 0. U is one random convolution that stays fixed (``rkhs``: residuals linear in what
is trained), or trained and a function of depth as well (``shl``: single hidden layer).

W and U are given at the nodes k / layers and linear between. The explicit midpoint rule with one
step an interval sees them at the nodes, k / layers, and halfway between; the last node, t = 1,
counts by half in the last stage. So every node is seen, and trained.

Small images and many equal convolutions make this a case for fast convolution (Toom and Cook's;
with other sizes, Winograd's): a row of an image and a row of a kernel are the coefficients of
polynomials, their convolution those of the product, and the product is known from its values at
as many points as it has coefficients. On a 5 x 5 image that is 7 x 7 points instead of
5 x 5 x 9 products, and at each point a product of matrices over channels and samples.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)  # and infinity; float32 errors stay near 1e-5
LARGEST_SIDE = len(POINTS) - 1
MODELS = ("rkhs", "shl")


class ConvolutionFlow(nn.Module):
    """The midpoint rule for dz/dt = W(t) * relu(U(t) * z), from t = 0 to 1.

    Parameters
    ----------
    model
        ``rkhs`` for one fixed U, ``shl`` for one that is trained and depends on depth.
    channels, hidden
        Channels of z and of U * z.
    layers
        Intervals of the weights and steps of the solver.
    generator
        Source of U: Gaussian of variance 1 / (3 hidden) if fixed; if trained, at every node
        uniform with bound 1 / sqrt(9 channels), torch's default.

    Attributes
    ----------
    outer
        W at the nodes, each ``(channels, hidden, 3, 3)``.
    inner
        U at the nodes, each ``(hidden, channels, 3, 3)``; only one if it is fixed.
    """

    def __init__(
        self, model: str, channels: int, hidden: int, layers: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        zero = torch.zeros(channels, hidden, 3, 3)
        self.outer = nn.ParameterList(zero.clone() for _ in range(layers + 1))
        fixed = model == "rkhs"
        drawn = (
            _draw(fixed, hidden, channels, generator) for _ in range(1 if fixed else layers + 1)
        )
        self.inner = nn.ParameterList(nn.Parameter(U, requires_grad=not fixed) for U in drawn)

    def forward(self, z: Tensor) -> Tensor:
        """Map z at t = 0, ``(batch, channels, side, side)``, to z at t = 1.

        Computes in the weights' precision, also under autocast, since fast convolution loses
        digits that bfloat16 does not have.
        """
        batch, channels, side, _ = z.shape
        with torch.autocast(z.device.type, enabled=False):
            outer = kernel_values(stages(torch.stack([*self.outer])), side)
            inner = kernel_values(stages(torch.stack([*self.inner])), side)
            # Samples last, so that all products are of long rows.
            pixels = z.to(outer.dtype).permute(2, 3, 1, 0)
            pixels = pixels.reshape(side**2, channels, batch).contiguous()
            moved = _Midpoint.apply(pixels, inner, outer)
            return moved.view(side, side, channels, batch).permute(3, 2, 0, 1)


def _draw(fixed: bool, hidden: int, channels: int, generator: torch.Generator) -> Tensor:
    shape = hidden, channels, 3, 3
    if fixed:
        return torch.randn(shape, generator=generator) / math.sqrt(3 * hidden)
    return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(9 * channels)


def stages(nodes: Tensor) -> Tensor:
    """Return the weights that the midpoint rule's stages see, in their order.

    Parameters
    ----------
    nodes
        Weights at k / layers, ``(layers + 1, ...)``; or ``(1, ...)`` if they are constant.

    Returns
    -------
    Tensor
        Weights at 0, 1/2, 1, 3/2, ... steps, ``(2 layers, ...)``; constant ones as they are.
    """
    if len(nodes) == 1:
        return nodes
    starts, ends = nodes[:-1], nodes[1:]
    return torch.stack([starts, (starts + ends) / 2], 1).flatten(0, 1)


class Transforms(NamedTuple):
    """Matrices of a fast convolution of n numbers with 3, in one dimension.

    With n + 2 points, the convolution of x and w is ``product @ ((image @ x) * (kernel @ w))``.
    """

    image: Tensor
    kernel: Tensor
    product: Tensor


@cache
def transforms(side: int, dtype: torch.dtype, device: torch.device) -> Transforms:
    """Return the matrices for images of so many pixels a side, at most 5."""
    if side > LARGEST_SIDE:
        raise ValueError(f"images of {side} pixels a side; at most {LARGEST_SIDE} are accurate")
    points = torch.tensor(POINTS[: side + 1], dtype=torch.float64)

    def values(coefficients: int) -> Tensor:
        infinity = torch.zeros(1, coefficients, dtype=torch.float64)
        infinity[0, -1] = 1
        return torch.cat([points[:, None] ** torch.arange(coefficients), infinity])

    # Correlation, as of nn.Conv2d, is the product with the reversed kernel; padding by one pixel
    # leaves out its first and last coefficient.
    matrices = values(side), values(3).flip(1), torch.linalg.inv(values(side + 2))[1:-1]
    return Transforms(*(matrix.to(device, dtype) for matrix in matrices))


def apply_to_squares(matrix: Tensor, squares: Tensor) -> Tensor:
    """Apply a matrix ``(p, q)`` along both sides: ``(q^2, ...)`` to ``(p^2, ...)``."""
    rows, columns = matrix.shape
    half = torch.mm(matrix, squares.reshape(columns, -1)).view(rows, columns, -1)
    return torch.matmul(matrix, half).view(rows**2, *squares.shape[1:])


def kernel_values(kernels: Tensor, side: int) -> Tensor:
    """Return the values of kernels at all points.

    Parameters
    ----------
    kernels
        Shape ``(stages, out, in, 3, 3)``.
    side
        Pixels a side of the images that they are to be convolved with.

    Returns
    -------
    Tensor
        Shape ``(stages, (side + 2)^2, out, in)``.
    """
    matrix = transforms(side, kernels.dtype, kernels.device).kernel
    values = apply_to_squares(matrix, kernels.permute(3, 4, 0, 1, 2).flatten(0, 1))
    return values.transpose(0, 1).contiguous()


class _Stages:
    """Residuals of all stages and their adjoints.

    What nobody else needs lives in buffers that the next call writes over, since fresh memory is
    slower than the arithmetic. Shapes are ``(pixels or points, channels, samples)``.
    """

    def __init__(self, z: Tensor, inner: Tensor, outer: Tensor) -> None:
        count, points, channels, hidden = outer.shape
        samples = z.shape[-1]
        self.transforms = transforms(math.isqrt(len(z)), z.dtype, z.device)
        self.inner = inner.expand(count, -1, -1, -1).unbind()
        self.outer = outer.unbind()
        self.channels = z.new_empty(points, channels, samples)
        self.hidden = z.new_empty(points, hidden, samples)
        self.half = z.new_empty(points, max(channels, hidden), samples)

    def residual(self, z: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Return W * relu(U * z) and relu(U * z)."""
        image, _, product = self.transforms
        values = self._apply(image, z, self.channels)
        torch.bmm(self.inner[stage], values, out=self.hidden)
        hidden = self._apply(product, self.hidden).relu_()
        values = self._apply(image, hidden, self.hidden)
        torch.bmm(self.outer[stage], values, out=self.channels)
        return self._apply(product, self.channels), hidden

    def pull_back(
        self,
        p: Tensor,
        stage: int,
        z: Tensor | None,
        hidden: Tensor,
        inner_gradient: Tensor,
        outer_gradient: Tensor,
    ) -> Tensor:
        """Return the derivative by z, and write those by the kernels' values.

        That by U is left out without z.
        """
        image, _, product = self.transforms
        values = self._apply(product.T, p, self.channels)
        features = self._apply(image, hidden, self.hidden)
        torch.bmm(values, features.mT, out=outer_gradient[stage])
        torch.bmm(self.outer[stage].mT, values, out=self.hidden)
        slope = self._apply(image.T, self.hidden)
        slope = torch.ops.aten.threshold_backward(slope, hidden, 0)
        values = self._apply(product.T, slope, self.hidden)
        if z is not None:
            states = self._apply(image, z, self.channels)
            torch.bmm(values, states.mT, out=inner_gradient[stage])
        torch.bmm(self.inner[stage].mT, values, out=self.channels)
        return self._apply(image.T, self.channels)

    def _apply(self, matrix: Tensor, squares: Tensor, out: Tensor | None = None) -> Tensor:
        """Do what `apply_to_squares` does, in buffers."""
        (rows, columns), (_, *rest) = matrix.shape, squares.shape
        length = math.prod(rest)
        half = self.half.view(-1)[: rows * columns * length]
        torch.mm(matrix, squares.view(columns, -1), out=half.view(rows, -1))
        out = squares.new_empty(rows**2, *rest) if out is None else out
        batch = matrix.expand(rows, -1, -1), half.view(rows, columns, length)
        torch.bmm(*batch, out=out.view(rows, rows, length))
        return out


class _Midpoint(torch.autograd.Function):
    """The whole flow as one node: no graph, and gradients written where they belong."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        stages, count = _Stages(z, inner, outer), len(outer)
        step = 2 / count
        kept = []
        for stage in range(0, count, 2):
            first, hidden = stages.residual(z, stage)
            middle = torch.add(z, first, alpha=step / 2)
            second, hidden_in_the_middle = stages.residual(middle, stage + 1)
            if any(ctx.needs_input_grad):
                kept += [(z, hidden), (middle, hidden_in_the_middle)]
            z = torch.add(z, second, alpha=step)
        ctx.save_for_backward(inner, outer)
        ctx.stages = stages
        ctx.kept = kept if ctx.needs_input_grad[1] else [(None, hidden) for _, hidden in kept]
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        inner, outer = ctx.saved_tensors
        count = len(outer)
        step = 2 / count
        gradients = torch.empty_like(inner), torch.empty_like(outer)
        p = p.contiguous()
        for stage in reversed(range(0, count, 2)):
            middle = ctx.stages.pull_back(step * p, stage + 1, *ctx.kept[stage + 1], *gradients)
            start = ctx.stages.pull_back(step / 2 * middle, stage, *ctx.kept[stage], *gradients)
            p = p + middle + start
        return p, gradients[0] if ctx.needs_input_grad[1] else None, gradients[1]
