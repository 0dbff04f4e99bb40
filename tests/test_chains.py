"""Dense chains against a naive autograd loop, against their limit, and against misuse."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from resnet_limits.models import engines
from resnet_limits.models.activations import ACTIVATIONS, COMPILED, LayerRule
from resnet_limits.models.chains import ChainLoss, chain
from resnet_limits.models.descent import DescendingChain
from resnet_limits.models.engines import has_numba
from tests.reference import chains as reference
from tests.reference.chains import gradients

BACKENDS = [
    pytest.param("numba", marks=pytest.mark.skipif(not has_numba(), reason="no numba")),
    "torch",
]
ENGINES = [("torch", activation) for activation in ACTIVATIONS]
ENGINES += [pytest.param("numba", name, marks=BACKENDS[0].marks) for name in COMPILED]
# (seeds, samples, d, m, depth): one layer, odd depths around the chunks of 32, odd sizes around the
# tiles of 4 and vectors of 8 or 16, more samples than one block.
SHAPES = [
    ((), 5, 2, 3, 1),
    ((), 100, 16, 32, 7),
    ((), 33, 3, 17, 33),
    ((1,), 1, 1, 1, 64),
    ((3,), 18, 5, 2, 70),
    ((2,), 7, 8, 9, 31),
]
RULE = LayerRule(step_size=0.3)


def problem(seeds, samples, d, m, depth, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    x, y = draw(*seeds, samples, d), draw(*seeds, samples, d)
    W = draw(*seeds, depth, m, d) / math.sqrt(d)
    V = draw(*seeds, depth, d, m) / math.sqrt(m * depth)
    return x, y, W, V


def assert_same(results, expected, tolerance=1e-10):
    for result, exact in zip(results, expected, strict=True):
        assert result.shape == exact.shape
        assert (result - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize(("backend", "activation"), ENGINES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_the_naive_loop(shape, activation, backend):
    x, y, W, V = problem(*shape)
    rule = LayerRule(0.3, activation, 0.7)
    expected = gradients(partial(reference.chain, rule=rule), x, y, W, V)
    assert_same(gradients(partial(chain, rule=rule, backend=backend), x, y, W, V), expected)

    W_grad, V_grad = torch.full_like(W, math.nan), torch.full_like(V, math.nan)
    loss = ChainLoss(x, y, W, rule, backend=backend)
    for _ in range(2):  # the buffers of a second call are not clean
        results = loss(W, V, W_grad, V_grad).clone(), W_grad, V_grad
    assert_same(results, [expected[0], *expected[2:]])


@pytest.mark.parametrize(("backend", "activation"), ENGINES)
def test_single_precision(activation, backend):
    x, y, W, V = problem((), 100, 16, 32, 64, torch.float32)
    rule = LayerRule(0.3, activation)
    exact = (t.double() for t in (x, y, W, V))
    expected = gradients(partial(reference.chain, rule=rule), *exact)
    results = gradients(partial(chain, rule=rule, backend=backend), x, y, W, V)
    assert_same(results, expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_adds_up_no_faster_than_in_the_naive_loop(backend):
    x, y, W, V = problem((), 5, 16, 32, 2000, torch.float32)
    exact = gradients(partial(chain, rule=RULE), *(t.double() for t in (x, y, W, V)))

    def error(function):
        results = gradients(function, x, y, W, V)
        return [
            ((a - b).abs().max() / b.abs().max()).item()
            for a, b in zip(results, exact, strict=True)
        ]

    reference_errors = error(partial(reference.chain, rule=RULE))
    assert max(error(partial(chain, rule=RULE, backend=backend))) < 2 * max(reference_errors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numerical_gradients(backend):
    x, _, W, V = (t.requires_grad_() for t in problem((2,), 3, 2, 3, 3))
    assert torch.autograd.gradcheck(partial(chain, rule=LayerRule(0.5), backend=backend), (x, W, V))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_tensors(backend):
    x, y, W, V = problem((2,), 6, 3, 5, 9)
    expected = gradients(partial(reference.chain, rule=RULE), x, y, W, V)

    def strided(t):
        wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1]).transpose(0, 1)
        return wide.transpose(0, 1)[..., ::2].copy_(t)

    x, y, W, V = (strided(t) for t in (x, y, W, V))
    W_grad, V_grad = strided(W), strided(V)
    loss = ChainLoss(x, y, W, RULE, backend=backend)(W, V, W_grad, V_grad)
    assert not W_grad.is_contiguous()
    assert_same([loss, W_grad, V_grad], [expected[0], *expected[2:]])
    assert_same(gradients(partial(chain, rule=RULE, backend=backend), x, y, W, V), expected)
    parts = W.mT.contiguous().mT, V.mT.contiguous().mT
    assert_same([chain(x, *parts, RULE, backend=backend)], [reference.chain(x, W, V, RULE)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients_and_by_input_only(backend):
    x, _, W, V = problem((), 9, 4, 6, 40)
    expected = reference.chain(x, W, V, RULE)
    assert_same([chain(x, W, V, RULE, backend=backend)], [expected])
    x.requires_grad_()
    with torch.no_grad():
        assert_same([chain(x, W, V, RULE, backend=backend)], [expected])
    by_chain = torch.autograd.grad(chain(x, W, V, RULE, backend=backend).sum(), x)
    assert_same(by_chain, torch.autograd.grad(reference.chain(x, W, V, RULE).sum(), x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_accumulate_and_repeat(backend):
    x, _, W, V = (t.requires_grad_() for t in problem((), 9, 4, 6, 40))
    output = chain(x, W, V, RULE, backend=backend).sum()
    output.backward(retain_graph=True)
    once = [t.grad.clone() for t in (x, W, V)]
    output.backward()
    assert_same([t.grad for t in (x, W, V)], [2 * g for g in once])


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_each_time(backend):
    x, y, W, V = problem((3,), 50, 16, 32, 40, torch.float32)
    runs = [gradients(partial(chain, rule=RULE, backend=backend), x, y, W, V) for _ in range(3)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_number_of_threads(backend, threads):
    x, y, W, V = problem((), 50, 3, 4, 40)
    expected = gradients(partial(reference.chain, rule=RULE), x, y, W, V)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = gradients(partial(chain, rule=RULE, backend=backend), x, y, W, V)
    finally:
        torch.set_num_threads(before)
    assert_same(results, expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_first_call_leaves_the_number_of_threads_alone(backend):
    code = f"""
import torch
from resnet_limits.models.activations import LayerRule
from resnet_limits.models.chains import chain
torch.set_num_threads(1)
W = torch.ones(1, 2, 2, dtype=torch.float64)
chain(W[0], W, W, LayerRule(1.0), backend="{backend}")
assert torch.get_num_threads() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


BITS = """
import hashlib, torch
from resnet_limits.models.activations import LayerRule
from resnet_limits.models.chains import ChainLoss
torch.set_num_threads(3)
source = torch.Generator().manual_seed(0)
x, y, W, V = (torch.randn(*shape, generator=source)
              for shape in ((64, 8), (64, 8), (20, 9, 8), (20, 8, 9)))
loss = ChainLoss(x, y, W, LayerRule(0.05, "tanh"), backend="numba")
gradients = torch.empty_like(W), torch.empty_like(V)
value = loss(W, V, *gradients)
parts = [value.reshape(1), *gradients]
print(hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
def test_numbas_own_threads_change_no_bit():
    """Only torch's number of threads does, which checkpoints name and resumed runs take over."""

    def bits(**variables):
        environment = {k: v for k, v in os.environ.items() if "NUM_THREADS" not in k} | variables
        command = [sys.executable, "-c", BITS]
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout

    found = {bits(NUMBA_NUM_THREADS=number) for number in ("1", "2", "3")}
    found.add(bits(NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="1"))
    assert len(found) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_divergence_shows_and_passes(backend):
    x, y, W, V = problem((2,), 6, 3, 5, 9)
    loss = ChainLoss(x, y, W, RULE, backend=backend)
    W_grad, V_grad = torch.empty_like(W), torch.empty_like(V)
    clean = loss(W, V, W_grad, V_grad).clone(), W_grad.clone(), V_grad.clone()
    broken = W.clone()
    broken[0, 4] = math.inf
    values = loss(broken, V, W_grad, V_grad)
    assert not values[0].isfinite()
    assert values[1] == clean[0][1]  # the other seed never notices
    again = loss(W, V, W_grad, V_grad), W_grad, V_grad
    assert all(torch.equal(a, b) for a, b in zip(again, clean, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_approaches_the_neural_ode_like_one_over_depth(backend):
    generator = torch.Generator().manual_seed(0)
    W, dW, V, dV = torch.randn(4, 4, 4, dtype=torch.float64, generator=generator) / 2
    x = torch.randn(6, 4, dtype=torch.float64, generator=generator)

    def output(depth):
        t = (torch.arange(depth, dtype=torch.float64) / depth)[:, None, None]
        path = W + torch.sin(3 * t) * dW, V + t**2 * dV
        return chain(x, *path, LayerRule(1 / depth), backend=backend)

    limit = output(2**15)
    depths = [32, 64, 128, 256]
    errors = [(output(depth) - limit).abs().max().item() for depth in depths]
    slope = math.log(errors[-1] / errors[0]) / math.log(depths[-1] / depths[0])
    assert -1.1 < slope < -0.9


def test_unknown_names_are_refused_with_the_known_ones():
    x, _, W, V = problem((), 2, 2, 2, 2)
    with pytest.raises(ValueError, match=r"unknown activation 'swish'; known: gelu, gelu_tanh"):
        LayerRule(0.3, "swish")
    with pytest.raises(ValueError, match=r"unknown backend 'jax'; known: auto, numba, torch"):
        chain(x, W, V, RULE, backend="jax")


@pytest.mark.parametrize(
    "change",
    [
        lambda x, W, V: (x[0], W, V),
        lambda x, W, V: (x[:, :1], W, V),
        lambda x, W, V: (x[:0], W, V),
        lambda x, W, V: (x, W[:2], V),
        lambda x, W, V: (x, W[:0], V[:0]),
        lambda x, W, V: (x, W, V.mT),
        lambda x, W, V: (x[None], W, V),
        lambda x, W, V: (x[None].repeat(2, 1, 1), W[None], V[None]),
        lambda x, W, V: (x.float(), W, V),
        lambda x, W, V: (x.long(), W.long(), V.long()),
        lambda x, W, V: (x, W.to("meta"), V),
    ],
)
def test_mismatches_are_refused(change):
    x, _, W, V = problem((), 4, 2, 3, 5)
    with pytest.raises(ValueError, match=r"got|must"):
        chain(*change(x, W, V), RULE)


def test_loss_refuses_mismatches():
    x, y, W, V = problem((), 4, 2, 3, 5)
    with pytest.raises(ValueError, match=r"y has shape"):
        ChainLoss(x, y[:2], W, RULE)
    loss = ChainLoss(x, y, W, RULE)
    with pytest.raises(ValueError, match=r"W and W_grad must have shape \(5, 3, 2\)"):
        loss(W, V, W[:2], V)
    with pytest.raises(ValueError, match=r"V and V_grad must have shape \(5, 2, 3\)"):
        loss(W, W, W, V)


def test_backend_fits_type_and_installation(monkeypatch):
    x, y, W, V = (t.bfloat16() for t in problem((), 4, 2, 3, 5))
    assert chain(x, W, V, RULE).dtype == torch.bfloat16
    assert ChainLoss(x, y, W, RULE).engine == "torch"
    with pytest.raises(ValueError, match=r"numba needs float32 or float64 on the CPU"):
        chain(x, W, V, RULE, backend="numba")
    x, y, W, _ = problem((), 4, 2, 3, 5)
    assert ChainLoss(x, y, W, RULE).engine == ("numba" if has_numba() else "torch")
    monkeypatch.setattr(engines, "has_numba", lambda: False)
    assert ChainLoss(x, y, W, RULE).engine == "torch"


@pytest.mark.parametrize("backend", BACKENDS)
def test_engine_is_the_one_asked_for(backend):
    x, y, W, V = problem((), 4, 2, 3, 5)
    assert ChainLoss(x, y, W, RULE, backend=backend).engine == backend
    assert DescendingChain(x, y, W, V, 5, RULE, backend=backend).engine == backend
