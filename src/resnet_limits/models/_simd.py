"""Explicit vectors for numba: 64 bytes of a matrix row held in one register.

Loops over a dozen features are too short for LLVM's vectoriser, which leaves products of such
matrices at a fifth of the machine's speed. So the products say themselves what a vector is.

Numba does not see that its cached code depends on this file: after a change here, delete the cached
code of the modules that import it (``__pycache__/*.nb*``).
"""

# ruff: noqa: ARG001  (numba's compiler passes objects without public types)

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

REGISTER_BITS = 512  # narrower machines use two or four registers for one


class Lanes(types.Type):
    """Numba type of a vector of `count` scalars of type `dtype`."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.count = REGISTER_BITS // dtype.bitwidth
        super().__init__(f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        scalar = manager.lookup(lanes.dtype).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(scalar, lanes.count))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: tuple) -> Any:
    array = context.make_array(array_type)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, array_type, array, index, wraparound=False)


@intrinsic
def load(typing_context: Any, array: Any, i: Any, j: Any) -> Any:
    """Return ``array[i, j:j + lanes]``; the last axis must be contiguous, bounds are unchecked."""
    lanes = Lanes(array.dtype)

    def generate(context: Any, builder: Any, _: Any, arguments: tuple) -> Any:
        first = _pointer(context, builder, array, arguments[0], arguments[1:])
        vector = context.get_value_type(lanes).as_pointer()
        return builder.load(builder.bitcast(first, vector), align=array.dtype.bitwidth // 8)

    return lanes(array, types.intp, types.intp), generate


@intrinsic
def zeros(typing_context: Any, array: Any) -> Any:
    """Return a vector of zeros of the type that `load` returns."""
    lanes = Lanes(array.dtype)

    def generate(context: Any, _builder: Any, _signature: Any, _arguments: tuple) -> Any:
        return ir.Constant(context.get_value_type(lanes), None)

    return lanes(array), generate


@intrinsic
def add_to(typing_context: Any, array: Any, i: Any, j: Any, vector: Any) -> Any:
    """Add `vector` to ``array[i, j:j + lanes]``, in place."""

    def generate(context: Any, builder: Any, _: Any, arguments: tuple) -> Any:
        first = _pointer(context, builder, array, arguments[0], arguments[1:3])
        first = builder.bitcast(first, arguments[3].type.as_pointer())
        size = array.dtype.bitwidth // 8
        total = builder.fadd(builder.load(first, align=size), arguments[3])
        builder.store(total, first, align=size)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), generate


@intrinsic
def add_multiple(typing_context: Any, total: Any, array: Any, i: Any, j: Any, vector: Any) -> Any:
    """Return ``total + array[i, j] * vector``."""

    def generate(_context: Any, builder: Any, _: Any, arguments: tuple) -> Any:
        total, array_value, i, j, vector = arguments
        factor = builder.load(_pointer(_context, builder, array, array_value, (i, j)))
        undefined = ir.Constant(vector.type, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.type.count), None)
        first = builder.insert_element(undefined, factor, ir.Constant(ir.IntType(32), 0))
        factors = builder.shuffle_vector(first, undefined, zeros)
        product = builder.fmul(factors, vector, flags=["contract"])
        return builder.fadd(total, product, flags=["contract"])

    return total(total, array, types.intp, types.intp, vector), generate


@intrinsic
def exponent_from_last_bits(typing_context: Any, number: Any) -> Any:
    """Return ``2**n`` for a `number` whose last mantissa bits hold the integer n."""
    integer, mantissa_bits, bias = {
        types.float32: (ir.IntType(32), 23, 127),
        types.float64: (ir.IntType(64), 52, 1023),
    }[number]

    def generate(_context: Any, builder: Any, _: Any, arguments: tuple) -> Any:
        bits = builder.bitcast(arguments[0], integer)
        bits = builder.shl(bits, ir.Constant(integer, mantissa_bits))
        bits = builder.add(bits, ir.Constant(integer, bias << mantissa_bits))
        return builder.bitcast(bits, arguments[0].type)

    return number(number), generate


@intrinsic
def polynomial(typing_context: Any, coefficients: Any, x: Any) -> Any:
    """Return the polynomial at `x`, highest coefficient first, by Horner's rule without a loop."""

    def generate(_context: Any, builder: Any, _: Any, arguments: tuple) -> Any:
        total, *rest = cgutils.unpack_tuple(builder, arguments[0])
        for coefficient in rest:
            total = builder.fmul(total, arguments[1], flags=["contract"])
            total = builder.fadd(total, coefficient, flags=["contract"])
        return total

    return x(coefficients, x), generate
