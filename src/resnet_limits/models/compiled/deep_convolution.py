"""Forward and backward pass of deep convolutional chains.

Feature maps are rows of channels, one row for each pixel, image after image. One image at a time,
whatever a pass needs stays in cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from resnet_limits.models.compiled.activations import KINDS, activate
from resnet_limits.models.compiled.batch_norm import (
    Norm,
    add_affine,
    add_sums,
    affine,
    coefficients,
    map_adjoint,
    moments,
    parameter_gradients,
)
from resnet_limits.models.compiled.jit import jit
from resnet_limits.models.compiled.matrices import multiply
from resnet_limits.models.compiled.simd import Array
from resnet_limits.models.compiled.winograd import (
    convolve,
    convolve_back,
    flip,
    new_scratch,
    transform_filters,
)

Spare = dict[tuple[Any, ...], list[list[Tensor]]]  # buffers by depth, type and shape


class Weights(NamedTuple):
    """Parameters of all layers; the first axis is the layer's."""

    first: Array  # (L, 16 channels, channels) of conv1: G g G^T, by entry and channel in
    second: Array  # the same of conv2
    weight1: Array  # (L, channels) parameters of bn1
    bias1: Array
    weight2: Array  # and bn2
    bias2: Array


class States(NamedTuple):
    """What the forward pass keeps for the backward one; where nothing is kept, rings."""

    h: Array  # (L + 1 or 2, rows, channels) residual states
    first: Array  # (L or 1, rows, channels) conv1's outputs
    second: Array  # and conv2's
    mean1: Array  # (L, channels) moments of conv1's outputs
    variance1: Array
    mean2: Array  # and conv2's
    variance2: Array


@jit()
def _norm1(weights: Weights, states: States, k: int) -> Norm:
    return Norm(states.mean1[k], states.variance1[k], weights.weight1[k], weights.bias1[k])


@jit()
def _norm2(weights: Weights, states: States, k: int) -> Norm:
    return Norm(states.mean2[k], states.variance2[k], weights.weight2[k], weights.bias2[k])


@jit()
def walk(
    weights: Weights, states: States, size: tuple[int, int], kind: int, training: bool
) -> None:
    """Move the states through all layers; the first is given and the others are written.

    When not training, the moments are given.
    """
    depth, pixels, h = weights.first.shape[0], size[0] * size[1], states.h
    count = h.shape[1]
    scratch = new_scratch(size, h)
    image, slopes = np.empty_like(h[0, :pixels]), np.empty_like(h[0, :pixels])
    for k in range(depth):
        state, next_state = h[k % h.shape[0]], h[(k + 1) % h.shape[0]]
        first = states.first[k % states.first.shape[0]]
        second = states.second[k % states.second.shape[0]]
        norm1, norm2 = _norm1(weights, states, k), _norm2(weights, states, k)
        for start in range(0, count, pixels):
            here = slice(start, start + pixels)
            convolve(state[here], weights.first[k], size, scratch, first[here], False)
        if training:
            moments(first, norm1.mean, norm1.variance)
        scale, shift = coefficients(norm1, 1.0)
        for start in range(0, count, pixels):
            here = slice(start, start + pixels)
            affine(first[here], scale, shift, image)
            activate(kind, image, slopes)
            convolve(image, weights.second[k], size, scratch, second[here], False)
        if training:
            moments(second, norm2.mean, norm2.variance)
        scale, shift = coefficients(norm2, 1 / depth)
        add_affine(state, second, scale, shift, next_state)


@jit()
def walk_back(
    weights: Weights,
    flipped: tuple[Array, Array],
    states: States,
    gradients: Weights,
    adjoint: Array,
    size: tuple[int, int],
    kind: int,
) -> None:
    """Move the adjoint (rows, channels), in place, from the last layer to the first.

    Of both convolutions, `flipped` has the weights of the adjoint convolution. Gradients of
    convolutions are added to those given.
    """
    depth, pixels = weights.first.shape[0], size[0] * size[1]
    count, channels = adjoint.shape
    scratch = new_scratch(size, adjoint)
    image, slopes = np.empty_like(adjoint[:pixels]), np.empty_like(adjoint[:pixels])
    inner = np.empty_like(adjoint)  # adjoint between bn1 and the activation
    conv_adjoint = np.empty_like(image)  # of one image, at a convolution's output
    adjoint_map = np.empty((3, channels), adjoint.dtype)
    sums = np.empty((2, channels), adjoint.dtype)
    for k in range(depth - 1, -1, -1):
        state, first, second = states.h[k], states.first[k], states.second[k]
        norm1, norm2 = _norm1(weights, states, k), _norm2(weights, states, k)

        sums[:] = 0
        add_sums(adjoint, second, norm2, sums)
        weight_grad, bias_grad = gradients.weight2[k], gradients.bias2[k]
        parameter_gradients(norm2, 1 / depth, sums, count, weight_grad, bias_grad, adjoint_map)

        scale, shift = coefficients(norm1, 1.0)
        sums[:] = 0
        for start in range(0, count, pixels):
            here = slice(start, start + pixels)
            affine(first[here], scale, shift, image)
            activate(kind, image, slopes)
            map_adjoint(adjoint[here], second[here], adjoint_map, conv_adjoint)
            convolve_back(
                image,
                conv_adjoint,
                flipped[1][k],
                size,
                scratch,
                gradients.second[k],
                inner[here],
                False,
            )
            multiply(slopes, inner[here])
            add_sums(inner[here], first[here], norm1, sums)

        weight_grad, bias_grad = gradients.weight1[k], gradients.bias1[k]
        parameter_gradients(norm1, 1.0, sums, count, weight_grad, bias_grad, adjoint_map)
        for start in range(0, count, pixels):
            here = slice(start, start + pixels)
            map_adjoint(inner[here], first[here], adjoint_map, conv_adjoint)
            convolve_back(
                state[here],
                conv_adjoint,
                flipped[0][k],
                size,
                scratch,
                gradients.first[k],
                adjoint[here],
                True,
            )


def train(
    h: Tensor, weights: Sequence[Tensor], activation: str, spare: Spare
) -> tuple[Tensor, ...]:
    """Return all layers' output, differentiable once, and the moments of both batch norms.

    Parameters
    ----------
    h
        Feature maps, of shape ``(batch, channels, H, W)``.
    weights
        Filters of conv1 and conv2, of shape ``(L, out, in, 3, 3)``, and batch norm's parameters in
        the order of `Weights`.
    activation
        One of `KINDS`.
    spare
        Buffers to be used again, at first an empty dictionary.
    """
    output: tuple[Tensor, ...] = _Layers.apply(h, *_transformed(weights), activation, spare)
    return output


@torch.no_grad()
def evaluate(
    h: Tensor, weights: Sequence[Tensor], moments: Sequence[Tensor], activation: str
) -> Tensor:
    """Return all layers' output for given moments, without gradients."""
    states = [*_new_states(h, 1, len(weights[0]))[:3], *moments]
    return _forward(h, _transformed(weights), states, activation, training=False)


def _transformed(weights: Sequence[Tensor]) -> list[Tensor]:
    return [*(transform_filters(filters) for filters in weights[:2]), *weights[2:]]


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *weights, activation, spare = arguments
        ctx.save_for_backward(*weights)
        ctx.shape = h.shape
        ctx.activation = activation
        # Fresh memory costs a tenth of a step; a backward pass leaves its buffers to the next.
        depth = len(weights[0])
        ctx.spare = spare.setdefault((depth, h.dtype, *h.shape), [])
        ctx.states = ctx.spare.pop() if ctx.spare else _new_states(h, depth, depth)
        output = _forward(h, weights, ctx.states, activation, training=True)
        moments = tuple(moment.clone() for moment in ctx.states[3:])
        ctx.mark_non_differentiable(*moments)
        return output, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.states is None:
            raise RuntimeError("a second backward pass needs a second forward pass")
        weights, states = ctx.saved_tensors, ctx.states
        gradients = [torch.zeros_like(weight) for weight in weights]
        adjoint = _rows(adjoint).clone()
        walk_back(
            Weights(*_arrays(weights)),
            (flip(weights[0]).numpy(), flip(weights[1]).numpy()),
            States(*_arrays(states)),
            Weights(*_arrays(gradients)),
            adjoint.numpy(),
            (ctx.shape[2], ctx.shape[3]),
            KINDS[ctx.activation],
        )
        ctx.states = None
        ctx.spare.append(states)
        return _maps(adjoint, ctx.shape), *gradients, None, None


def _forward(
    h: Tensor, weights: Sequence[Tensor], states: Sequence[Tensor], activation: str, training: bool
) -> Tensor:
    states[0][0] = _rows(h)
    walk(
        Weights(*_arrays(weights)),
        States(*_arrays(states)),
        (h.shape[2], h.shape[3]),
        KINDS[activation],
        training,
    )
    last = len(weights[0]) % len(states[0])
    return _maps(states[0][last].clone(), h.shape)


def _new_states(h: Tensor, kept: int, depth: int) -> list[Tensor]:
    """Return buffers that keep the states of so many layers, and the moments of all."""
    rows, channels = h.numel() // h.shape[1], h.shape[1]
    states = [h.new_empty(count, rows, channels) for count in (kept + 1, kept, kept)]
    return states + [h.new_empty(depth, channels) for _ in range(4)]


def _rows(h: Tensor) -> Tensor:
    """Return maps ``(batch, channels, H, W)`` as ``(batch H W, channels)``."""
    return h.detach().permute(0, 2, 3, 1).reshape(-1, h.shape[1])


def _maps(rows: Tensor, shape: torch.Size) -> Tensor:
    batch, channels, height, width = shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _arrays(tensors: Sequence[Tensor]) -> tuple[Array, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)
