"""3x3 convolution of one image by Winograd's F(2x2, 3x3), and its adjoints.

Feature maps are rows of channels, one row for each pixel, so that vectors run over channels. Each
tile of 2x2 outputs is B^T d B of its 4x4 inputs, times weights G g G^T, brought back by A^T . A. It
multiplies 16 numbers where the definition asks for 36. The adjoint with respect to the data is the
convolution by flipped and transposed weights; that with respect to the weights multiplies B^T d B
and A y A^T.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnet_limits.models.compiled.jit import jit
from resnet_limits.models.compiled.simd import (
    Array,
    add_multiple,
    add_to,
    lanes,
    load,
    minus,
    plus,
    store,
    zeros,
)

G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
TILE_ROWS = 5  # tiles multiplied at once; those of a 10x10 image are five times as many


def transform_filters(filters: Tensor) -> Tensor:
    """Return G g G^T of 3x3 filters ``(L, out, in, 3, 3)``, as ``(L, 4 * 4 * in, out)``."""
    matrix = torch.tensor(G, dtype=filters.dtype, device=filters.device)
    transformed = torch.einsum("pa,qb,loiab->lpqio", matrix, matrix, filters)
    return transformed.reshape(len(filters), -1, filters.shape[1]).contiguous()


def flip(transformed: Tensor) -> Tensor:
    """Return the transform of the flipped and transposed filters."""
    depth, _, channels = transformed.shape
    rows = torch.tensor([3, 1, 2, 0])  # where flipping takes the rows of G
    entries = (4 * rows[:, None] + rows).flatten()
    return transformed.reshape(depth, 16, channels, channels)[:, entries].mT.reshape_as(transformed)


class Scratch(NamedTuple):
    """Buffers of one image."""

    padded: Array  # ((2 tile rows + 2) (2 tile columns + 2), channels), with a frame of zeros
    inputs: Array  # (16 tiles, channels) B^T d B, first axis (entry of the tile, tile)
    outputs: Array  # (16 tiles, channels) A y A^T, or the product of inputs and weights


@jit()
def new_scratch(size: tuple[int, int], like: Array) -> Scratch:
    """Return buffers for images of a size, with the channels and the type of another array."""
    down, across, channels = (size[0] + 1) // 2, (size[1] + 1) // 2, like.shape[-1]
    rows = (down * across + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    return Scratch(
        np.zeros(((2 * down + 2) * (2 * across + 2), channels), like.dtype),
        np.zeros((16 * rows, channels), like.dtype),
        np.zeros((16 * rows, channels), like.dtype),
    )


@jit()
def _frame(image: Array, height: int, width: int, padded: Array) -> None:
    """Copy an image into its frame of zeros."""
    across = 2 * ((width + 1) // 2) + 2
    for y in range(height):
        for x in range(width):
            for j in range(0, image.shape[1], lanes(image)):
                store(padded, (y + 1) * across + x + 1, j, load(image, y * width + x, j))


@jit(forceinline=True)
def _spread(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Multiply by B^T."""
    return minus(a, c), plus(b, c), minus(c, b), minus(b, d)


@jit(forceinline=True)
def _gather(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Multiply by A^T."""
    return plus(plus(a, b), c), minus(minus(b, c), d)


@jit(forceinline=True)
def _store4(out: Array, first: int, step: int, j: int, a: Any, b: Any, c: Any, d: Any) -> None:
    store(out, first, j, a)
    store(out, first + step, j, b)
    store(out, first + 2 * step, j, c)
    store(out, first + 3 * step, j, d)


@jit()
def _transform_inputs(padded: Array, height: int, width: int, out: Array) -> None:
    """Write B^T d B of every tile's 4x4 inputs d."""
    down, across, rows = (height + 1) // 2, (width + 1) // 2, out.shape[0] // 16
    pitch = 2 * across + 2
    for t in range(down * across):
        p = 2 * (t // across) * pitch + 2 * (t % across)
        for j in range(0, padded.shape[1], lanes(padded)):
            a, b = _line(padded, p, j), _line(padded, p + pitch, j)
            c, d = _line(padded, p + 2 * pitch, j), _line(padded, p + 3 * pitch, j)
            _store4(out, t, 4 * rows, j, *_spread(a[0], b[0], c[0], d[0]))
            _store4(out, t + rows, 4 * rows, j, *_spread(a[1], b[1], c[1], d[1]))
            _store4(out, t + 2 * rows, 4 * rows, j, *_spread(a[2], b[2], c[2], d[2]))
            _store4(out, t + 3 * rows, 4 * rows, j, *_spread(a[3], b[3], c[3], d[3]))


@jit(forceinline=True)
def _line(padded: Array, p: int, j: int) -> Any:
    """Transform four neighbours of a row."""
    return _spread(
        load(padded, p, j), load(padded, p + 1, j), load(padded, p + 2, j), load(padded, p + 3, j)
    )


@jit()
def _transform_adjoint(padded: Array, height: int, width: int, out: Array) -> None:
    """Write A y A^T of every tile's 2x2 outputs y."""
    down, across, rows = (height + 1) // 2, (width + 1) // 2, out.shape[0] // 16
    pitch = 2 * across + 2
    for t in range(down * across):
        p = (2 * (t // across) + 1) * pitch + 2 * (t % across) + 1
        for j in range(0, padded.shape[1], lanes(padded)):
            left = _scatter(load(padded, p, j), load(padded, p + pitch, j), zeros(padded))
            right = _scatter(load(padded, p + 1, j), load(padded, p + pitch + 1, j), zeros(padded))
            _store4(out, t, rows, j, *_scatter(left[0], right[0], zeros(padded)))
            _store4(out, t + 4 * rows, rows, j, *_scatter(left[1], right[1], zeros(padded)))
            _store4(out, t + 8 * rows, rows, j, *_scatter(left[2], right[2], zeros(padded)))
            _store4(out, t + 12 * rows, rows, j, *_scatter(left[3], right[3], zeros(padded)))


@jit(forceinline=True)
def _scatter(a: Any, b: Any, zero: Any) -> Any:
    """Multiply by A."""
    return a, plus(a, b), minus(a, b), minus(zero, b)


@jit()
def _tile_products(inputs: Array, weights: Array, out: Array) -> None:
    """Write the matrix product of every entry's rows, one per tile, and that entry's weights."""
    channels, rows = inputs.shape[1], inputs.shape[0] // 16
    for i in range(0, inputs.shape[0], TILE_ROWS):
        first = i // rows * channels
        for j in range(0, channels, lanes(inputs)):
            sum0 = sum1 = sum2 = sum3 = sum4 = zeros(out)
            for c in range(channels):
                vector = load(weights, first + c, j)
                sum0 = add_multiple(sum0, inputs, i, c, vector)
                sum1 = add_multiple(sum1, inputs, i + 1, c, vector)
                sum2 = add_multiple(sum2, inputs, i + 2, c, vector)
                sum3 = add_multiple(sum3, inputs, i + 3, c, vector)
                sum4 = add_multiple(sum4, inputs, i + 4, c, vector)
            store(out, i, j, sum0)
            store(out, i + 1, j, sum1)
            store(out, i + 2, j, sum2)
            store(out, i + 3, j, sum3)
            store(out, i + 4, j, sum4)


@jit()
def _transform_outputs(products: Array, height: int, width: int, image: Array, add: bool) -> None:
    """Write A^T m A of every tile's 4x4 products m, or add it."""
    across, rows = (width + 1) // 2, products.shape[0] // 16
    for t in range((height + 1) // 2 * across):
        y, x = 2 * (t // across), 2 * (t % across)
        for j in range(0, image.shape[1], lanes(image)):
            p = y * width + x
            a, b = _column(products, t, rows, j), _column(products, t + rows, rows, j)
            c = _column(products, t + 2 * rows, rows, j)
            d = _column(products, t + 3 * rows, rows, j)
            top_left, top_right = _gather(a[0], b[0], c[0], d[0])
            low_left, low_right = _gather(a[1], b[1], c[1], d[1])
            _write(image, p, j, top_left, add)
            if x + 1 < width:
                _write(image, p + 1, j, top_right, add)
            if y + 1 < height:
                _write(image, p + width, j, low_left, add)
            if x + 1 < width and y + 1 < height:
                _write(image, p + width + 1, j, low_right, add)


@jit(forceinline=True)
def _column(products: Array, t: int, rows: int, j: int) -> Any:
    return _gather(
        load(products, t, j),
        load(products, t + 4 * rows, j),
        load(products, t + 8 * rows, j),
        load(products, t + 12 * rows, j),
    )


@jit(forceinline=True)
def _write(image: Array, p: int, j: int, vector: Any, add: bool) -> None:
    if add:
        vector = plus(vector, load(image, p, j))
    store(image, p, j, vector)


@jit()
def _add_outer_products(inputs: Array, outputs: Array, gradient: Array) -> None:
    """Add to every entry's gradient the outer products of inputs and outputs, over tiles."""
    channels, rows = inputs.shape[1], inputs.shape[0] // 16
    for entry in range(16):
        first, i = entry * rows, entry * channels
        for j in range(0, channels, lanes(inputs)):
            for c in range(0, channels, 8):
                s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zeros(gradient)
                for t in range(first, first + rows):
                    vector = load(outputs, t, j)
                    s0 = add_multiple(s0, inputs, t, c, vector)
                    s1 = add_multiple(s1, inputs, t, c + 1, vector)
                    s2 = add_multiple(s2, inputs, t, c + 2, vector)
                    s3 = add_multiple(s3, inputs, t, c + 3, vector)
                    s4 = add_multiple(s4, inputs, t, c + 4, vector)
                    s5 = add_multiple(s5, inputs, t, c + 5, vector)
                    s6 = add_multiple(s6, inputs, t, c + 6, vector)
                    s7 = add_multiple(s7, inputs, t, c + 7, vector)
                add_to(gradient, i + c, j, s0)
                add_to(gradient, i + c + 1, j, s1)
                add_to(gradient, i + c + 2, j, s2)
                add_to(gradient, i + c + 3, j, s3)
                add_to(gradient, i + c + 4, j, s4)
                add_to(gradient, i + c + 5, j, s5)
                add_to(gradient, i + c + 6, j, s6)
                add_to(gradient, i + c + 7, j, s7)


@jit()
def convolve(
    image: Array, weights: Array, size: tuple[int, int], scratch: Scratch, out: Array, add: bool
) -> None:
    """Write a 3x3 convolution of one image, padded by zeros, or add it to `out`."""
    height, width = size
    _frame(image, height, width, scratch.padded)
    _transform_inputs(scratch.padded, height, width, scratch.inputs)
    _tile_products(scratch.inputs, weights, scratch.outputs)
    _transform_outputs(scratch.outputs, height, width, out, add)


@jit()
def convolve_back(
    image: Array,
    adjoint: Array,
    flipped: Array,
    size: tuple[int, int],
    scratch: Scratch,
    gradient: Array,
    out: Array,
    add: bool,
) -> None:
    """Add to the weights' gradient, and write or add the adjoint of the convolution's image."""
    height, width = size
    _frame(image, height, width, scratch.padded)
    _transform_inputs(scratch.padded, height, width, scratch.inputs)
    _frame(adjoint, height, width, scratch.padded)
    _transform_adjoint(scratch.padded, height, width, scratch.outputs)
    _add_outer_products(scratch.inputs, scratch.outputs, gradient)
    _transform_inputs(scratch.padded, height, width, scratch.inputs)
    _tile_products(scratch.inputs, flipped, scratch.outputs)
    _transform_outputs(scratch.outputs, height, width, out, add)
