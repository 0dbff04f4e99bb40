"""The deep convolutional network against plain modules, and the smoothness of its weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from resnet_limits.models.deep_convolution import DeepConvolution, initial_filters
from resnet_limits.models.engines import has_numba
from resnet_limits.models.smoothness import smoothness
from resnet_limits.random import generator
from tests.reference.deep_convolution import ACTIVATIONS, modules

needs_numba = pytest.mark.skipif(not has_numba(), reason="no numba")
BACKENDS = [pytest.param("numba", marks=needs_numba), "torch"]


def network_of(activation="gelu", backend="torch", *, depth=3, size=32, init="iid"):
    """Return a network in float64 whose batch norms do not start as nothing."""
    source = generator(0, "weights")
    network = DeepConvolution(depth, activation, init, source, size=size, backend=backend).double()
    with torch.no_grad():
        for name in ("bn1_weight", "bn1_bias", "bn2_weight", "bn2_bias"):
            getattr(network, name).normal_(generator=source)
    return network


def batch(size, count=5):
    source = generator(0, "images")
    x = torch.randn(count, 3, size, size, generator=source, dtype=torch.float64)
    return x, torch.randint(10, (count,), generator=source)


# Feature maps of 10, 5 and 8 pixels a side: even, odd, and with padded tiles.
@pytest.mark.parametrize("size", [32, 16, 26])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_plain_module(backend, activation, size):
    network = network_of(activation, backend, size=size)
    reference = modules(network)
    layers = reference[3:-3]
    x, y = batch(size)
    for model in (reference, network):
        F.cross_entropy(model(x), y).backward()

    shared = (network.stem, network.stem_norm, network.head)
    for module, expected in zip(shared, (reference[0], reference[1], reference[-1]), strict=True):
        torch.testing.assert_close(module.weight.grad, expected.weight.grad)
    for k, layer in enumerate(layers):
        for name in ("conv1", "conv2"):
            found = getattr(network, name).grad[k].view(16, 16, 3, 3)
            torch.testing.assert_close(found, getattr(layer, name).weight.grad)
        for name in ("bn1", "bn2"):
            norm = getattr(layer, name)
            torch.testing.assert_close(getattr(network, f"{name}_weight").grad[k], norm.weight.grad)
            torch.testing.assert_close(getattr(network, f"{name}_bias").grad[k], norm.bias.grad)
            torch.testing.assert_close(getattr(network, f"{name}_var")[k], norm.running_var)
            # The authors' biases move means and nothing else.
            bias = getattr(layer, name.replace("bn", "conv")).bias
            mean = getattr(network, f"{name}_mean")[k] + 0.1 * bias
            torch.testing.assert_close(mean, norm.running_mean)
    with torch.no_grad():
        for layer in layers:
            layer.bn1.running_mean -= 0.1 * layer.conv1.bias
            layer.bn2.running_mean -= 0.1 * layer.conv2.bias
            layer.conv1.bias.zero_()
            layer.conv2.bias.zero_()
        torch.testing.assert_close(network.eval()(x), reference.eval()(x))


@needs_numba
def test_two_forward_passes_do_not_share_buffers():
    network = network_of(backend="numba")
    x, _ = batch(32)
    first, second = network(x), network(2 * x + 1)
    first.square().sum().backward()
    alone = network.conv1.grad.clone()
    network.zero_grad()
    network(x).square().sum().backward()
    assert torch.equal(network.conv1.grad, alone)
    assert not torch.equal(first, second)


@needs_numba
def test_second_backward_pass_is_refused():
    output = network_of(backend="numba")(batch(32)[0]).sum()
    output.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second forward"):
        output.backward()


@needs_numba
def test_buffers_are_of_the_present_type():
    network = network_of(backend="numba").float()
    x, _ = batch(32)
    network(x.float()).sum().backward()
    network.double().zero_grad()
    network(x).sum().backward()
    fresh = network_of(backend="numba").float().double()
    fresh(x).sum().backward()
    assert torch.equal(network.conv1.grad, fresh.conv1.grad)


def test_engine_is_the_one_of_the_last_pass():
    network = DeepConvolution(2, "gelu", "iid", generator(0, "weights"), size=16)
    x = torch.zeros(4, 3, 16, 16)
    usual = "numba" if has_numba() else "torch"
    assert network.engine == usual
    with torch.autocast("cpu", torch.bfloat16):
        network(x)
    assert network.engine == "torch"
    network(x)
    assert network.engine == usual


def test_starts_as_the_identity():
    network = DeepConvolution(4, "gelu", "iid", generator(0, "weights")).double()
    x, _ = batch(32)
    h = F.relu(network.stem_norm(network.stem(x)))
    torch.testing.assert_close(network(x), network.head(F.avg_pool2d(h, 4).flatten(1)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_trains_in_channels_last(backend):
    source = generator(0, "weights")
    network = DeepConvolution(2, "relu", "iid", source, image_channels=1, size=16, backend=backend)
    network = network.to(memory_format=torch.channels_last)
    x, y = torch.randn(4, 1, 16, 16, generator=source), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_numba_refuses_what_it_cannot_do():
    network = DeepConvolution(
        2, "gelu", "iid", generator(0, "weights"), channels=8, backend="numba"
    )
    with pytest.raises(ValueError, match="channels in 16s"):
        network(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("init", ["weight_tied", "iid", "gaussian_process"])
def test_every_start_has_the_same_marginal_law(init):
    """Normal with variance 1 / (3 fan_in) in the first layer and the last."""
    filters = initial_filters(8, 48, init, 0.2, generator(0, "weights"))
    for layer in filters[[0, -1]]:
        scaled = layer.double().flatten() * math.sqrt(3 * 48 * 9)
        count = scaled.numel()
        assert abs(scaled.mean()) < 4 / math.sqrt(count)
        assert abs(scaled.square().mean() - 1) < 4 * math.sqrt(2 / count)
        assert abs(scaled.pow(4).mean() - 3) < 4 * math.sqrt(96 / count)


def test_weight_tied_start_is_perfectly_smooth():
    filters = initial_filters(8, 16, "weight_tied", 0.2, generator(0, "weights"))
    assert smoothness(filters) == (0, 0, 0)


@pytest.mark.parametrize(("init", "length_scale"), [("iid", 1.0), ("gaussian_process", 0.1)])
def test_ratio_of_random_starts_is_as_their_covariance_predicts(init, length_scale):
    """E (z_{k+1} - z_k)^2 = 2 (1 - c_1), and E variance = 1 - mean of c over pairs of layers."""
    depth = 24
    s = torch.arange(depth, dtype=torch.float64) / depth
    c = torch.exp(-((s[:, None] - s) ** 2) / (2 * length_scale**2))
    if init == "iid":
        c = torch.eye(depth, dtype=torch.float64)
    pairs = (c.sum() - depth) / (depth * (depth - 1))
    expected = (1 - c[0, 1]) / (1 - pairs)
    ratios = torch.stack([
        smoothness(initial_filters(depth, 16, init, length_scale, generator(seed, "weights")))[0]
        for seed in range(30)
    ])  # fmt: skip
    error = ratios.std() / math.sqrt(len(ratios))
    assert abs(ratios.mean() - expected) < 4 * error
    assert error < 0.01 * expected


def test_measures_of_a_line_in_closed_form():
    """Z_k = k v has ratio 6 / (L (L + 1)) and every distance |v|."""
    depth, v = 50, torch.tensor([3.0, 4.0])
    ratio, mean, largest = smoothness(torch.arange(depth)[:, None] * v)
    assert ratio.item() == pytest.approx(6 / (depth * (depth + 1)))
    assert mean.item() == largest.item() == pytest.approx(5)


def test_ratio_of_a_smooth_path_falls_like_the_square_of_depth():
    """A period of a sine has ratio 1 - cos(2 pi / L), about (2 pi / L)^2 / 2."""
    for depth in (100, 1000):
        s = 2 * math.pi * torch.arange(depth, dtype=torch.float64) / depth
        path = torch.stack([s.sin(), s.cos()], dim=1)
        # The unbiased variance is L / (L - 1) times a half for either.
        expected = (1 - math.cos(2 * math.pi / depth)) * (depth - 1) / depth
        assert smoothness(path).von_neumann_ratio.item() == pytest.approx(expected)


def test_one_layer_has_no_smoothness():
    with pytest.raises(ValueError, match="two layers"):
        smoothness(torch.zeros(1, 3))
