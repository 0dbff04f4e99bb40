"""The batched two-layer ODE against torchdyn, autograd and closed forms."""

import math

import pytest
import torch

from resnet_limits.models.neural_ode import TorchdynNetwork
from resnet_limits.models.two_layer_ode import (
    SquaredLoss,
    TrainingSet,
    TwoLayerODE,
    draw_affine,
    evaluate,
    gram_matrices,
    homogeneous,
    particle_distances,
    particles,
)

SIZES = (7, 12)  # two training sets of different size, two seeds each
MEMBERS = 4


def make(field, depth=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    fields = depth if field == "per_step" else 1
    return TwoLayerODE(
        2 * draw_affine((MEMBERS, fields), 6, 2, generator, dtype),
        2 * draw_affine((MEMBERS, fields), 2, 6, generator, dtype),
        2 * draw_affine((MEMBERS,), 4, 2, generator, dtype),
        2 * draw_affine((MEMBERS,), 1, 4, generator, dtype),
        depth,
        field,
    )


def samples(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    sets = []
    for index, size in enumerate(SIZES):
        x = torch.randn(2, 2, size, generator=generator, dtype=dtype)
        y = torch.randn(2, size, generator=generator, dtype=dtype).sign()
        sets.append(TrainingSet(slice(2 * index, 2 * index + 2), homogeneous(x), y))
    return sets


def member_data(sets, member):
    data = sets[member // 2]
    return data.x[member % 2, :-1].T, data.y[member % 2]


@pytest.mark.parametrize("field", ["constant", "per_step"])
def test_loss_and_gradient_equal_torchdyn(field):
    model, sets = make(field), samples()
    losses = SquaredLoss(model, sets)()
    for member in range(MEMBERS):
        network = TorchdynNetwork(model, member)
        x, y = member_data(sets, member)
        loss = (network(x) - y).square().mean()
        loss.backward()
        torch.testing.assert_close(losses[member], loss.detach(), rtol=1e-12, atol=0)
        for step, reference in enumerate(network.fields):
            inner, outer = reference.gradients()
            torch.testing.assert_close(
                model.field_inner.grad[member, step], inner, rtol=1e-10, atol=1e-14
            )
            torch.testing.assert_close(
                model.field_outer.grad[member, step], outer, rtol=1e-10, atol=1e-14
            )
        inner, outer = network.head.gradients()
        torch.testing.assert_close(model.head_inner.grad[member], inner, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(model.head_outer.grad[member], outer, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("field", ["constant", "per_step"])
def test_training_in_single_precision_follows_torchdyn(field):
    model, sets = make(field, dtype=torch.float32), samples(torch.float32)
    networks = [TorchdynNetwork(model, member) for member in range(MEMBERS)]
    loss = SquaredLoss(model, sets)
    optimizer = torch.optim.Adam(model.parameters.values(), lr=0.01)
    for _ in range(100):
        loss()
        optimizer.step()
    for member, network in enumerate(networks):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        x, y = member_data(sets, member)
        for _ in range(100):
            optimizer.zero_grad()
            (network(x) - y).square().mean().backward()
            optimizer.step()
        final = (network(x) - y).square().mean().detach()
        torch.testing.assert_close(loss()[member], final, rtol=1e-4, atol=0)


@pytest.mark.parametrize("field", ["frozen", "removed"])
def test_untrained_fields_get_no_gradient_and_heads_the_right_one(field):
    model, sets = make(field), samples()
    losses = SquaredLoss(model, sets)()
    assert set(model.parameters) == {"head_inner", "head_outer"}
    for member in range(MEMBERS):
        x, y = member_data(sets, member)
        network = TorchdynNetwork(model, member)
        features = x if field == "removed" else network.ode(x, network.t_span)[-1].detach()
        loss = (network.head(features).squeeze(-1) - y).square().mean()
        loss.backward()
        torch.testing.assert_close(losses[member], loss.detach(), rtol=1e-12, atol=0)
        inner, _ = network.head.gradients()
        torch.testing.assert_close(model.head_inner.grad[member], inner, rtol=1e-10, atol=1e-14)


def test_plain_evaluation_equals_batched():
    model, sets = make("per_step"), samples()
    outputs = model.logistic_form()[sets[1].members](sets[1].x)
    for member in (2, 3):
        parameters = {name: value[member] for name, value in model.parameters.items()}
        x, _ = member_data(sets, member)
        plain = torch.stack([evaluate(parameters, point, model.depth) for point in x])
        torch.testing.assert_close(outputs[member - 2], plain, rtol=1e-11, atol=1e-14)


def test_euler_chain_converges_to_its_flow_at_first_order():
    # A field that tanh hardly bends is linear, and its flow a matrix exponential.
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    small = 1e-5
    inner = torch.cat([small * torch.eye(2), torch.zeros(2, 1)], dim=1).double()[None, None]
    outer = torch.cat([matrix / small, torch.zeros(2, 1)], dim=1)[None, None]
    head = torch.zeros(1, 1, 3).double(), torch.zeros(1, 1, 2).double()
    x = torch.randn(1, 2, 5, generator=generator, dtype=torch.float64)
    exact = torch.linalg.matrix_exp(matrix) @ x[0]
    depths = torch.tensor([16, 32, 64, 128])
    errors = []
    for depth in depths.tolist():
        model = TwoLayerODE(inner, outer, *head, depth, "constant")
        errors.append((model.logistic_form().flow(homogeneous(x))[0, :2] - exact).norm())
    slopes = torch.diff(torch.stack(errors).log()) / torch.diff(depths.log())
    assert torch.allclose(slopes, torch.tensor(-1.0).double(), atol=0.1)


@pytest.mark.parametrize("field", ["constant", "per_step"])
def test_gram_matrices_equal_products_of_autograd_gradients(field):
    model, sets = make(field), samples()
    field_gram, head_gram = gram_matrices(model, sets[0].members, sets[0].x[:, :-1].mT)
    network = TorchdynNetwork(model, 1)
    x, _ = member_data(sets, 1)
    rows = {"field": [], "head": []}
    for point in x:
        network.zero_grad()
        network(point[None]).sum().backward()
        for name, layers in (("field", network.fields), ("head", [network.head])):
            maps = [layer.gradients() for layer in layers]
            particle = [
                torch.cat([inner.flatten(), outer[:, :-1].flatten()]) for inner, outer in maps
            ]
            rows[name].append(torch.cat(particle))
    for name, gram in (("field", field_gram), ("head", head_gram)):
        jacobian = torch.stack(rows[name])
        torch.testing.assert_close(gram[1], jacobian @ jacobian.T, rtol=1e-9, atol=1e-13)


def test_particle_distance_is_the_root_mean_square_over_hidden_units():
    inner, outer = torch.zeros(1, 4, 3), torch.zeros(1, 1, 5)
    start = particles(inner, outer)
    inner[0, 0, 0], outer[0, 0, 1] = 3.0, 4.0  # unit 0 moves by 3, unit 1 by 4
    distance = particle_distances(particles(inner, outer), start)
    assert distance.item() == pytest.approx(math.sqrt((9 + 16) / 4))


def test_outer_bias_belongs_to_no_particle():
    inner, outer = torch.zeros(1, 4, 3), torch.zeros(1, 1, 5)
    start = particles(inner, outer)
    outer[0, 0, -1] = 1.0
    assert particle_distances(particles(inner, outer), start).item() == 0


def test_initial_weights_follow_the_law_of_torch_nn_linear():
    maps = draw_affine([2000], 20, 2, torch.Generator().manual_seed(0), torch.float64)
    bound = 2**-0.5
    assert maps.abs().max() <= bound
    assert maps.mean().abs() < 0.01
    assert maps.var().item() == pytest.approx(bound**2 / 3, rel=0.02)


def test_adaptive_torchdyn_follows_the_flow_that_euler_approaches():
    model, sets = make("constant"), samples()
    x, _ = member_data(sets, 0)
    exact = TorchdynNetwork(model, 0, "dopri5")(x).detach()
    errors = []
    for depth in (50, 100):
        maps = (model.field_inner, model.field_outer, model.head_inner, model.head_outer)
        euler = TwoLayerODE(*maps, depth, "constant").logistic_form()[sets[0].members](sets[0].x)
        errors.append((euler[0] - exact).norm())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
