"""Products of matrices padded with zeros to whole tiles, and ways into and out of the padding."""

from __future__ import annotations

from resnet_limits.models.compiled.activations import Real
from resnet_limits.models.compiled.jit import jit
from resnet_limits.models.compiled.simd import Array, add_multiple, add_to, lanes, load, zeros

TILE_ROWS = 4


@jit()
def add_product(a: Array, b: Array, out: Array) -> None:
    """Add a @ b to `out`; rows in tiles of four, columns in whole vectors.

    The product is summed up first, lest each of its terms be rounded to the precision of `out`.
    """
    for i in range(0, out.shape[0], TILE_ROWS):
        for j in range(0, out.shape[1], lanes(out)):
            row0 = row1 = row2 = row3 = zeros(out)
            for k in range(a.shape[1]):
                vector = load(b, k, j)
                row0 = add_multiple(row0, a, i, k, vector)
                row1 = add_multiple(row1, a, i + 1, k, vector)
                row2 = add_multiple(row2, a, i + 2, k, vector)
                row3 = add_multiple(row3, a, i + 3, k, vector)
            add_to(out, i, j, row0)
            add_to(out, i + 1, j, row1)
            add_to(out, i + 2, j, row2)
            add_to(out, i + 3, j, row3)


@jit()
def product(a: Array, b: Array, out: Array) -> None:
    """Write a @ b to `out`."""
    out[:] = 0
    add_product(a, b, out)


@jit()
def pad_scaled(matrix: Array, scale: Real, padded: Array) -> Array:
    """Write `matrix` times `scale` into the corner of `padded`, whose rest is 0, and return it."""
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            padded[i, j] = scale * matrix[i, j]
    return padded


@jit()
def copy(matrix: Array, out: Array) -> None:
    """Copy all entries of contiguous arrays."""
    matrix, out = matrix.reshape(out.size), out.reshape(out.size)
    for i in range(out.size):  # a slice assignment would copy row by row, much slower
        out[i] = matrix[i]


@jit()
def multiply(factors: Array, out: Array) -> None:
    """Multiply `out` by `factors`, entry by entry."""
    factors, out = factors.reshape(out.size), out.reshape(out.size)
    for i in range(out.size):
        out[i] *= factors[i]


@jit()
def pad(rows: Array, padded: Array) -> None:
    """Copy `rows` into the corner of `padded`, and make the rest zero."""
    padded[:] = 0
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            padded[i, j] = rows[i, j]


@jit()
def unpad(padded: Array, rows: Array) -> None:
    """Fill `rows` from the corner of `padded`."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            rows[i, j] = padded[i, j]
