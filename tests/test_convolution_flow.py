"""Convolutional residual flows, by known answers."""

import math

import pytest
import torch
from torch.nn import functional as F

from resnet_limits.models.convolution_flow import (
    ConvolutionFlow,
    kernel_values,
    stages,
    transforms,
)
from tests.reference.convolution_flow import Field, interpolate, midpoint


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=source(seed), dtype=torch.float64)


def flow(model, layers, channels=3, hidden=4, scale=0.3):
    made = ConvolutionFlow(model, channels, hidden, layers, source()).double()
    for node, W in enumerate(made.outer):
        W.data = scale * normal(*W.shape, seed=node + 1)
    return made


def gradients(made, output):
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    return torch.autograd.grad(output.square().sum(), trained)


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_fast_convolution_is_convolution(side):
    x, kernel = normal(2, 3, side, side), normal(1, 4, 3, 3, 3, seed=1)
    image, _, product = transforms(side, x.dtype, x.device)
    values = kernel_values(kernel, side)[0] @ (
        image @ x.flatten(2).permute(2, 1, 0).flatten(1)
    ).view(-1, 3, 2)
    found = (product @ values.flatten(1)).view(side, side, 4, 2).permute(3, 2, 0, 1)
    torch.testing.assert_close(found, F.conv2d(x, kernel[0], padding=1))


def test_fast_convolution_keeps_float32_digits():
    made = flow("rkhs", 5, channels=16, hidden=16, scale=0.1)
    z = normal(8, 16, 5, 5, seed=99)
    exact = made(z)
    error = (made.float()(z.float()) - exact).abs().max() / exact.abs().max()
    assert error < 1e-4


def test_no_transforms_for_images_where_they_are_inaccurate():
    with pytest.raises(ValueError, match="6 pixels"):
        transforms(6, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("model", ["rkhs", "shl"])
@pytest.mark.parametrize("side", [1, 5])
def test_flow_and_its_gradients_are_those_of_plain_convolutions(model, side):
    made = flow(model, 3)
    z, same = (normal(2, 3, side, side, seed=9).requires_grad_() for _ in range(2))
    field = Field(made)
    torch.testing.assert_close(made(z), midpoint(field, same, 3))
    torch.testing.assert_close(gradients(made, made(z)), gradients(made, midpoint(field, same, 3)))
    made(z).square().sum().backward()
    midpoint(field, same, 3).square().sum().backward()
    torch.testing.assert_close(z.grad, same.grad)


def test_interpolated_residuals_are_those_of_interpolated_weights_if_the_hidden_layer_is_fixed():
    made, z = flow("rkhs", 3), normal(2, 3, 5, 5)
    torch.testing.assert_close(midpoint(Field(made, "residuals"), z, 3), made(z))


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("model", ["rkhs", "shl"])
def test_residuals_of_the_authors_code(model, layers):
    made, z = flow(model, layers), normal(2, 3, 5, 5)
    made.interpolation = "authors"
    expected = midpoint(Field(made, "authors"), z, layers)
    torch.testing.assert_close(made(z), expected)
    # Their last node is seen in shl, and in rkhs by a single interval only.
    unseen = model == "rkhs" and layers > 1
    last = gradients(made, made(z))[layers]
    assert (last.abs().max() == 0) == unseen
    if layers > 1:
        assert not torch.allclose(flow(model, layers)(z), expected, rtol=1e-3)


@pytest.mark.parametrize("model", ["rkhs", "shl"])
def test_buffers_are_not_shared_by_passes_that_are_open_together(model):
    made = flow(model, 2)
    gradients(made, made(normal(2, 3, 5, 5, seed=1)))  # leaves buffers
    states = [normal(2, 3, 5, 5, seed=seed) for seed in (2, 3)]
    outputs = [made(z) for z in states]
    with torch.no_grad():
        torch.testing.assert_close(made(states[0]), outputs[0], rtol=0, atol=0)
    for z, output in zip(states, outputs, strict=True):
        expected = gradients(made, midpoint(Field(made), z, 2))
        torch.testing.assert_close(gradients(made, output), expected)


def test_a_second_backward_pass_is_refused():
    made = flow("rkhs", 2)
    loss = made(normal(2, 3, 5, 5)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second forward"):
        loss.backward()


def test_flow_is_the_identity_at_the_start():
    z = normal(2, 3, 5, 5)
    for model in ("rkhs", "shl"):
        assert torch.equal(ConvolutionFlow(model, 3, 3, 2, source()).double()(z), z)


@pytest.mark.parametrize("model", ["rkhs", "shl"])
def test_midpoint_rule_has_order_two(model):
    # Smooth fields: weights that are linear on all of [0, 1], and no unit of the hidden layer
    # that changes its sign.
    coarse = ConvolutionFlow(model, 2, 2, 1, source()).double()
    for U in coarse.inner:
        U.data = U.data.abs()
    for node, W in enumerate(coarse.outer):
        W.data = 0.03 * normal(*W.shape, seed=node + 1).abs()
    z = normal(2, 2, 5, 5).abs()

    def refined(layers):
        made = ConvolutionFlow(model, 2, 2, layers, source()).double()
        for nodes, ends in ((made.outer, coarse.outer), (made.inner, coarse.inner)):
            for k, node in enumerate(nodes):
                node.data = interpolate([end.data for end in ends], k / layers)
        return made(z)

    limit = refined(512)
    layers = [8, 16, 32, 64]
    errors = [(refined(n) - limit).abs().max().item() for n in layers]
    slopes = [math.log2(errors[k] / errors[k + 1]) for k in range(3)]
    assert slopes == pytest.approx([2, 2, 2], abs=0.2)


def test_stages_see_nodes_and_the_means_between():
    nodes = torch.tensor([[1.0], [3.0], [11.0]])
    assert stages(nodes).flatten().tolist() == [1, 2, 3, 7]
    constant = torch.tensor([[5.0]])
    assert torch.equal(stages(constant), constant)


@pytest.mark.parametrize("model", ["rkhs", "shl"])
def test_every_node_is_trained_and_the_last_counts_by_half(model):
    layers = 4
    seen = torch.autograd.functional.jacobian(stages, torch.ones(layers + 1, 1)).squeeze()
    assert seen.sum(0).tolist() == [1.5, 2, 2, 2, 0.5]
    made = flow(model, layers)
    assert all(g.abs().max() > 0 for g in gradients(made, made(normal(2, 3, 5, 5))))


def test_hidden_layer_is_trained_in_shl_only():
    assert not any(U.requires_grad for U in flow("rkhs", 3).inner)
    assert len(flow("rkhs", 3).inner) == 1
    assert all(U.requires_grad for U in flow("shl", 3).inner)
    assert len(flow("shl", 3).inner) == 4
    made = flow("rkhs", 3)
    made(normal(2, 3, 5, 5)).sum().backward()
    assert made.inner[0].grad is None


def test_random_weights_have_the_stated_size():
    fixed = ConvolutionFlow("rkhs", 32, 32, 1, source()).inner[0]
    assert fixed.std().item() == pytest.approx((3 * 32) ** -0.5, rel=0.05)
    uniform = ConvolutionFlow("shl", 32, 32, 1, source()).inner[0]
    assert uniform.abs().max().item() == pytest.approx((9 * 32) ** -0.5, rel=0.01)
