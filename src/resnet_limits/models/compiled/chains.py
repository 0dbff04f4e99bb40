"""Forward and backward pass of dense chains.

One task is one block of samples of one seed. It walks the whole chain with its states in cache;
tasks run in parallel and never share memory. Samples and features are padded with zeros, to whole
tiles of the matrix product; every activation maps 0 to 0, so the padding stays zero.
"""

from __future__ import annotations

from math import ceil, gcd
from typing import NamedTuple

import numba
import numpy as np
import torch
from numba import prange
from torch import Tensor

from resnet_limits.models.activations import LayerRule
from resnet_limits.models.compiled.activations import KINDS, Real, activate
from resnet_limits.models.compiled.jit import config, jit
from resnet_limits.models.compiled.matrices import (
    TILE_ROWS,
    add_product,
    copy,
    multiply,
    pad,
    pad_scaled,
    product,
    unpad,
)
from resnet_limits.models.compiled.simd import REGISTER_BITS, Array

SMALLEST_BLOCK = 16  # samples; below, reading the weights costs more than the products
CHUNK = 16  # layers from one kept state to the next: the backward pass recomputes those between


class Rule(NamedTuple):
    """A `LayerRule` in the precision of the chain."""

    step_size: Real
    inner_scale: Real
    kind: int


class Task(NamedTuple):
    """Padded buffers of one task; of all tasks, with one more axis in front."""

    kept: Array  # (chunks, samples, d) states before each chunk; of length 0 if none are needed
    states: Array  # (CHUNK + 1, samples, d) states of one chunk
    values: Array  # (CHUNK, samples, m) sigma(inner_scale W h)
    slopes: Array  # (CHUNK, samples, m) its derivative
    adjoint: Array  # (samples, d) derivative of the loss with respect to the state
    inner_adjoint: Array  # (samples, m) with respect to inner_scale W h
    W: Array  # (m, d) weights of one layer, and the transposed of V
    V: Array  # (d, m) and the other way round
    W_grad: Array  # (CHUNK, m, d)
    V_grad: Array  # (CHUNK, d, m)


@jit()
def _select(tasks: Task, t: np.intp) -> Task:
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


@jit()
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
    product(state, pad_scaled(W.T, rule.inner_scale, task.V), values)
    activate(rule.kind, values, slopes)
    copy(state, out)
    add_product(values, pad_scaled(V.T, rule.step_size, task.W), out)


@jit()
def _walk(rule: Rule, W: Array, V: Array, task: Task) -> None:
    """Move the first state through all layers."""
    state = task.states[0]
    for k in range(W.shape[0]):
        if k % CHUNK == 0 and task.kept.shape[0] > 0:
            copy(state, task.kept[k // CHUNK])
        _layer(rule, W[k], V[k], state, task.values[0], task.slopes[0], task, state)


@jit()
def _walk_back(rule: Rule, W: Array, V: Array, task: Task) -> None:
    """Move the adjoint through the layers of one chunk; gradients lack their scale."""
    depth = W.shape[0]
    for k in range(depth):
        values, slopes = task.values[k], task.slopes[k]
        _layer(rule, W[k], V[k], task.states[k], values, slopes, task, task.states[k + 1])
    adjoint, inner = task.adjoint, task.inner_adjoint
    for k in range(depth - 1, -1, -1):
        product(adjoint.T, task.values[k], task.V_grad[k])
        product(adjoint, pad_scaled(V[k], rule.step_size, task.V), inner)
        multiply(task.slopes[k], inner)
        product(inner.T, task.states[k], task.W_grad[k])
        add_product(inner, pad_scaled(W[k], rule.inner_scale, task.W), adjoint)


@jit()
def _sum_tasks(parts: Array, scale: Real, total: Array) -> None:
    """Write the scaled sum of the tasks' gradients to `total`, always in the same order."""
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] = scale * parts[0, i, j]
        for t in range(1, parts.shape[0]):
            for j in range(total.shape[1]):
                total[i, j] += scale * parts[t, i, j]


@jit()
def _rows(array: Array, blocks: int, t: int | np.intp) -> Array:
    """Return the rows of `array`, (seeds, samples, d), that belong to task t."""
    size = ceil(array.shape[1] / blocks)
    first = t % blocks * size
    return array[t // blocks, first : first + size]


@jit()
def _forward_task(
    rule: Rule, x: Array, W: Array, V: Array, tasks: Task, out: Array, t: np.intp
) -> None:
    blocks = tasks.states.shape[0] // x.shape[0]
    task = _select(tasks, t)
    pad(_rows(x, blocks, t), task.states[0])
    _walk(rule, W[t // blocks], V[t // blocks], task)
    unpad(task.states[0], _rows(out, blocks, t))


@jit()
def _backward_task(rule: Rule, W: Array, V: Array, tasks: Task, chunk: int, t: np.intp) -> None:
    seed = t // (tasks.states.shape[0] // W.shape[0])
    layers = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    task = _select(tasks, t)
    copy(task.kept[chunk], task.states[0])
    _walk_back(rule, W[seed, layers], V[seed, layers], task)


@jit()
def _sum_layer(
    rule: Rule, tasks: Task, chunk: int, i: np.intp, W_grad: Array, V_grad: Array
) -> None:
    """Write the gradients of layer k of the chunk for one seed, where i is k * seeds + seed."""
    seeds = W_grad.shape[0]
    seed, k = i % seeds, i // seeds
    blocks = tasks.states.shape[0] // seeds
    own = slice(seed * blocks, (seed + 1) * blocks)
    layer = chunk * CHUNK + k
    _sum_tasks(tasks.W_grad[own, k], rule.inner_scale, W_grad[seed, layer])
    _sum_tasks(tasks.V_grad[own, k], rule.step_size, V_grad[seed, layer])


@jit(parallel=True)
def _forward(rule: Rule, x: Array, W: Array, V: Array, tasks: Task, out: Array) -> None:
    for t in prange(tasks.states.shape[0]):
        _forward_task(rule, x, W, V, tasks, out, np.intp(t))


@jit(parallel=True)
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
        pad(_rows(adjoint, count // seeds, t), tasks.adjoint[t])
    for chunk in range(tasks.kept.shape[1] - 1, -1, -1):
        for t in prange(count):
            _backward_task(rule, W, V, tasks, chunk, np.intp(t))
        for i in prange(seeds * min(CHUNK, depth - chunk * CHUNK)):
            _sum_layer(rule, tasks, chunk, np.intp(i), W_grad, V_grad)
    for t in range(count):
        unpad(tasks.adjoint[t], _rows(x_grad, count // seeds, t))


def _set_threads() -> int:
    """Let numba use as many threads as torch does, if it has them, and return torch's number.

    The blocks of samples, and so the order of sums, follow torch's number alone: that of numba,
    which may be smaller, only says how many blocks are computed at once.
    """
    wanted = torch.get_num_threads()
    numba.set_num_threads(min(wanted, int(config.NUMBA_NUM_THREADS)))
    if torch.get_num_threads() != wanted:  # numba's first start resets the OpenMP that both share
        torch.set_num_threads(wanted)
    return wanted


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class NumbaEngine:
    """The `Engine` of `resnet_limits.models.chains` for the CPU, in float32 or float64."""

    name = "numba"

    def __init__(self, x: Tensor, W: Tensor, rule: LayerRule, keep_states: bool) -> None:
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
        self._rule = Rule(real(rule.step_size), real(rule.inner_scale), KINDS[rule.activation])
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
