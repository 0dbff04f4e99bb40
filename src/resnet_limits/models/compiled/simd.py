"""Explicit vectors for numba: 64 bytes of a matrix row held in one register.

Loops over a dozen features are too short for LLVM's vectoriser, which leaves products of such
matrices at a fifth of the machine's speed. So the kernels say themselves what a vector is.
"""

# ruff: noqa: ARG001  (numba's compiler passes objects without public types)
# mypy: allow-subclassing-any, allow-untyped-calls

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model
from numpy.typing import NDArray

from resnet_limits.models.compiled.jit import intrinsic, jit

Array = NDArray[Any]

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


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    array = context.make_array(array_type)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, array_type, array, index, wraparound=False)


@jit(forceinline=True)
def lanes(array: Array) -> int:
    """Return how many scalars of the array's type a vector holds."""
    return REGISTER_BITS // (8 * array.itemsize)


@intrinsic
def load(typing_context: Any, array: Any, i: Any, j: Any) -> Any:
    """Return ``array[i, j:j + lanes]``; the last axis must be contiguous, bounds are unchecked."""
    lanes = Lanes(array.dtype)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        first = _pointer(context, builder, array, arguments[0], arguments[1:])
        vector = context.get_value_type(lanes).as_pointer()
        return builder.load(builder.bitcast(first, vector), align=array.dtype.bitwidth // 8)

    return lanes(array, types.intp, types.intp), generate


@intrinsic
def zeros(typing_context: Any, array: Any) -> Any:
    """Return a vector of zeros of the type that `load` returns."""
    lanes = Lanes(array.dtype)

    def generate(context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(lanes), None)

    return lanes(array), generate


@intrinsic
def store(typing_context: Any, array: Any, i: Any, j: Any, vector: Any) -> Any:
    """Write `vector` to ``array[i, j:j + lanes]``."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        first = _pointer(context, builder, array, arguments[0], arguments[1:3])
        first = builder.bitcast(first, arguments[3].type.as_pointer())
        builder.store(arguments[3], first, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), generate


@intrinsic
def add_to(typing_context: Any, array: Any, i: Any, j: Any, vector: Any) -> Any:
    """Add `vector` to ``array[i, j:j + lanes]``, in place."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
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

    def generate(_context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        total, array_value, i, j, vector = arguments
        factor = builder.load(_pointer(_context, builder, array, array_value, (i, j)))
        undefined = ir.Constant(vector.type, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.type.count), None)
        first = builder.insert_element(undefined, factor, ir.Constant(ir.IntType(32), 0))
        factors = builder.shuffle_vector(first, undefined, zeros)
        product = builder.fmul(factors, vector, flags=["contract"])
        return builder.fadd(total, product, flags=["contract"])

    return total(total, array, types.intp, types.intp, vector), generate


def _elementwise(name: str) -> Any:
    @intrinsic
    def operation(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(_context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments, flags=["contract"])

        return a(a, b), generate

    return operation


plus, minus, times = (_elementwise(name) for name in ("fadd", "fsub", "fmul"))
