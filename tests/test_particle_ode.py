"""The two-layer ODE as means over particles, against Eq. 2, autograd and closed forms."""

import pytest
import torch

from resnet_limits.models.particle_ode import (
    ParticleODE,
    draw_particles,
    gaussian_divergence,
    largest_step,
    limit_gram,
)
from resnet_limits.models.two_layer_ode import SquaredLoss, TrainingSet, homogeneous

MEMBERS, DEPTH, FIELD, HEAD, SAMPLES = 2, 3, 8, 12, 5
ALPHA, BETA = torch.tensor([0.7, 1.5]).double(), torch.tensor([2.0, 30.0]).double()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def particles():
    return draw(MEMBERS, DEPTH, FIELD, 5), draw(MEMBERS, HEAD, 4, seed=1)


@pytest.fixture
def points():
    return draw(MEMBERS, 2, SAMPLES, seed=2)


def output(field, head, x, alpha, beta):
    """Evaluate Eq. 2 as written, for points ``(n, 2)``."""
    z = x
    for step in field:
        hidden = torch.tanh(z @ step[:, :2].T + step[:, 2])
        z = z + alpha / DEPTH * (hidden @ step[:, 3:]) / len(step)
    return beta * (torch.tanh(z @ head[:, :2].T + head[:, 2]) @ head[:, 3]) / len(head)


def jacobians(particles, points, member):
    """Differentiate the output at every point by the member's particles."""
    field, head = (part[member].clone().requires_grad_() for part in particles)
    values = output(field, head, points[member].T, ALPHA[member], BETA[member])
    rows = [torch.autograd.grad(value, (field, head), retain_graph=True) for value in values]
    return [torch.stack([row[part].flatten() for row in rows]) for part in (0, 1)]


def test_outputs_equal_the_equation_as_written(particles, points):
    model = ParticleODE(*particles, ALPHA, BETA)
    found = model.network(homogeneous(points))
    for member in range(MEMBERS):
        field, head = (part[member] for part in particles)
        expected = output(field, head, points[member].T, ALPHA[member], BETA[member])
        torch.testing.assert_close(found[member], expected, rtol=1e-11, atol=1e-13)


def test_particles_are_those_that_were_given(particles):
    for found, given in zip(
        ParticleODE(*particles, ALPHA, BETA).particles(), particles, strict=True
    ):
        torch.testing.assert_close(found, given)


def test_gram_matrices_are_means_of_products_of_gradients(particles, points):
    model = ParticleODE(*particles, ALPHA, BETA)
    g1, g2 = model.gram_matrices(slice(0, MEMBERS), homogeneous(points))
    for member in range(MEMBERS):
        field, head = jacobians(particles, points, member)
        # A particle of mass 1/N has N times the gradient of the mean, and weighs 1/N.
        expected_g1 = DEPTH * FIELD * field @ field.T / (ALPHA[member] * BETA[member]) ** 2
        expected_g2 = HEAD * head @ head.T / BETA[member] ** 2
        torch.testing.assert_close(g1[member], expected_g1, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(g2[member], expected_g2, rtol=1e-10, atol=1e-13)


def test_mobility_moves_particles_by_their_gradients_over_their_masses(particles, points):
    model = ParticleODE(*particles, ALPHA, BETA)
    labels = draw(MEMBERS, SAMPLES, seed=3)
    SquaredLoss(model.network, [TrainingSet(slice(0, MEMBERS), homogeneous(points), labels)])()
    mobility, step = model.mobility(), 1e-3
    for name, weights in model.network.parameters.items():
        weights -= step * mobility[name] * weights.grad
    for member in range(MEMBERS):
        given = [part[member].clone().requires_grad_() for part in particles]
        values = output(*given, points[member].T, ALPHA[member], BETA[member])
        (values - labels[member]).square().mean().backward()
        for part, moved in enumerate(model.particles()):
            count = (DEPTH * FIELD, HEAD)[part]
            expected = given[part] - step * count * given[part].grad
            torch.testing.assert_close(moved[member], expected.detach(), rtol=1e-9, atol=1e-12)


def test_mirrored_particles_cancel_and_are_standard_gaussian():
    drawn = draw_particles((3, 20_000), 3, 2, torch.Generator().manual_seed(0))
    network = ParticleODE(drawn[None], drawn[:1, :, :4], torch.ones(1), torch.ones(1)).network
    assert drawn[..., 3:].mean(dim=1).abs().max() < 1e-12
    assert network(homogeneous(draw(1, 2, 4))).abs().max() < 1e-12
    rows = drawn.reshape(-1, 5)
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(5).double(), rtol=0, atol=0.03)


def test_start_converges_to_its_limit():
    x = homogeneous(0.5 * draw(1, 2, 6))
    limit = limit_gram(x)
    errors = []
    for count in (1_000, 100_000):
        field, head = (
            draw_particles(shape, 3, outer, torch.Generator().manual_seed(count))[None]
            for shape, outer in (((1, 8), 2), ((count,), 1))
        )
        _, g2 = ParticleODE(field, head, torch.ones(1), torch.ones(1)).gram_matrices(slice(0, 1), x)
        errors.append(((g2 - limit).norm() / limit.norm()).item())
    assert errors[1] < 0.01 and errors[1] < errors[0] / 3


def test_limit_at_the_origin_is_a_one_dimensional_integral():
    # At x = 0, X = (0, 1): E[tanh(b)^2] + E[(1 - tanh(b)^2)^2], by an independent sum.
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2) / (2 * torch.pi) ** 0.5
    values = grid.tanh() ** 2 + (1 - grid.tanh() ** 2) ** 2
    expected = torch.trapezoid(values * density, grid)
    found = limit_gram(homogeneous(torch.zeros(1, 2, 1, dtype=torch.float64)))
    torch.testing.assert_close(found.squeeze(), expected, rtol=1e-5, atol=0)


def test_divergence_of_gaussians_in_closed_form():
    start = 2**0.5 * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).double()[None]
    shift, scale = torch.tensor([0.3, -0.4]).double(), 1.7  # identity covariance, mean 0
    assert gaussian_divergence(start, start).item() == pytest.approx(0, abs=1e-12)
    assert gaussian_divergence(start + shift, start).item() == pytest.approx(0.25 / 2)
    expected = (2 * scale**2 - 2 - 2 * torch.tensor(scale**2).log().item()) / 2
    assert gaussian_divergence(scale * start, start).item() == pytest.approx(expected)
    steps = torch.stack([start, start + shift], dim=1)  # of two, one has moved
    assert gaussian_divergence(steps, torch.stack([start, start], dim=1)).item() == pytest.approx(
        0.25 / 4
    )


def test_largest_step_is_where_linear_residuals_stop_shrinking():
    gram, beta = torch.diag(torch.tensor([1.0, 3.0]).double())[None], torch.tensor([2.0]).double()
    step = largest_step(gram, 2, beta)
    top = torch.tensor([0.0, 1.0]).double()
    moved = top - step * 2 * beta**2 / 2 * (gram[0] @ top)
    torch.testing.assert_close(moved, -top)
