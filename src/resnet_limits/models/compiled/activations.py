"""Activations and their derivatives, one scalar at a time.

LLVM vectorises a loop over them, as it cannot with those of libm.
"""

# ruff: noqa: ARG001  (numba's compiler passes objects without public types)
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import factorial, log, pi, sqrt
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import erfcx

from resnet_limits.models.compiled.jit import intrinsic, jit
from resnet_limits.models.compiled.simd import Array

Real = np.floating[Any]

GELU, GELU_TANH, TANH, RELU, IDENTITY = range(5)
KINDS = {"gelu": GELU, "gelu_tanh": GELU_TANH, "tanh": TANH, "relu": RELU, "identity": IDENTITY}


class Constants(NamedTuple):
    """Numbers in the precision of the chain: others would promote it."""

    zero: Real
    half: Real
    one: Real
    two: Real
    round: Real  # adding this leaves the nearest integer in the last bits
    largest_exponent: Real
    log2_e: Real
    density: Real  # 1 / sqrt(2 pi)
    gelu_tanh: tuple[Real, ...]  # sqrt(2 / pi) and its 0.044715-fold
    pole: Real
    mills: tuple[Real, ...]  # of (z + pole) R(z), in u = (z - pole) / (z + pole)
    exp2: tuple[Real, ...]  # of (2**r - 1) / r


_POLE = 4.0  # of the fit to Mills' ratio; few terms do with this one


def _scaled_mills_ratio(u: Array) -> Any:
    """(z + pole) R(z) for Mills' ratio R = (1 - Phi) / phi at z >= 0, on u in [-1, 1)."""
    z = _POLE * (1 + u) / (1 - u)
    return (z + _POLE) * sqrt(pi / 2) * erfcx(z / sqrt(2))


def _constants_of(dtype: type[Real]) -> Constants:
    single = dtype is np.float32
    mills = Chebyshev.interpolate(_scaled_mills_ratio, 9 if single else 20)
    exp2 = [log(2) ** k / factorial(k) for k in range(1, 8 if single else 14)]

    def real(values: Iterable[float]) -> tuple[Real, ...]:
        return tuple(dtype(value) for value in values)

    return Constants(
        zero=dtype(0),
        half=dtype(0.5),
        one=dtype(1),
        two=dtype(2),
        round=dtype(1.5 * 2 ** (23 if single else 52)),
        largest_exponent=dtype(126 if single else 1022),
        log2_e=dtype(1 / log(2)),
        density=dtype(1 / sqrt(2 * pi)),
        gelu_tanh=real([sqrt(2 / pi), sqrt(2 / pi) * 0.044715]),
        pole=dtype(_POLE),
        mills=real(mills.convert(kind=Polynomial).coef[::-1]),
        exp2=real(exp2[::-1]),
    )


_SINGLE, _DOUBLE = _constants_of(np.float32), _constants_of(np.float64)


def _constants(x: Real) -> Constants:
    """Return the constants in the precision of `x`; in compiled code they are known."""
    return _SINGLE if isinstance(x, np.float32) else _DOUBLE


@overload(_constants)
def _typed_constants(x: Real) -> Callable[[Real], Constants]:
    known = _SINGLE if x == types.float32 else _DOUBLE

    def constants(x: Real) -> Constants:
        return known

    return constants


@jit(forceinline=True)
def _exp2(y: Real) -> tuple[Real, Real]:
    """Return a and b with 2**y = a + b; `a` is a power of two, so a - 1 + b is exact near y = 0."""
    c = _constants(y)
    y = -c.largest_exponent if y < -c.largest_exponent else y
    y = c.largest_exponent if y > c.largest_exponent else y
    shifted = y + c.round
    power = exponent_from_last_bits(shifted)
    rest = y - (shifted - c.round)
    return power, power * (rest * polynomial(c.exp2, rest))


@jit(forceinline=True)
def _gelu(x: Real) -> tuple[Real, Real]:
    c = _constants(x)
    z = abs(x)
    power, rest = _exp2(-c.half * c.log2_e * (x * x))
    density = c.density * (power + rest)
    reciprocal = c.one / (z + c.pole)
    mills = reciprocal * polynomial(c.mills, c.one - c.two * c.pole * reciprocal)
    upper = density * mills
    lower = c.one - upper if x > c.zero else upper
    return x * lower, lower + x * density


@jit(forceinline=True)
def _gelu_tanh(x: Real) -> tuple[Real, Real]:
    c = _constants(x)
    linear, cubic = c.gelu_tanh
    square = x * x
    power, rest = _exp2(-c.two * c.log2_e * x * (linear + cubic * square))
    lower = c.one / (c.one + (power + rest))
    slope = c.two * (linear + (c.two + c.one) * cubic * square)
    return x * lower, lower + x * slope * lower * (c.one - lower)


@jit(forceinline=True)
def _tanh(x: Real) -> tuple[Real, Real]:
    c = _constants(x)
    power, rest = _exp2(-c.two * c.log2_e * abs(x))
    decay = (power - c.one) + rest
    size = -decay / (c.two + decay)
    return (size if x > c.zero else -size), c.one - size * size


@jit()
def activate(kind: int, values: Array, slopes: Array) -> None:
    """Replace arguments in `values` by the activation's values, and fill in its slopes."""
    values = values.reshape(values.size)
    slopes = slopes.reshape(values.size)
    zero = values.dtype.type(0)
    if kind == GELU:
        for i in range(values.size):
            values[i], slopes[i] = _gelu(values[i])
    elif kind == GELU_TANH:
        for i in range(values.size):
            values[i], slopes[i] = _gelu_tanh(values[i])
    elif kind == TANH:
        for i in range(values.size):
            values[i], slopes[i] = _tanh(values[i])
    elif kind == RELU:
        for i in range(values.size):
            slopes[i] = 0 if values[i] <= 0 else 1
            values[i] = max(values[i], zero)
    else:
        slopes[:] = 1


@intrinsic
def exponent_from_last_bits(typing_context: Any, number: Any) -> Any:
    """Return ``2**n`` for a `number` whose last mantissa bits hold the integer n."""
    integer, mantissa_bits, bias = {
        types.float32: (ir.IntType(32), 23, 127),
        types.float64: (ir.IntType(64), 52, 1023),
    }[number]

    def generate(_context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], integer)
        bits = builder.shl(bits, ir.Constant(integer, mantissa_bits))
        bits = builder.add(bits, ir.Constant(integer, bias << mantissa_bits))
        return builder.bitcast(bits, arguments[0].type)

    return number(number), generate


@intrinsic
def polynomial(typing_context: Any, coefficients: Any, x: Any) -> Any:
    """Return the polynomial at `x`, highest coefficient first, by Horner's rule without a loop."""

    def generate(_context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        total, *rest = cgutils.unpack_tuple(builder, arguments[0])
        for coefficient in rest:
            total = builder.fmul(total, arguments[1], flags=["contract"])
            total = builder.fadd(total, coefficient, flags=["contract"])
        return total

    return x(coefficients, x), generate
