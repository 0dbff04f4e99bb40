"""Residual flows of 3x3 convolutions whose weights are piecewise linear in depth.

The flow is dz/dt = W(t) * relu(U(t) * z) on [0, 1], where z is an image and * is a convolution
that keeps its size (Barboni, Peyre and Vialard 2022, Eq. 6, with convolutions for the linear
maps). W is trained from 0. U is either one fixed random convolution (``rkhs``: residuals linear in
what is trained) or trained and a function of depth (``shl``: single hidden layer).

W and U are given at the nodes k / layers and are linear in between. The explicit midpoint rule
with one step per interval sees them at k / layers and halfway to the next node. The last node,
t = 1, enters the last stage only, with weight 1/2, so every node is trained. The authors' public
code evaluates other residuals halfway; `authors_stages` has them.

Small images and many equal convolutions make this a case for fast convolution (Toom and Cook's,
known as Winograd's for other sizes). The rows of an image and of a kernel are coefficients of
polynomials, their convolution is the product, and the product is known from its values at as many
points as it has coefficients. On a 5 x 5 image that is 7 x 7 points instead of 5 x 5 x 9 products,
and at each point a product of matrices over channels and samples.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import cycle, islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)  # and infinity; float32 errors stay near 1e-5
LARGEST_SIDE = len(POINTS) - 1
MODELS = ("rkhs", "shl")
Interpolation = Literal["linear", "authors"]
threshold_backward = torch.ops.aten.threshold_backward.grad_input  # in place


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
    interpolation
        What the solver sees between nodes: ``linear`` weights, or as in the authors' code.

    Attributes
    ----------
    outer
        W at the nodes, each ``(channels, hidden, 3, 3)``.
    inner
        U at the nodes, each ``(hidden, channels, 3, 3)``; only one if it is fixed.
    """

    def __init__(
        self,
        model: str,
        channels: int,
        hidden: int,
        layers: int,
        generator: torch.Generator,
        interpolation: Interpolation = "linear",
    ) -> None:
        super().__init__()
        self.interpolation = interpolation
        zero = torch.zeros(channels, hidden, 3, 3)
        self.outer = nn.ParameterList(zero.clone() for _ in range(layers + 1))
        fixed = model == "rkhs"
        drawn = (
            _draw(fixed, hidden, channels, generator) for _ in range(1 if fixed else layers + 1)
        )
        self.inner = nn.ParameterList(nn.Parameter(U, requires_grad=not fixed) for U in drawn)
        self._spare: dict[Any, _Solver] = {}  # buffers that a backward pass has left

    def forward(self, z: Tensor) -> Tensor:
        """Map z at t = 0, ``(batch, channels, side, side)``, to z at t = 1.

        Computes in the weights' precision, also under autocast, since fast convolution loses
        digits that bfloat16 does not have.

        Raises
        ------
        ValueError
            If the images have more than `LARGEST_SIDE` pixels a side.
        """
        batch, channels, side, _ = z.shape
        with torch.autocast(z.device.type, enabled=False):
            outer, inner = (kernel_values(seen, side) for seen in self._stages())
            inner = inner.expand_as(outer.mT)
            # Samples last, so that all products are of long rows.
            pixels = z.to(outer.dtype).permute(2, 3, 1, 0).reshape(side**2, channels, batch)
            moved: Tensor = _Midpoint.apply(pixels, inner, outer, self._spare)
            return moved.view(side, side, channels, batch).permute(3, 2, 0, 1)

    def _stages(self) -> tuple[Tensor, Tensor]:
        outer, inner = torch.stack([*self.outer]), torch.stack([*self.inner])
        if self.interpolation == "authors":
            return authors_stages(outer, inner)
        return stages(outer), stages(inner)


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


def authors_stages(outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights with which `stages` gives the residuals of the authors' public code.

    At nodes they are those of `stages`. Halfway, with one fixed U, their code takes the interval
    before: 3/2 W_k - 1/2 W_(k-1), and (W_0 + W_1) / 2 on the first, so that the last node is never
    seen. With a trained U it takes the mean of the two nodes' residuals; that is one hidden layer
    of twice the width.

    Parameters
    ----------
    outer, inner
        W ``(layers + 1, channels, hidden, 3, 3)``, and U ``(layers + 1, hidden, channels, 3, 3)``
        or ``(1, ...)`` if it is fixed.

    Returns
    -------
    outer, inner
        For ``2 layers`` stages, or one if U is fixed.
    """
    starts, ends = outer[:-1], outer[1:]
    if len(inner) == 1:
        first = (starts[:1] + ends[:1]) / 2
        middles = torch.cat([first, 1.5 * starts[1:] - 0.5 * starts[:-1]])
        return torch.stack([starts, middles], 1).flatten(0, 1), inner
    hidden = torch.cat([inner[:-1], inner[1:]], 1)
    at_nodes = torch.cat([starts, torch.zeros_like(ends)], 2)
    middles = torch.cat([starts, ends], 2) / 2
    seen = torch.stack([at_nodes, middles], 1).flatten(0, 1)
    return seen, hidden.repeat_interleave(2, 0)


class Transforms(NamedTuple):
    """Matrices of a fast convolution of images with 3x3 kernels, both flattened.

    The convolution of x and w is ``product @ ((image @ x) * (kernel @ w))``.

    Attributes
    ----------
    image, kernel
        Values at the points, ``(points, side^2)`` and ``(points, 9)`` with (side + 2)^2 points.
    product
        Back to pixels, ``(side^2, points)``.
    """

    image: Tensor
    kernel: Tensor
    product: Tensor


@cache
def transforms(side: int, dtype: torch.dtype, device: torch.device) -> Transforms:
    """Return the matrices for images with at most `LARGEST_SIDE` pixels a side."""
    if side > LARGEST_SIDE:
        raise ValueError(f"images of {side} pixels a side; at most {LARGEST_SIDE} are accurate")
    points = torch.tensor(POINTS[: side + 1], dtype=torch.float64)

    def values(coefficients: int) -> Tensor:
        infinity = torch.zeros(1, coefficients, dtype=torch.float64)
        infinity[0, -1] = 1
        return torch.cat([points[:, None] ** torch.arange(coefficients), infinity])

    # Correlation, as of nn.Conv2d, is the product with the reversed kernel; padding by one pixel
    # leaves out its first and last coefficient.
    rows = values(side), values(3).flip(1), torch.linalg.inv(values(side + 2))[1:-1]
    return Transforms(*(torch.kron(matrix, matrix).to(device, dtype) for matrix in rows))


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
    entries = kernels.permute(0, 3, 4, 1, 2).reshape(len(kernels), 9, -1)
    values = torch.bmm(matrix.expand(len(kernels), -1, -1), entries)
    return values.view(*values.shape[:2], *kernels.shape[1:3])


class _Solver:
    """The midpoint rule and its adjoint, in buffers of its own.

    Fresh memory can cost a third of the time, so no stage allocates any. States and features are
    rows, ``(pixels, channels * samples)``. Values at the points are seen as such rows by the
    transforms, and as ``(points, channels, samples)`` by the products over channels.

    Parameters
    ----------
    z
        Any state, ``(pixels, channels, samples)``.
    outer
        Values of W at the points, ``(stages, points, channels, hidden)``.
    keeps_states, keeps_features
        Whether those of all stages are kept. Gradients with respect to U need the states, all
        gradients need the features.
    """

    def __init__(self, z: Tensor, outer: Tensor, keeps_states: bool, keeps_features: bool) -> None:
        self.count, points, channels, hidden = outer.shape
        pixels, _, samples = z.shape
        self.step = 2 / self.count
        self.image, _, self.product = transforms(math.isqrt(pixels), z.dtype, z.device)
        # Otherwise few are used in turn; a step needs three states.
        states = z.new_empty(self.count + 1 if keeps_states else 4, pixels, channels * samples)
        features = z.new_empty(self.count if keeps_features else 1, pixels, hidden * samples)
        self.states = list(islice(cycle(states.unbind()), self.count + 1))
        self.features = list(islice(cycle(features.unbind()), self.count))
        self.slope = torch.empty_like(features[0])
        self.middle = torch.empty_like(states[0])
        self.channels = z.new_empty(points, channels, samples)
        self.hidden = z.new_empty(points, hidden, samples)
        self.channel_rows, self.hidden_rows = self.channels.flatten(1), self.hidden.flatten(1)

    def solve(self, z: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        """Return z at t = 1, from z at t = 0 and the values of U and W at the points."""
        self.states[0].copy_(z.flatten(1))
        weights = list(zip(inner.unbind(), outer.unbind(), strict=True))
        for start in range(0, self.count, 2):
            self._residual(start, *weights[start])
            self._advance(start, start + 1, self.step / 2)
            self._residual(start + 1, *weights[start + 1])
            self._advance(start, start + 2, self.step)
        return self.states[-1].view_as(z).clone()

    def _residual(self, stage: int, U: Tensor, W: Tensor) -> None:
        """Compute the values of W * relu(U * z), and keep the features relu(U * z)."""
        torch.mm(self.image, self.states[stage], out=self.channel_rows)
        torch.bmm(U, self.channels, out=self.hidden)
        features = torch.mm(self.product, self.hidden_rows, out=self.features[stage]).relu_()
        torch.mm(self.image, features, out=self.hidden_rows)
        torch.bmm(W, self.hidden, out=self.channels)

    def _advance(self, start: int, to: int, length: float) -> None:
        """Add a step along the residual to a state."""
        torch.addmm(
            self.states[start],
            self.product,
            self.channel_rows,
            alpha=length,
            out=self.states[to],
        )

    def pull_back(
        self,
        adjoint: Tensor,
        inner: Tensor,
        outer: Tensor,
        inner_gradient: Tensor | None,
        outer_gradient: Tensor,
    ) -> Tensor:
        """Return the adjoint at t = 0 from that at t = 1, and write the weights' gradients."""
        p = adjoint.flatten(1).clone(memory_format=torch.contiguous_format)
        no_gradients = self.count * [None]
        weights = list(
            zip(
                inner.unbind(),
                outer.unbind(),
                no_gradients if inner_gradient is None else inner_gradient.unbind(),
                outer_gradient.unbind(),
                strict=True,
            )
        )
        # The step is z + h g(z + h/2 f(z)). Its adjoint is p + h q + h^2/2 Df^T q, q = Dg^T p.
        h, q = self.step, self.middle
        for start in reversed(range(0, self.count, 2)):
            self._pull_back(start + 1, p, h, *weights[start + 1])
            torch.mm(self.image.T, self.channel_rows, out=q)
            p.add_(q, alpha=h)
            self._pull_back(start, q, h**2 / 2, *weights[start])
            p.addmm_(self.image.T, self.channel_rows, alpha=h**2 / 2)
        return p.view_as(adjoint)

    def _pull_back(
        self,
        stage: int,
        p: Tensor,
        scale: float,
        U: Tensor,
        W: Tensor,
        U_gradient: Tensor | None,
        W_gradient: Tensor,
    ) -> None:
        """Compute the adjoint of the values of z from p, the adjoint of the residual.

        The weights' gradients are multiplied by the scale.
        """
        features = self.features[stage]
        torch.mm(self.product.T, p, out=self.channel_rows)
        torch.mm(self.image, features, out=self.hidden_rows)
        _write_outer(W_gradient, self.channels, self.hidden, scale)
        torch.bmm(W.mT, self.channels, out=self.hidden)
        torch.mm(self.image.T, self.hidden_rows, out=self.slope)
        threshold_backward(self.slope, features, 0, grad_input=self.slope)
        torch.mm(self.product.T, self.slope, out=self.hidden_rows)
        if U_gradient is not None:
            torch.mm(self.image, self.states[stage], out=self.channel_rows)
            _write_outer(U_gradient, self.hidden, self.channels, scale)
        torch.bmm(U.mT, self.hidden, out=self.channels)


def _write_outer(out: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """Write the sums over samples of outer products."""
    torch.baddbmm(out, a, b.mT, beta=0, alpha=scale, out=out)


class _Midpoint(torch.autograd.Function):
    """The whole flow as one node: no graph, and gradients written where they belong."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, inner: Tensor, outer: Tensor, spare: dict[Any, _Solver]
    ) -> Tensor:
        needed = ctx.needs_input_grad
        ctx.spare = spare
        ctx.key = z.shape, z.dtype, z.device, needed
        ctx.solver = spare.pop(ctx.key, None) or _Solver(z, outer, needed[1], any(needed))
        ctx.save_for_backward(inner, outer)
        moved: Tensor = ctx.solver.solve(z, inner, outer)
        return moved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.solver is None:
            raise RuntimeError("a second backward pass needs a second forward pass")
        inner, outer = ctx.saved_tensors
        inner_gradient = inner.new_empty(inner.shape) if ctx.needs_input_grad[1] else None
        outer_gradient = torch.empty_like(outer)
        start = ctx.solver.pull_back(p, inner, outer, inner_gradient, outer_gradient)
        ctx.spare[ctx.key], ctx.solver = ctx.solver, None
        return start, inner_gradient, outer_gradient, None
