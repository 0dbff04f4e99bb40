"""Convolutional residual flows and the networks around them, by known answers."""

import math

import pytest
import torch
from torch.nn import functional as F

from resnet_limits.models.rkhs_convolution import (
    ConvolutionFlow,
    kernel_values,
    stages,
    transforms,
)
from resnet_limits.models.rkhs_networks import Block, BlockNetwork, FlowNetwork


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=source(seed), dtype=torch.float64)


def flow(model, layers, channels=3, hidden=4, scale=0.3):
    made = ConvolutionFlow(model, channels, hidden, layers, source()).double()
    for node, W in enumerate(made.outer):
        W.data = scale * normal(*W.shape, seed=node + 1)
    return made


def weights(nodes, t):
    """Weights at time t, linear between the nodes k / layers."""
    layers = len(nodes) - 1
    if layers == 0:
        return nodes[0]
    left = min(int(t * layers + 1e-9), layers - 1)
    return torch.lerp(nodes[left], nodes[left + 1], t * layers - left)


def plain(made, z, steps):
    """Loop over midpoint steps with plain convolutions."""

    def field(t, z):
        hidden = F.relu(F.conv2d(z, weights(list(made.inner), t), padding=1))
        return F.conv2d(hidden, weights(list(made.outer), t), padding=1)

    for k in range(steps):
        middle = z + field(k / steps, z) / (2 * steps)
        z = z + field((k + 0.5) / steps, middle) / steps
    return z


def gradients(made, output):
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    return torch.autograd.grad(output.square().sum(), trained)


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_fast_convolution_is_convolution(side):
    x, kernel = normal(2, 3, side, side), normal(1, 4, 3, 3, 3, seed=1)
    image, _, product = (torch.kron(m, m) for m in transforms(side, x.dtype, x.device))
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
def test_flow_and_its_gradients_are_those_of_the_plain_loop(model):
    made = flow(model, 3)
    z, same = (normal(2, 3, 5, 5, seed=9).requires_grad_() for _ in range(2))
    found, expected = made(z), plain(made, same, 3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(made, made(z)), gradients(made, plain(made, same, 3)))
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(z.grad, same.grad)


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
                node.data = weights([end.data for end in ends], k / layers)
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


def network(model="rkhs"):
    made = FlowNetwork(model, 1, 4, 2, 10, source()).double()
    for W in made.flow.outer:
        W.data = 0.1 * normal(*W.shape)
    return made


def test_maps_are_fixed_after_pretraining_and_act_on_each_image_alone():
    made, x = network(), 3 + normal(6, 1, 28, 28)
    made.set_pretraining(True)
    made.train()
    made(x).sum().backward()
    assert all(parameter.grad is not None for parameter in made.maps)
    assert all(W.grad is None for W in made.flow.parameters())
    means = made.input_map[1].running_mean.clone()
    assert means.abs().max() > 0
    made.zero_grad()
    made.set_pretraining(False)
    made.train()
    together, alone = made(x), torch.cat([made(image[None]) for image in x])
    torch.testing.assert_close(together, alone)
    together.sum().backward()
    assert all(parameter.grad is None for parameter in made.maps)
    assert all(W.grad is not None for W in made.flow.outer)
    assert torch.equal(made.input_map[1].running_mean, means)
    torch.testing.assert_close(made.eval()(x), together)


def test_batch_norm_does_nothing_without_pretraining():
    made, x = network(), normal(2, 1, 28, 28)
    made.train()
    first, _, relu, second, _ = made.input_map
    torch.testing.assert_close(
        made.input_map(x), second(relu(first(x))), rtol=1e-4, atol=1e-4
    )  # but for the 1e-5 that it adds to the variance


def test_pretraining_network_is_that_of_the_untrained_flow():
    made = FlowNetwork("shl", 1, 4, 2, 10, source()).double()
    x = normal(2, 1, 28, 28)
    made.set_pretraining(True)
    made.eval()
    torch.testing.assert_close(made(x), made.output_map(made.input_map(x)))


def test_blocks_of_the_block_network():
    for model in ("rkhs", "shl"):
        made = BlockNetwork(model, 3, 4, 5, 10, source())
        blocks = [module for module in made.stages if isinstance(module, Block)]
        norms = [k for k, m in enumerate(made.stages) if isinstance(m, torch.nn.BatchNorm2d)]
        assert len(blocks) == 2 + 2 + 5 + 2
        assert norms == [4]
        assert [b.outer.out_channels for b in blocks] == [4] * 2 + [8] * 2 + [16] * 5 + [32] * 2
        assert all(b.inner.weight.requires_grad == (model == "shl") for b in blocks)
        assert all(b.outer.weight.abs().max() == 0 for b in blocks)
        made(torch.randn(2, 3, 32, 32, generator=source())).sum().backward()
        assert all(b.outer.weight.grad.abs().max() > 0 for b in blocks)
        assert all((b.inner.weight.grad is None) == (model == "rkhs") for b in blocks)
        width = blocks[3].inner.weight
        if model == "rkhs":
            assert width.std().item() == pytest.approx((9 * 8) ** -0.5, rel=0.1)


def test_networks_depend_on_their_generator_alone():
    for make in (
        lambda seed: FlowNetwork("shl", 1, 4, 2, 10, source(seed)),
        lambda seed: BlockNetwork("rkhs", 1, 2, 1, 10, source(seed)),
    ):
        torch.manual_seed(1)
        first = make(0).state_dict()
        torch.manual_seed(2)
        again, other = make(0).state_dict(), make(1).state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)
