"""Compiled forward and backward pass of dense chains; needs numba (extra `fast`).

One task is one block of samples of one seed. It walks the whole chain with its states in cache;
tasks run in parallel and never share memory. Samples and features are padded with zeros, to whole
tiles of the matrix product; every activation maps 0 to 0, so the padding stays zero.
"""

# Mypy cannot know what numba makes of a function.
# mypy: ignore-errors

from collections.abc import Callable, Iterable
from functools import partial
from math import ceil, factorial, gcd, log, pi, sqrt
from typing import NamedTuple

import numba
import numpy as np
import torch
from numba import config, njit, prange, types
from numba.extending import overload
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import erfcx
from torch import Tensor

from resnet_limits.models._simd import (
    REGISTER_BITS,
    add_multiple,
    add_to,
    exponent_from_last_bits,
    load,
    polynomial,
    zeros,
)

Array = np.ndarray
Real = np.floating

TILE_ROWS = 4
SMALLEST_BLOCK = 16  # samples; below, reading the weights costs more than the products
CHUNK = 16  # layers from one kept state to the next: the backward pass recomputes those between
GELU, GELU_TANH, TANH, RELU, IDENTITY = range(5)
KINDS = {"gelu": GELU, "gelu_tanh": GELU_TANH, "tanh": TANH, "relu": RELU, "identity": IDENTITY}

# Sums and products may fuse, which only removes roundings; nothing else of IEEE arithmetic is given
# up, so that a diverged run yields inf or nan as it should.
_jit = partial(njit, cache=True, fastmath={"contract"}, error_model="numpy", nogil=True)

# Activations, one scalar at a time: LLVM vectorises the loop over them, as it cannot with libm.


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


def _scaled_mills_ratio(u: np.ndarray) -> np.ndarray:
    """(z + pole) R(z) for Mills' ratio R = (1 - Phi) / phi at z >= 0, on u in [-1, 1)."""
    z = _POLE * (1 + u) / (1 - u)
    return (z + _POLE) * sqrt(pi / 2) * erfcx(z / sqrt(2))


def _constants_of(dtype: type[np.floating]) -> Constants:
    single = dtype is np.float32
    mills = Chebyshev.interpolate(_scaled_mills_ratio, 9 if single else 20)
    exp2 = [log(2) ** k / factorial(k) for k in range(1, 8 if single else 14)]

    def real(values: Iterable[float]) -> tuple[Real, ...]:
        return tuple(dtype(value) for value in values)

    return Constants(
        *real([0, 0.5, 1, 2, 1.5 * 2 ** (23 if single else 52), 126 if single else 1022]),
        *real([1 / log(2), 1 / sqrt(2 * pi)]),
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
def _typed_constants(x: Real) -> Callable:
    known = _SINGLE if x == types.float32 else _DOUBLE

    def constants(x: Real) -> Constants:  # noqa: ARG001
        return known

    return constants


@_jit(forceinline=True)
def _exp2(y: Real) -> tuple[Real, Real]:
    """Return a and b with 2**y = a + b; `a` is a power of two, so a - 1 + b is exact near y = 0."""
    c = _constants(y)
    y = -c.largest_exponent if y < -c.largest_exponent else y
    y = c.largest_exponent if y > c.largest_exponent else y
    shifted = y + c.round
    power = exponent_from_last_bits(shifted)
    rest = y - (shifted - c.round)
    return power, power * (rest * polynomial(c.exp2, rest))


@_jit(forceinline=True)
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


@_jit(forceinline=True)
def _gelu_tanh(x: Real) -> tuple[Real, Real]:
    c = _constants(x)
    linear, cubic = c.gelu_tanh
    square = x * x
    power, rest = _exp2(-c.two * c.log2_e * x * (linear + cubic * square))
    lower = c.one / (c.one + (power + rest))
    slope = c.two * (linear + (c.two + c.one) * cubic * square)
    return x * lower, lower + x * slope * lower * (c.one - lower)


@_jit(forceinline=True)
def _tanh(x: Real) -> tuple[Real, Real]:
    c = _constants(x)
    power, rest = _exp2(-c.two * c.log2_e * abs(x))
    decay = (power - c.one) + rest
    size = -decay / (c.two + decay)
    return (size if x > c.zero else -size), c.one - size * size


@_jit()
def _activate(kind: int, values: Array, slopes: Array) -> None:
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


# Matrices.


@_jit()
def _add_product(a: Array, b: Array, out: Array) -> None:
    """Add a @ b to `out`; rows in tiles of four, columns in whole vectors.

    The product is summed up first, lest each of its terms be rounded to the precision of `out`.
    """
    lanes = REGISTER_BITS // (8 * out.itemsize)
    for i in range(0, out.shape[0], TILE_ROWS):
        for j in range(0, out.shape[1], lanes):
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


@_jit()
def _product(a: Array, b: Array, out: Array) -> None:
    out[:] = 0
    _add_product(a, b, out)


@_jit()
def _scaled(matrix: Array, scale: Real, padded: Array) -> Array:
    """Write `matrix` times `scale` into the corner of a padded matrix, and return that."""
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            padded[i, j] = scale * matrix[i, j]
    return padded


@_jit()
def _copy(matrix: Array, out: Array) -> None:
    matrix, out = matrix.reshape(out.size), out.reshape(out.size)
    for i in range(out.size):  # a slice assignment would copy row by row, much slower
        out[i] = matrix[i]


@_jit()
def _multiply(matrix: Array, out: Array) -> None:
    matrix, out = matrix.reshape(out.size), out.reshape(out.size)
    for i in range(out.size):
        out[i] *= matrix[i]


@_jit()
def _copy_in(rows: Array, padded: Array) -> None:
    """Copy `rows` into the corner of `padded`, and make the rest zero."""
    padded[:] = 0
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            padded[i, j] = rows[i, j]


@_jit()
def _copy_out(padded: Array, rows: Array) -> None:
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            rows[i, j] = padded[i, j]


# The chain.


class Rule(NamedTuple):
    """What a layer does besides its weights."""

    step_size: Real
    inner_scale: Real
    kind: int


class Task(NamedTuple):
    """Padded buffers of one task; of all tasks, with one more axis in front."""

    kept: Array  # (chunks, samples, d) states before each chunk; of length 0 if none are needed
    states: Array  # (CHUNK + 1, samples, d) states of one chunk
    values: Array  # (CHUNK, samples, m) sigma(inner_scale W h)
    slopes: Array  # (CHUNK, samples, m) its derivative
    adjoint: Array  # (samples, d) derivative of the loss by the state
    inner_adjoint: Array  # (samples, m) by inner_scale W h
    W: Array  # (m, d) weights of one layer, and the transposed of V
    V: Array  # (d, m) and the other way round
    W_grad: Array  # (CHUNK, m, d)
    V_grad: Array  # (CHUNK, d, m)


@_jit()
def _select(tasks: Task, t: int) -> Task:
    return Task(
        tasks.kept[t],
        tasks.states[t],
        tasks.values[t],
        tasks.slopes[t],
        tasks.adjoint[t],
        tasks.inner_adjoint[t],
        tasks.W[t],
        tasks.V[t],
        tasks.W_grad[t],
        tasks.V_grad[t],
    )


@_jit()
def _layer(
    rule: Rule,
    W: Array,
    V: Array,
    state: Array,
    values: Array,
    slopes: Array,
    task: Task,
    out: Array,
) -> None:
    """Write state + step_size V sigma(inner_scale W state) to `out`."""
    _product(state, _scaled(W.T, rule.inner_scale, task.V), values)
    _activate(rule.kind, values, slopes)
    _copy(state, out)
    _add_product(values, _scaled(V.T, rule.step_size, task.W), out)


@_jit()
def _walk(rule: Rule, W: Array, V: Array, task: Task) -> None:
    """Move the first state through all layers."""
    state = task.states[0]
    for k in range(W.shape[0]):
        if k % CHUNK == 0 and task.kept.shape[0] > 0:
            _copy(state, task.kept[k // CHUNK])
        _layer(rule, W[k], V[k], state, task.values[0], task.slopes[0], task, state)


@_jit()
def _walk_back(rule: Rule, W: Array, V: Array, task: Task) -> None:
    """Move the adjoint through the layers of one chunk; gradients lack their scale."""
    depth = W.shape[0]
    for k in range(depth):
        values, slopes = task.values[k], task.slopes[k]
        _layer(rule, W[k], V[k], task.states[k], values, slopes, task, task.states[k + 1])
    adjoint, inner = task.adjoint, task.inner_adjoint
    for k in range(depth - 1, -1, -1):
        _product(adjoint.T, task.values[k], task.V_grad[k])
        _product(adjoint, _scaled(V[k], rule.step_size, task.V), inner)
        _multiply(task.slopes[k], inner)
        _product(inner.T, task.states[k], task.W_grad[k])
        _add_product(inner, _scaled(W[k], rule.inner_scale, task.W), adjoint)


@_jit()
def _sum_tasks(parts: Array, scale: Real, total: Array) -> None:
    """Write the scaled sum of the tasks' gradients to `total`, always in the same order."""
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] = scale * parts[0, i, j]
        for t in range(1, parts.shape[0]):
            for j in range(total.shape[1]):
                total[i, j] += scale * parts[t, i, j]


@_jit()
def _rows(array: Array, blocks: int, t: int) -> Array:
    """Return the rows of `array`, (seeds, samples, d), that belong to task t."""
    size = ceil(array.shape[1] / blocks)
    first = t % blocks * size
    return array[t // blocks, first : first + size]


@_jit()
def _forward_task(
    rule: Rule, x: Array, W: Array, V: Array, tasks: Task, out: Array, t: int
) -> None:
    blocks = tasks.states.shape[0] // x.shape[0]
    task = _select(tasks, t)
    _copy_in(_rows(x, blocks, t), task.states[0])
    _walk(rule, W[t // blocks], V[t // blocks], task)
    _copy_out(task.states[0], _rows(out, blocks, t))


@_jit()
def _backward_task(rule: Rule, W: Array, V: Array, tasks: Task, chunk: int, t: int) -> None:
    seed = t // (tasks.states.shape[0] // W.shape[0])
    layers = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    task = _select(tasks, t)
    _copy(task.kept[chunk], task.states[0])
    _walk_back(rule, W[seed, layers], V[seed, layers], task)


@_jit()
def _sum_layer(rule: Rule, tasks: Task, chunk: int, i: int, W_grad: Array, V_grad: Array) -> None:
    seeds = W_grad.shape[0]
    seed, k = i % seeds, i // seeds
    blocks = tasks.states.shape[0] // seeds
    own = slice(seed * blocks, (seed + 1) * blocks)
    layer = chunk * CHUNK + k
    _sum_tasks(tasks.W_grad[own, k], rule.inner_scale, W_grad[seed, layer])
    _sum_tasks(tasks.V_grad[own, k], rule.step_size, V_grad[seed, layer])


@_jit(parallel=True)
def _forward(rule: Rule, x: Array, W: Array, V: Array, tasks: Task, out: Array) -> None:
    for t in prange(tasks.states.shape[0]):
        _forward_task(rule, x, W, V, tasks, out, np.intp(t))


@_jit(parallel=True)
def _backward(
    rule: Rule,
    adjoint: Array,
    W: Array,
    V: Array,
    tasks: Task,
    x_grad: Array,
    W_grad: Array,
    V_grad: Array,
) -> None:
    seeds, depth = W.shape[0], W.shape[1]
    count = tasks.states.shape[0]
    for t in range(count):
        _copy_in(_rows(adjoint, count // seeds, t), tasks.adjoint[t])
    for chunk in range(tasks.kept.shape[1] - 1, -1, -1):
        for t in prange(count):
            _backward_task(rule, W, V, tasks, chunk, np.intp(t))
        for i in prange(seeds * min(CHUNK, depth - chunk * CHUNK)):
            _sum_layer(rule, tasks, chunk, np.intp(i), W_grad, V_grad)
    for t in range(count):
        _copy_out(tasks.adjoint[t], _rows(x_grad, count // seeds, t))


# The engine.


def _set_threads() -> int:
    """Let numba use as many threads as torch does, and return how many these are."""
    wanted = torch.get_num_threads()
    threads = min(wanted, config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    if torch.get_num_threads() != wanted:  # numba's first start resets the OpenMP that both share
        torch.set_num_threads(wanted)
    return threads


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class NumbaEngine:
    """The `Engine` (see `chains`) for the CPU, in float32 or float64."""

    def __init__(
        self,
        x: Tensor,
        W: Tensor,
        step_size: float,
        activation: str,
        inner_scale: float,
        keep_states: bool,
    ) -> None:
        seeds, samples, dimension = x.shape
        depth, width = W.shape[1:3]
        lanes = REGISTER_BITS // (8 * x.itemsize)
        threads = _set_threads()
        blocks = max(1, min(threads // gcd(threads, seeds), samples // SMALLEST_BLOCK))
        rows = _round_up(ceil(samples / blocks), TILE_ROWS)
        d, m = _round_up(dimension, lanes), _round_up(width, lanes)
        chunk = min(CHUNK, depth)

        def buffer(*shape: int) -> Array:
            # Torch aligns to whole vectors; numpy does not, which costs a tenth of the speed.
            return torch.zeros(seeds * blocks, *shape, dtype=x.dtype).numpy()

        self._tasks = Task(
            kept=buffer(ceil(depth / CHUNK) if keep_states else 0, rows, d),
            states=buffer(chunk + 1, rows, d),
            values=buffer(chunk, rows, m),
            slopes=buffer(chunk, rows, m),
            adjoint=buffer(rows, d),
            inner_adjoint=buffer(rows, m),
            W=buffer(m, d),
            V=buffer(d, m),
            W_grad=buffer(chunk, m, d),
            V_grad=buffer(chunk, d, m),
        )
        real = self._tasks.adjoint.dtype.type
        self._rule = Rule(real(step_size), real(inner_scale), KINDS[activation])
        self._output = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._x_grad = torch.empty_like(self._output)

    def forward(self, x: Tensor, W: Tensor, V: Tensor) -> Tensor:
        """Return h_L."""
        _set_threads()
        weights = _array(W), _array(V)
        _forward(self._rule, _array(x), *weights, self._tasks, _array(self._output))
        return self._output

    def backward(
        self, adjoint: Tensor, W: Tensor, V: Tensor, W_grad: Tensor, V_grad: Tensor
    ) -> Tensor:
        """Fill in the weights' gradients and return that of x."""
        _set_threads()
        filled = _contiguous_twin(W_grad), _contiguous_twin(V_grad)
        weights = _array(W), _array(V)
        gradients = _array(self._x_grad), _array(filled[0]), _array(filled[1])
        _backward(self._rule, _array(adjoint), *weights, self._tasks, *gradients)
        for gradient, source in zip((W_grad, V_grad), filled, strict=True):
            if gradient is not source:
                gradient.copy_(source)
        return self._x_grad


def _array(tensor: Tensor) -> Array:
    # Always contiguous: every other layout would be compiled anew.
    return tensor.detach().contiguous().numpy()


def _contiguous_twin(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return tensor
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
