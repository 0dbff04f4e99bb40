"""Batch norm over rows of channels, and its adjoint.

Its parameters are `weight` and `bias`. With the moments known it is an affine map of each channel,
whose coefficients are here called `scale` and `shift`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from resnet_limits.models.compiled.jit import jit
from resnet_limits.models.compiled.simd import (
    Array,
    add_to,
    lanes,
    load,
    minus,
    plus,
    store,
    times,
    zeros,
)

EPSILON = 1e-5  # as torch's batch norm has it


class Norm(NamedTuple):
    """One batch norm: moments and parameters, each of shape (channels,)."""

    mean: Array
    variance: Array
    weight: Array
    bias: Array


@jit()
def moments(rows: Array, mean: Array, variance: Array) -> None:
    """Write each channel's mean and (biased) variance."""
    sums = np.zeros((2, rows.shape[1]), rows.dtype)
    for j in range(0, rows.shape[1], lanes(rows)):
        total = zeros(rows)
        for i in range(rows.shape[0]):
            total = plus(total, load(rows, i, j))
        store(sums, 0, j, total)
    for c in range(rows.shape[1]):
        sums[0, c] /= rows.shape[0]
    for j in range(0, rows.shape[1], lanes(rows)):
        total, center = zeros(rows), load(sums, 0, j)
        for i in range(rows.shape[0]):
            deviation = minus(load(rows, i, j), center)
            total = plus(total, times(deviation, deviation))
        store(sums, 1, j, total)
    for c in range(rows.shape[1]):
        mean[c], variance[c] = sums[0, c], sums[1, c] / rows.shape[0]


@jit()
def coefficients(norm: Norm, factor: float) -> tuple[Array, Array]:
    """Return scale and shift, one row each, of batch norm times a factor."""
    rows = np.empty((2, norm.mean.size), norm.mean.dtype)
    for c in range(norm.mean.size):
        rows[0, c] = factor * norm.weight[c] / np.sqrt(norm.variance[c] + EPSILON)
        rows[1, c] = factor * norm.bias[c] - rows[0, c] * norm.mean[c]
    return rows[:1], rows[1:]


@jit()
def affine(rows: Array, scale: Array, shift: Array, out: Array) -> None:
    """Write scale * rows + shift, by channel."""
    for j in range(0, rows.shape[1], lanes(rows)):
        s, t = load(scale, 0, j), load(shift, 0, j)
        for i in range(rows.shape[0]):
            store(out, i, j, plus(times(load(rows, i, j), s), t))


@jit()
def add_affine(start: Array, rows: Array, scale: Array, shift: Array, out: Array) -> None:
    """Write start + scale * rows + shift, by channel."""
    for j in range(0, rows.shape[1], lanes(rows)):
        s, t = load(scale, 0, j), load(shift, 0, j)
        for i in range(rows.shape[0]):
            branch = plus(times(load(rows, i, j), s), t)
            store(out, i, j, plus(load(start, i, j), branch))


@jit()
def add_sums(adjoint: Array, rows: Array, norm: Norm, sums: Array) -> None:
    """Add each channel's sum of the adjoint, and of the adjoint times the centred rows."""
    mean = norm.mean.reshape(1, norm.mean.size)
    for j in range(0, rows.shape[1], lanes(rows)):
        total = product = zeros(rows)
        center = load(mean, 0, j)
        for i in range(rows.shape[0]):
            vector = load(adjoint, i, j)
            total = plus(total, vector)
            product = plus(product, times(vector, minus(load(rows, i, j), center)))
        add_to(sums, 0, j, total)
        add_to(sums, 1, j, product)


@jit()
def parameter_gradients(
    norm: Norm,
    factor: float,
    sums: Array,
    count: int,
    weight_grad: Array,
    bias_grad: Array,
    adjoint_map: Array,
) -> None:
    """Write gradients of the parameters, and the coefficients that `map_adjoint` needs.

    `sums` are those of `add_sums` over all `count` rows; batch norm is times a factor.
    """
    for c in range(norm.mean.size):
        inverse = 1 / np.sqrt(norm.variance[c] + EPSILON)
        weight_grad[c] = factor * sums[1, c] * inverse
        bias_grad[c] = factor * sums[0, c]
        of_adjoint = factor * norm.weight[c] * inverse
        of_rows = -of_adjoint * sums[1, c] * inverse * inverse / count
        constant = -of_adjoint * sums[0, c] / count - of_rows * norm.mean[c]
        adjoint_map[0, c], adjoint_map[1, c], adjoint_map[2, c] = of_adjoint, of_rows, constant


@jit()
def map_adjoint(adjoint: Array, rows: Array, adjoint_map: Array, out: Array) -> None:
    """Write the adjoint with respect to batch norm's input `rows`, an affine map of both."""
    for j in range(0, rows.shape[1], lanes(rows)):
        of_adjoint, of_rows = load(adjoint_map, 0, j), load(adjoint_map, 1, j)
        constant = load(adjoint_map, 2, j)
        for i in range(rows.shape[0]):
            total = plus(times(load(rows, i, j), of_rows), constant)
            store(out, i, j, plus(times(load(adjoint, i, j), of_adjoint), total))
