"""The image networks of the RKHS study, by known answers."""

import pytest
import torch

from resnet_limits.models.rkhs_networks import Block, BlockNetwork, FlowNetwork


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=source(seed), dtype=torch.float64)


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
