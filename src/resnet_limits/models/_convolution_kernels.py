"""Compiled forward and backward pass of deep convolutional chains; needs numba (extra `fast`).

Feature maps are rows of channels, one row for each pixel, so that vectors run over channels. A 3x3
convolution is Winograd's F(2x2, 3x3): each tile of 2x2 outputs is B^T d B of its 4x4 inputs, times
weights G g G^T, brought back by A^T . A. It multiplies 16 numbers where the definition asks for 36.
Its adjoint in the data is the convolution by flipped and transposed weights; that in the weights
multiplies B^T d B and A y A^T. One image at a time, whatever a pass needs stays in cache.
"""

# Mypy cannot know what numba makes of a function.
# mypy: ignore-errors
# ruff: noqa: ARG001  (numba's compiler passes objects without public types)

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from resnet_limits.models._chain_kernels import KINDS as KINDS
from resnet_limits.models._chain_kernels import _activate, _jit
from resnet_limits.models._simd import (
    REGISTER_BITS,
    _pointer,
    add_multiple,
    add_to,
    load,
    zeros,
)

Array = np.ndarray
TILE_ROWS = 5  # tiles multiplied at once; those of a 10x10 image are five times as many
CHANNELS = 16  # channels must be a multiple
EPSILON = 1e-5  # as torch's batch norm has it


@intrinsic
def _store(typing_context: Any, array: Any, i: Any, j: Any, vector: Any) -> Any:
    """Write `vector` to ``array[i, j:j + lanes]``."""

    def generate(context: Any, builder: Any, _: Any, arguments: tuple) -> Any:
        first = _pointer(context, builder, array, arguments[0], arguments[1:3])
        first = builder.bitcast(first, arguments[3].type.as_pointer())
        builder.store(arguments[3], first, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), generate


def _elementwise(name: str) -> Callable:
    @intrinsic
    def operation(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(_context: Any, builder: ir.IRBuilder, _: Any, arguments: tuple) -> Any:
            return getattr(builder, name)(*arguments, flags=["contract"])

        return a(a, b), generate

    return operation


_plus, _minus, _times = (_elementwise(name) for name in ("fadd", "fsub", "fmul"))


class Scratch(NamedTuple):
    """Buffers of one image."""

    image: Array  # (pixels, channels)
    slopes: Array  # (pixels, channels) of the activation
    padded: Array  # ((2 tile rows + 2) (2 tile columns + 2), channels), with a frame of zeros
    inputs: Array  # (16 tiles, channels) B^T d B, first axis (place in the tile, tile)
    outputs: Array  # (16 tiles, channels) A y A^T, or the product of inputs and weights


@_jit()
def _scratch(height: int, width: int, like: Array) -> Scratch:
    down, across, channels = (height + 1) // 2, (width + 1) // 2, like.shape[-1]
    rows = (down * across + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    return Scratch(
        np.zeros((height * width, channels), like.dtype),
        np.zeros((height * width, channels), like.dtype),
        np.zeros(((2 * down + 2) * (2 * across + 2), channels), like.dtype),
        np.zeros((16 * rows, channels), like.dtype),
        np.zeros((16 * rows, channels), like.dtype),
    )


@_jit()
def _lanes(array: Array) -> int:
    return REGISTER_BITS // (8 * array.itemsize)


# Winograd's convolution of one image.


@_jit()
def _pad(image: Array, height: int, width: int, padded: Array) -> None:
    """Copy an image into its frame of zeros."""
    across = 2 * ((width + 1) // 2) + 2
    for y in range(height):
        for x in range(width):
            for j in range(0, image.shape[1], _lanes(image)):
                _store(padded, (y + 1) * across + x + 1, j, load(image, y * width + x, j))


@_jit(forceinline=True)
def _spread(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Multiply by B^T."""
    return _minus(a, c), _plus(b, c), _minus(c, b), _minus(b, d)


@_jit(forceinline=True)
def _gather(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Multiply by A^T."""
    return _plus(_plus(a, b), c), _minus(_minus(b, c), d)


@_jit(forceinline=True)
def _store4(out: Array, first: int, step: int, j: int, a: Any, b: Any, c: Any, d: Any) -> None:
    _store(out, first, j, a)
    _store(out, first + step, j, b)
    _store(out, first + 2 * step, j, c)
    _store(out, first + 3 * step, j, d)


@_jit()
def _transform_inputs(padded: Array, height: int, width: int, out: Array) -> None:
    """Write B^T d B of every tile's 4x4 inputs d."""
    down, across, rows = (height + 1) // 2, (width + 1) // 2, out.shape[0] // 16
    pitch = 2 * across + 2
    for t in range(down * across):
        p = 2 * (t // across) * pitch + 2 * (t % across)
        for j in range(0, padded.shape[1], _lanes(padded)):
            a, b = _line(padded, p, j), _line(padded, p + pitch, j)
            c, d = _line(padded, p + 2 * pitch, j), _line(padded, p + 3 * pitch, j)
            _store4(out, t, 4 * rows, j, *_spread(a[0], b[0], c[0], d[0]))
            _store4(out, t + rows, 4 * rows, j, *_spread(a[1], b[1], c[1], d[1]))
            _store4(out, t + 2 * rows, 4 * rows, j, *_spread(a[2], b[2], c[2], d[2]))
            _store4(out, t + 3 * rows, 4 * rows, j, *_spread(a[3], b[3], c[3], d[3]))


@_jit(forceinline=True)
def _line(padded: Array, p: int, j: int) -> Any:
    """Transform four neighbours of a row."""
    return _spread(
        load(padded, p, j), load(padded, p + 1, j), load(padded, p + 2, j), load(padded, p + 3, j)
    )


@_jit()
def _transform_adjoint(padded: Array, height: int, width: int, out: Array) -> None:
    """Write A y A^T of every tile's 2x2 outputs y."""
    down, across, rows = (height + 1) // 2, (width + 1) // 2, out.shape[0] // 16
    pitch = 2 * across + 2
    for t in range(down * across):
        p = (2 * (t // across) + 1) * pitch + 2 * (t % across) + 1
        for j in range(0, padded.shape[1], _lanes(padded)):
            left = _scatter(load(padded, p, j), load(padded, p + pitch, j), zeros(padded))
            right = _scatter(load(padded, p + 1, j), load(padded, p + pitch + 1, j), zeros(padded))
            _store4(out, t, rows, j, *_scatter(left[0], right[0], zeros(padded)))
            _store4(out, t + 4 * rows, rows, j, *_scatter(left[1], right[1], zeros(padded)))
            _store4(out, t + 8 * rows, rows, j, *_scatter(left[2], right[2], zeros(padded)))
            _store4(out, t + 12 * rows, rows, j, *_scatter(left[3], right[3], zeros(padded)))


@_jit(forceinline=True)
def _scatter(a: Any, b: Any, zero: Any) -> Any:
    """Multiply by A."""
    return a, _plus(a, b), _minus(a, b), _minus(zero, b)


@_jit()
def _multiply(inputs: Array, weights: Array, out: Array) -> None:
    """Multiply every tile's channels by the weights of its place."""
    channels, rows = inputs.shape[1], inputs.shape[0] // 16
    for i in range(0, inputs.shape[0], TILE_ROWS):
        first = i // rows * channels
        for j in range(0, channels, _lanes(inputs)):
            sum0 = sum1 = sum2 = sum3 = sum4 = zeros(out)
            for c in range(channels):
                vector = load(weights, first + c, j)
                sum0 = add_multiple(sum0, inputs, i, c, vector)
                sum1 = add_multiple(sum1, inputs, i + 1, c, vector)
                sum2 = add_multiple(sum2, inputs, i + 2, c, vector)
                sum3 = add_multiple(sum3, inputs, i + 3, c, vector)
                sum4 = add_multiple(sum4, inputs, i + 4, c, vector)
            _store(out, i, j, sum0)
            _store(out, i + 1, j, sum1)
            _store(out, i + 2, j, sum2)
            _store(out, i + 3, j, sum3)
            _store(out, i + 4, j, sum4)


@_jit()
def _transform_outputs(products: Array, height: int, width: int, image: Array, add: bool) -> None:
    """Write A^T m A of every tile's 4x4 products m, or add it."""
    across, rows = (width + 1) // 2, products.shape[0] // 16
    for t in range((height + 1) // 2 * across):
        y, x = 2 * (t // across), 2 * (t % across)
        for j in range(0, image.shape[1], _lanes(image)):
            p = y * width + x
            a, b = _column(products, t, rows, j), _column(products, t + rows, rows, j)
            c = _column(products, t + 2 * rows, rows, j)
            d = _column(products, t + 3 * rows, rows, j)
            top_left, top_right = _gather(a[0], b[0], c[0], d[0])
            low_left, low_right = _gather(a[1], b[1], c[1], d[1])
            _put(image, p, j, top_left, add)
            if x + 1 < width:
                _put(image, p + 1, j, top_right, add)
            if y + 1 < height:
                _put(image, p + width, j, low_left, add)
            if x + 1 < width and y + 1 < height:
                _put(image, p + width + 1, j, low_right, add)


@_jit(forceinline=True)
def _column(products: Array, t: int, rows: int, j: int) -> Any:
    return _gather(
        load(products, t, j),
        load(products, t + 4 * rows, j),
        load(products, t + 8 * rows, j),
        load(products, t + 12 * rows, j),
    )


@_jit(forceinline=True)
def _put(image: Array, p: int, j: int, vector: Any, add: bool) -> None:
    if add:
        vector = _plus(vector, load(image, p, j))
    _store(image, p, j, vector)


@_jit()
def _add_outer(inputs: Array, outputs: Array, gradient: Array) -> None:
    """Add to every place's gradient the outer products of inputs and outputs, over tiles."""
    channels, rows = inputs.shape[1], inputs.shape[0] // 16
    for place in range(16):
        first, i = place * rows, place * channels
        for j in range(0, channels, _lanes(inputs)):
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


@_jit()
def convolve(
    image: Array, weights: Array, size: tuple[int, int], scratch: Scratch, out: Array, add: bool
) -> None:
    """Write a 3x3 convolution of one image, padded by zeros, or add it to `out`."""
    height, width = size
    _pad(image, height, width, scratch.padded)
    _transform_inputs(scratch.padded, height, width, scratch.inputs)
    _multiply(scratch.inputs, weights, scratch.outputs)
    _transform_outputs(scratch.outputs, height, width, out, add)


@_jit()
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
    _pad(image, height, width, scratch.padded)
    _transform_inputs(scratch.padded, height, width, scratch.inputs)
    _pad(adjoint, height, width, scratch.padded)
    _transform_adjoint(scratch.padded, height, width, scratch.outputs)
    _add_outer(scratch.inputs, scratch.outputs, gradient)
    _transform_inputs(scratch.padded, height, width, scratch.inputs)
    _multiply(scratch.inputs, flipped, scratch.outputs)
    _transform_outputs(scratch.outputs, height, width, out, add)


# Batch norm.


@_jit()
def _moments(rows: Array, mean: Array, variance: Array) -> None:
    """Write each channel's mean and (biased) variance."""
    origin = np.zeros((2, rows.shape[1]), rows.dtype)
    for j in range(0, rows.shape[1], _lanes(rows)):
        total = zeros(rows)
        for i in range(rows.shape[0]):
            total = _plus(total, load(rows, i, j))
        _store(origin, 0, j, total)
    for c in range(rows.shape[1]):
        origin[0, c] /= rows.shape[0]
    for j in range(0, rows.shape[1], _lanes(rows)):
        total, center = zeros(rows), load(origin, 0, j)
        for i in range(rows.shape[0]):
            deviation = _minus(load(rows, i, j), center)
            total = _plus(total, _times(deviation, deviation))
        _store(origin, 1, j, total)
    for c in range(rows.shape[1]):
        mean[c], variance[c] = origin[0, c], origin[1, c] / rows.shape[0]


@_jit()
def _affine(rows: Array, scale: Array, shift: Array, out: Array) -> None:
    """Write scale * rows + shift, by channel; scale and shift have one row."""
    for j in range(0, rows.shape[1], _lanes(rows)):
        s, t = load(scale, 0, j), load(shift, 0, j)
        for i in range(rows.shape[0]):
            _store(out, i, j, _plus(_times(load(rows, i, j), s), t))


@_jit()
def _combine(a: Array, b: Array, factors: Array, out: Array) -> None:
    """Write p a + q b + r, by channel; the rows of factors are p, q and r."""
    for j in range(0, a.shape[1], _lanes(a)):
        p, q, r = load(factors, 0, j), load(factors, 1, j), load(factors, 2, j)
        for i in range(a.shape[0]):
            total = _plus(_times(load(b, i, j), q), r)
            _store(out, i, j, _plus(_times(load(a, i, j), p), total))


@_jit()
def _sums(adjoint: Array, rows: Array, mean: Array, out: Array) -> None:
    """Add each channel's sum of the adjoint, and of the adjoint times the centred rows."""
    for j in range(0, rows.shape[1], _lanes(rows)):
        plain = product = zeros(rows)
        center = load(mean, 0, j)
        for i in range(rows.shape[0]):
            vector = load(adjoint, i, j)
            plain = _plus(plain, vector)
            product = _plus(product, _times(vector, _minus(load(rows, i, j), center)))
        add_to(out, 0, j, plain)
        add_to(out, 1, j, product)


# The chain.


class Weights(NamedTuple):
    """Parameters of all layers; the first axis is the layer's."""

    first: Array  # (L, 16 channels, channels) of conv1: G g G^T, by place and channel in
    second: Array  # the same of conv2
    scale1: Array  # (L, channels) batch norm's weight
    shift1: Array  # and bias
    scale2: Array
    shift2: Array


class States(NamedTuple):
    """What the forward pass keeps for the backward one; where nothing is kept, rings."""

    h: Array  # (L + 1 or 2, rows, channels) residual states
    first: Array  # (L or 1, rows, channels) conv1's outputs
    second: Array  # and conv2's
    mean1: Array  # (L, channels) moments of conv1's outputs
    variance1: Array
    mean2: Array
    variance2: Array


@_jit()
def _norm(mean: Array, variance: Array, scale: Array, shift: Array, factor: float) -> Any:
    """Return scale and shift, one row each, of batch norm times a factor."""
    total = np.empty((2, mean.size), mean.dtype)
    for c in range(mean.size):
        total[0, c] = factor * scale[c] / np.sqrt(variance[c] + EPSILON)
        total[1, c] = factor * shift[c] - total[0, c] * mean[c]
    return total[:1], total[1:]


@_jit()
def walk(
    weights: Weights, states: States, size: tuple[int, int], kind: int, training: bool
) -> None:
    """Move the states through all layers; the first is given and the others are written.

    When not training, the moments are given.
    """
    depth, pixels, h = weights.first.shape[0], size[0] * size[1], states.h
    scratch = _scratch(size[0], size[1], h)
    for k in range(depth):
        now, then = h[k % h.shape[0]], h[(k + 1) % h.shape[0]]
        a = states.first[k % states.first.shape[0]]
        c = states.second[k % states.second.shape[0]]
        for p in range(0, a.shape[0], pixels):
            convolve(now[p : p + pixels], weights.first[k], size, scratch, a[p : p + pixels], False)
        mean, variance = states.mean1[k], states.variance1[k]
        if training:
            _moments(a, mean, variance)
        s, t = _norm(mean, variance, weights.scale1[k], weights.shift1[k], 1.0)
        for p in range(0, a.shape[0], pixels):
            _affine(a[p : p + pixels], s, t, scratch.image)
            _activate(kind, scratch.image, scratch.slopes)
            convolve(scratch.image, weights.second[k], size, scratch, c[p : p + pixels], False)
        mean, variance = states.mean2[k], states.variance2[k]
        if training:
            _moments(c, mean, variance)
        s, t = _norm(mean, variance, weights.scale2[k], weights.shift2[k], 1 / depth)
        _residual(now, c, s, t, then)


@_jit()
def _residual(now: Array, rows: Array, scale: Array, shift: Array, out: Array) -> None:
    for j in range(0, rows.shape[1], _lanes(rows)):
        s, t = load(scale, 0, j), load(shift, 0, j)
        for i in range(rows.shape[0]):
            branch = _plus(_times(load(rows, i, j), s), t)
            _store(out, i, j, _plus(load(now, i, j), branch))


@_jit()
def _norm_back(
    sums: Array,
    count: int,
    variance: Array,
    mean: Array,
    scale: Array,
    factor: float,
    scale_grad: Array,
    shift_grad: Array,
    out: Array,
) -> None:
    """Write gradients of batch norm's parameters, and factors of its adjoint for `_combine`."""
    for c in range(scale.size):
        inverse = 1 / np.sqrt(variance[c] + EPSILON)
        scale_grad[c], shift_grad[c] = factor * sums[1, c] * inverse, factor * sums[0, c]
        p = factor * scale[c] * inverse
        q = -p * sums[1, c] * inverse * inverse / count
        out[0, c], out[1, c], out[2, c] = p, q, -p * sums[0, c] / count - q * mean[c]


@_jit()
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
    depth, pixels, count = weights.first.shape[0], size[0] * size[1], adjoint.shape[0]
    scratch, buffer = _scratch(size[0], size[1], adjoint), np.empty_like(adjoint)
    factors, inner = np.empty((3, adjoint.shape[1]), adjoint.dtype), np.empty_like(adjoint[:pixels])
    sums = np.empty((2, adjoint.shape[1]), adjoint.dtype)
    for k in range(depth - 1, -1, -1):
        h, a, c = states.h[k], states.first[k], states.second[k]
        sums[:] = 0
        _sums(adjoint, c, states.mean2[k : k + 1], sums)
        _norm_back(
            sums, count, states.variance2[k], states.mean2[k], weights.scale2[k], 1 / depth,
            gradients.scale2[k], gradients.shift2[k], factors,
        )  # fmt: skip
        s, t = _norm(
            states.mean1[k], states.variance1[k], weights.scale1[k], weights.shift1[k], 1.0
        )
        sums[:] = 0
        for p in range(0, count, pixels):
            here = slice(p, p + pixels)
            _affine(a[here], s, t, scratch.image)
            _activate(kind, scratch.image, scratch.slopes)
            _combine(adjoint[here], c[here], factors, inner)
            convolve_back(
                scratch.image, inner, flipped[1][k], size, scratch, gradients.second[k],
                buffer[here], False,
            )  # fmt: skip
            _scale(scratch.slopes, buffer[here])
            _sums(buffer[here], a[here], states.mean1[k : k + 1], sums)
        _norm_back(
            sums, count, states.variance1[k], states.mean1[k], weights.scale1[k], 1.0,
            gradients.scale1[k], gradients.shift1[k], factors,
        )  # fmt: skip
        for p in range(0, count, pixels):
            here = slice(p, p + pixels)
            _combine(buffer[here], a[here], factors, inner)
            convolve_back(
                h[here], inner, flipped[0][k], size, scratch, gradients.first[k],
                adjoint[here], True,
            )  # fmt: skip


@_jit()
def _scale(slopes: Array, out: Array) -> None:
    for j in range(0, out.shape[1], _lanes(out)):
        for i in range(out.shape[0]):
            _store(out, i, j, _times(load(out, i, j), load(slopes, i, j)))
