"""ResNets: shapes, sorted time steps and their gradients."""

import pytest
import torch
import torch.nn.functional as F

from resnet_limits.errors import UserError
from resnet_limits.models.resnet import METHODS, NAMES, Architecture, ResNet, initialize, network
from resnet_limits.random import generator
from tests.reference import resnet as reference

# He et al. (2015), Table 6; He et al. (2016), Table 1; Xie et al. (2017), Table 7. CIFAR-10.
PUBLISHED = {
    "resnet20": "0.27M",
    "resnet32": "0.46M",
    "resnet44": "0.66M",
    "resnet56": "0.85M",
    "resnet110": "1.7M",
    "resnet164": "1.7M",
    "resnext29_8x64d": "34.4M",
    "resnext29_16x64d": "68.1M",
}
BLOCKS = {
    "resnet20": 9,
    "resnet32": 15,
    "resnet44": 21,
    "resnet56": 27,
    "resnet110": 54,
    "resnet164": 54,
    "resnext29_8x64d": 9,
    "resnext29_16x64d": 9,
}
# A small ResNeXt: bottlenecks, grouped convolutions, projections.
PROJECTING = Architecture(2, 8, (8, 16, 32), (16, 32, 64), (1, 3, 1), 1, 4, project=True)


def make(name="resnet14", method="sorted_tau", channels=3, classes=10, seed=0):
    return network(name, channels, classes, method, generator(seed, "weights"))


def batch(count=4, channels=3, size=8, dtype=torch.float32):
    images = torch.randn(count, channels, size, size, generator=generator(0, "images"), dtype=dtype)
    return images, torch.arange(count) % 10


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def order(model):
    return [[block for block, _ in schedule] for schedule in model.steps()]


def step_sizes(model):
    return [[step.item() for _, step in schedule] for schedule in model.steps()]


def set_tau(model, *values):
    with torch.no_grad():
        for tau, value in zip(model.tau, values, strict=True):
            tau.copy_(torch.tensor(value))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        model = make(name, "vanilla")
    published = PUBLISHED[name].removesuffix("M")
    digits = len(published.partition(".")[2])
    # Xie et al. cut 68.15 off, where others round.
    slack = 1.0 if name.startswith("resnext") else 0.5
    assert abs(count(model.parameters()) / 1e6 - float(published)) < slack * 10**-digits


@pytest.mark.parametrize("name", BLOCKS)
def test_sorted_tau_adds_one_parameter_a_block(name):
    with torch.device("meta"):
        vanilla, sorted_tau = make(name, "vanilla"), make(name, "sorted_tau")
    assert count(sorted_tau.parameters()) - count(vanilla.parameters()) == BLOCKS[name]
    undecayed = [sorted_tau.get_parameter(name) for name in sorted_tau.undecayed]
    assert {id(parameter) for parameter in undecayed} == {id(tau) for tau in sorted_tau.tau}
    assert vanilla.undecayed == []


@pytest.mark.parametrize("name", ["resnet14", "resnext29_8x64d"])
def test_methods_start_as_the_same_function(name):
    vanilla, sorted_tau = make(name, "vanilla"), make(name, "sorted_tau")
    others = {key: value for key, value in sorted_tau.state_dict().items() if "tau" not in key}
    assert others.keys() == vanilla.state_dict().keys()
    assert all(torch.equal(vanilla.state_dict()[key], value) for key, value in others.items())
    images, _ = batch()
    assert torch.equal(vanilla(images), sorted_tau(images))
    assert all(set(sizes) == {1.0} for sizes in step_sizes(sorted_tau))


def test_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = make(seed=0), make(seed=0), make(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.stem.weight, other.stem.weight)


def test_convolutions_start_with_variance_of_he_et_al():
    weight = make("resnet20").stages[2][1].last.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_blocks_run_in_the_order_of_tau():
    model = make("resnet20")
    set_tau(model, [2.0, 0.5, 3.5], [2.0, 4.0, 1.5], [3.0, 3.0, 3.0])
    # Stages 2 and 3 start with the block that changes shapes, whatever its tau; ties keep order.
    assert order(model) == [[1, 0, 2], [0, 2, 1], [0, 1, 2]]
    assert step_sizes(model) == [[0.5, 1.5, 1.5], [0.5, 1.5, 2.0], [3.0, 0.0, 0.0]]
    ran = []
    for stage, blocks in enumerate(model.stages):
        for index, block in enumerate(blocks):
            block.register_forward_hook(lambda *_, at=(stage, index): ran.append(at))
    model(batch()[0])
    assert ran == [(stage, index) for stage, run in enumerate(order(model)) for index in run]


def test_exchanging_tau_is_exchanging_blocks():
    exchanged, moved = make(), make()
    set_tau(exchanged, [2.0, 1.0], [1.0, 2.0], [1.0, 2.0])
    first, second = (block.state_dict() for block in make().stages[0])
    moved.stages[0][0].load_state_dict(second)
    moved.stages[0][1].load_state_dict(first)
    images, _ = batch()
    assert torch.equal(exchanged(images), moved(images))
    assert not torch.equal(exchanged(images), make()(images))


def test_a_step_is_the_factor_of_its_residual():
    block, (x, _) = make("resnet20").stages[0][0].double(), batch(channels=16, dtype=torch.float64)
    step = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(block(x, step) - x, 0.3 * (block(x) - x))
    torch.testing.assert_close(block(x, 0 * step), x, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet20", "resnext29_8x64d"])
def test_a_shortcut_that_changes_shapes(name):
    block, images = make(name).stages[1][0].double(), batch(channels=256, dtype=torch.float64)[0]
    x = images[:, : block.norms[0].num_features]
    shortcut = block(x, torch.zeros((), dtype=torch.float64))
    if name == "resnet20":
        expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(4, 16, 4, 4)], 1)
    else:
        activations = F.relu(block.norms[0](x))[:, :, ::2, ::2]
        weight = block.projection.weight[:, :, 0, 0]
        expected = torch.einsum("oi,bihw->bohw", weight, activations)
    torch.testing.assert_close(shortcut, expected)


@pytest.mark.parametrize("name", ["resnet20", "resnet14"])
def test_gradients_of_tau_agree_with_finite_differences(name):
    model, (images, labels) = make(name).double(), batch(dtype=torch.float64)
    values = [[0.7, 2.5, 1.6], [1.9, 2.7, 0.8], [1.2, 2.0, 3.1]]
    set_tau(model, *(value[: len(model.tau[0])] for value in values))

    def loss():
        return F.cross_entropy(model(images), labels)

    gradients = torch.autograd.grad(loss(), list(model.tau))
    assert all((gradient.abs() > 1e-6).all() for gradient in gradients)
    for tau, gradient in zip(model.tau, gradients, strict=True):
        for index in range(len(tau)):
            moved = []
            for change in (1e-7, -1e-7):
                with torch.no_grad():
                    tau[index] += change
                    moved.append(loss())
                    tau[index] -= change
            difference = (moved[0] - moved[1]) / 2e-7
            torch.testing.assert_close(gradient[index], difference, rtol=1e-5, atol=1e-7)


def differentiate(forward, method, dtype, architecture=NAMES["resnet14"], autocast=False):
    """Return the logits and all gradients of a network whose blocks have been reordered."""
    images, labels = batch(32, size=16)
    model = ResNet(architecture, 3, 10, method == "sorted_tau")
    initialize(model, generator(0, "weights"))
    model.to(dtype=dtype, memory_format=torch.channels_last)
    if method == "sorted_tau":
        set_tau(model, [1.5, 0.4], [2.5, 0.9], [0.8, 1.1])
    with torch.autocast("cpu", torch.bfloat16, autocast):
        logits = forward(model, images.to(dtype=dtype, memory_format=torch.channels_last))
    F.cross_entropy(logits, labels).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return logits.detach().double(), gradient.double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", [NAMES["resnet14"], PROJECTING], ids=["A", "projection"])
def test_logits_and_gradients_equal_the_reference(architecture, method):
    expected = differentiate(reference.forward, method, torch.float64, architecture)
    found = differentiate(ResNet.forward, method, torch.float64, architecture)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("autocast", "error", "cosine"), [(False, 1e-4, 0.999), (True, 0.1, 0.9)])
def test_lower_precision_is_near(autocast, error, cosine):
    exact, gradient = differentiate(ResNet.forward, "sorted_tau", torch.float64)
    near, near_gradient = differentiate(
        ResNet.forward, "sorted_tau", torch.float32, autocast=autocast
    )
    assert (near - exact).norm() < error * exact.norm()
    assert F.cosine_similarity(near_gradient, gradient, dim=0) > cosine


def test_gradients_stay_channels_last():
    model = make("resnet20").to(memory_format=torch.channels_last)
    strides = []
    for stage in model.stages:
        for block in stage:
            block.register_full_backward_hook(lambda _, inputs, __: strides.append(inputs[0]))
    images, labels = batch(size=16)
    F.cross_entropy(model(images.to(memory_format=torch.channels_last)), labels).backward()
    assert len(strides) == 9
    assert all(g.is_contiguous(memory_format=torch.channels_last) for g in strides)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_every_network_takes_a_step(name, method):
    model = make(name, method, channels=1, classes=7)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    images, labels = batch(2, channels=1)
    before = torch.cat([p.detach().flatten()[:1] for p in model.parameters()])
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    after = torch.cat([p.detach().flatten()[:1] for p in model.parameters()])
    assert logits.shape == (2, 7)
    assert torch.isfinite(after).all() and not torch.equal(before, after)


@pytest.mark.parametrize("size", [8, 28, 32])
def test_image_sizes(size):
    images, _ = batch(2, channels=1, size=size)
    assert make("resnet8", channels=1).eval()(images).shape == (2, 10)


def test_unknown_names_are_users_mistakes():
    with pytest.raises(UserError, match="did you mean 'resnet20'"):
        make("resnet200")
    with pytest.raises(UserError, match="did you mean 'sorted_tau'"):
        make(method="sorted-tau")
