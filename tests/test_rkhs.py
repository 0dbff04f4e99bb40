"""RKHS neural ODEs: kernels and both widths, by known answers."""

import math
from itertools import pairwise

import pytest
import scipy.special
import torch

from resnet_limits.data.synthetic import jittered_grid, separation, standard_normal
from resnet_limits.models.embeddings import lifting_maps, scaling_maps
from resnet_limits.models.kernels import (
    Gaussian,
    Matern,
    feature_kappa,
    gram,
    smallest_eigenvalue,
)
from resnet_limits.models.rkhs import FeatureResNet, KernelResNet, l2_norm
from tests.reference.rkhs import feature_gram, losses

KERNELS = [Gaussian(), Matern(2.5), Matern(4.5)]
DOUBLE = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


def problem(samples=4, seed=0):
    draw = generator(seed)
    inputs = jittered_grid(samples, 2, 2.5, 0.1, draw)
    return inputs[None], standard_normal(samples, 2, draw)[None], *scaling_maps(1.0, 2, 2)


def features(kernel, draws, width, seed=1, q=4):
    return kernel.frequencies((draws, width, q), generator(seed))


def train(model, steps, step_size=1.0):
    optimizer = torch.optim.SGD([model.weights], lr=step_size)
    curve = []
    for _ in range(steps):
        curve.append(model.loss_and_grad())
        optimizer.step()
    return torch.stack(curve)


# Kernels


@pytest.mark.parametrize("smoothness", [2.5, 3.5, 4.5])
def test_matern_is_the_bessel_form_in_the_scaling_of_eq_18(smoothness):
    distance = torch.linspace(1e-3, 6, 50, dtype=DOUBLE)
    a = math.sqrt(2 * smoothness) * distance.numpy()
    bessel = scipy.special.kv(smoothness, a)
    expected = 2 ** (1 - smoothness) / math.gamma(smoothness) * a**smoothness * bessel
    torch.testing.assert_close(Matern(smoothness)(distance), torch.tensor(expected))


def test_matern_refuses_what_has_no_elementary_form_or_no_kappa():
    for smoothness in (1.5, 3.0):
        with pytest.raises(ValueError, match="smoothness"):
            Matern(smoothness)


@pytest.mark.parametrize("kernel", KERNELS)
def test_slope_is_the_derivative_over_the_distance(kernel):
    distance = torch.linspace(0.1, 5, 30, dtype=DOUBLE, requires_grad=True)
    scaled = distance.clone()
    (derivative,) = torch.autograd.grad(kernel(scaled).sum(), distance)
    torch.testing.assert_close(kernel.slope(distance.detach()), derivative / distance.detach())
    # At 0 it is the second derivative, minus the second moment of the frequencies.
    at_zero = kernel.slope(torch.zeros(1, dtype=DOUBLE))
    assert at_zero.item() == pytest.approx(-kernel.moments[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_sampled_frequencies_have_the_closed_form_kernel(kernel):
    w = features(kernel, 1, 200_000)[0]
    z = torch.tensor([[0.5, 0, 0, 0], [0, -1, 0.5, 0], [1, 1, 1, 1.0]], dtype=DOUBLE)
    mean = (z @ w.T).cos().mean(1)
    torch.testing.assert_close(mean, kernel(z.norm(dim=1)), atol=4 / 200_000**0.5, rtol=0)


def test_feature_gram_approaches_the_exact_one_like_the_root_of_the_width():
    points = jittered_grid(8, 4, 1.0, 0.1, generator(0))
    exact = smallest_eigenvalue(gram(Gaussian(), points))
    errors = []
    for width in (64, 256, 1024, 4096):
        found = smallest_eigenvalue(feature_gram(points, features(Gaussian(), 40, width)))
        errors.append((found - exact).abs().mean().log2().item())
    slope = (errors[-1] - errors[0]) / 6
    assert -0.65 < slope < -0.35


def test_smallest_eigenvalue_of_a_diverged_member_is_nan_alone():
    matrices = torch.eye(3, dtype=DOUBLE).repeat(2, 1, 1)
    matrices[0, 1, 1] = torch.inf
    found = smallest_eigenvalue(matrices)
    assert found[0].isnan()
    assert found[1] == 1


# Constants


def test_kappa_is_that_of_the_paper():
    assert Gaussian().kappa == pytest.approx(2 + math.sqrt(3))
    assert Matern(2.5).kappa == pytest.approx(1 + math.sqrt(5 / 3) + math.sqrt(25))
    assert Matern(1e3 + 0.5).kappa == pytest.approx(Gaussian().kappa, rel=1e-2)


def test_feature_kappa_bounds_the_quartic_form_and_is_tight_for_many_features():
    few = features(Gaussian(), 20, 8)
    directions = torch.nn.functional.normalize(
        torch.randn(4, 2000, dtype=DOUBLE, generator=generator(3)), dim=0
    )
    angles = few @ directions
    second = angles.square().mean(1).amax(-1).sqrt()
    fourth = angles.pow(4).mean(1).amax(-1).sqrt()
    assert (feature_kappa(few) >= 1 + second + fourth).all()
    many = feature_kappa(features(Gaussian(), 1, 400_000))
    assert many.item() == pytest.approx(Gaussian().kappa, rel=0.01)


def test_universality_bound_is_below_the_smallest_eigenvalue():
    points = jittered_grid(9, 2, 3.0, 0.1, generator(0))
    for kernel in KERNELS:
        bound = kernel.universality_bound(9, separation(points))
        assert 0 < bound < smallest_eigenvalue(gram(kernel, points))


# Embeddings and data


def test_maps_of_section_5_1():
    a, b = scaling_maps(3.0, 2, 1)
    assert a.tolist() == [[3, 0], [0, 3], [0, 0]]
    assert b.tolist() == [[0, 0, 3]]
    a, b = lifting_maps(5, 2, 2)
    torch.testing.assert_close(a.T @ a, torch.eye(2, dtype=DOUBLE) * 2 / math.sqrt(5))
    assert not a[4].any()
    torch.testing.assert_close(b @ a, torch.eye(2, dtype=DOUBLE))
    with pytest.raises(ValueError, match="room"):
        lifting_maps(1, 2, 2)


@pytest.mark.parametrize("count", [8, 9, 64])
def test_jittered_grid_is_separated_and_reproducible(count):
    points = jittered_grid(count, 2, 2.5, 0.1, generator(0))
    assert points.shape == (count, 2)
    assert 2.0 <= separation(points) <= 2.5 * 1.2
    assert torch.equal(points, jittered_grid(count, 2, 2.5, 0.1, generator(0)))


# Finite width


def test_gradient_is_depth_times_autograd():
    inputs, targets, *maps = problem(5)
    w = features(Matern(2.5), 3, 7)
    model = FeatureResNet(inputs, targets, *maps, w, depth=6, dtype=DOUBLE)
    model.weights.copy_(torch.randn(3, 6, 4, 14, generator=generator(2), dtype=DOUBLE))
    found = model.loss_and_grad()
    weights = model.weights.clone().requires_grad_()
    expected = losses(inputs, targets, *maps, w, weights.unbind(1), 6)
    (gradient,) = torch.autograd.grad(expected.sum(), weights)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.weights.grad, 6 * gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.gradient_norm(), l2_norm(6 * gradient))
    assert model.states.shape == model.adjoints.shape == (3, 7, 5, 4)
    residual = (model.outputs - targets).square().sum((1, 2)) / 10
    torch.testing.assert_close(residual, found)


def test_members_may_have_their_own_data_and_maps():
    data = [problem(4, seed) for seed in (0, 1)]
    w = features(Gaussian(), 2, 8)
    inputs, targets = (torch.cat([d[i] for d in data]) for i in (0, 1))
    scales = [scaling_maps(alpha, 2, 2) for alpha in (1.0, 2.0)]
    a, b = (torch.stack([maps[i] for maps in scales]) for i in (0, 1))
    together = train(FeatureResNet(inputs, targets, a, b, w, 5, DOUBLE), 5, 0.2)
    for i, (x, y, *_) in enumerate(data):
        alone = train(FeatureResNet(x, y, *scales[i], w[i : i + 1], 5, DOUBLE), 5, 0.2)
        torch.testing.assert_close(together[:, i : i + 1], alone)


def test_single_precision_follows_double():
    inputs, targets, *maps = problem(8)
    w = features(Gaussian(), 4, 128)
    single, double = (
        train(FeatureResNet(inputs, targets, *maps, w, 10, dtype), 60)
        for dtype in (torch.float32, DOUBLE)
    )
    torch.testing.assert_close(single.to(DOUBLE), double, rtol=1e-4, atol=1e-7)


def test_trajectories_converge_with_depth_at_first_order():
    inputs, targets, *maps = problem(6)
    w = features(Gaussian(), 2, 64)
    curves = [
        train(FeatureResNet(inputs, targets, *maps, w, depth, DOUBLE), 30)
        for depth in (5, 10, 20, 40)
    ]
    gaps = [(a - b).abs().max() for a, b in pairwise(curves)]
    for gap, next_gap in pairwise(gaps):
        assert 1.7 < gap / next_gap < 2.3


def test_a_diverged_member_disturbs_no_other():
    inputs, targets, *maps = problem(4)
    w = features(Gaussian(), 3, 32)
    scales = torch.tensor([1.0, 300.0, 1.0], dtype=DOUBLE)[:, None, None]
    a, b = (scales * m for m in maps)
    curves = train(FeatureResNet(inputs, targets, a, b, w, 5), 30)
    assert not curves[-1, 1].isfinite()
    for i in (0, 2):
        alone = train(FeatureResNet(inputs, targets, *maps, w[i : i + 1], 5), 30)
        torch.testing.assert_close(curves[:, i : i + 1], alone)


def test_grams_on_visited_points_are_those_of_the_features():
    inputs, targets, *maps = problem(5)
    w = features(Gaussian(), 2, 16)
    model = FeatureResNet(inputs, targets, *maps, w, 4, DOUBLE)
    train(model, 3)
    model.evaluate()
    expected = feature_gram(model.states[:, :-1], w[:, None])
    torch.testing.assert_close(model.visited_grams(), expected)


# Infinite width


@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_data_sets_of_infinite_width_are_independent_members(tolerance):
    data = [problem(4, seed) for seed in (0, 1)]
    inputs, targets = (torch.cat([d[i] for d in data]) for i in (0, 1))
    setting = (*data[0][2:], Matern(4.5), 3, 10, tolerance)
    together = train(KernelResNet(inputs, targets, *setting), 10)
    for i, (x, y, *_) in enumerate(data):
        alone = train(KernelResNet(x, y, *setting), 10)
        torch.testing.assert_close(together[:, i : i + 1], alone)


@pytest.mark.parametrize("kernel", KERNELS)
def test_adjoints_of_kernel_expansions_match_finite_differences(kernel):
    inputs, targets, *maps = problem(4)
    model = KernelResNet(inputs, targets, *maps, kernel, depth=5, capacity=9)
    train(model, 6)
    model.evaluate()
    direction = torch.randn(4, 2, dtype=DOUBLE, generator=generator(5))
    expected = (model.adjoints[0, 0] @ maps[0] * direction).sum()
    epsilon, shifted = 1e-5, []
    for sign in (1, -1):
        model._states[0] = ((inputs + sign * epsilon * direction) @ maps[0].T).mT
        shifted.append(model.evaluate())
    difference = (shifted[0] - shifted[1]) / (2 * epsilon)
    torch.testing.assert_close(difference[0], expected, rtol=1e-6, atol=1e-9)


def test_a_small_step_lowers_the_loss_by_the_squared_gradient_norm():
    inputs, targets, *maps = problem(4)
    model = KernelResNet(inputs, targets, *maps, Gaussian(), depth=5, capacity=10)
    train(model, 8)
    before = model.loss_and_grad()
    norm, step_size = model.gradient_norm(), 1e-5
    torch.optim.SGD([model.weights], lr=step_size).step()
    fall = (before - model.evaluate()) / step_size
    torch.testing.assert_close(fall, norm.square(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kernel", [Gaussian(), Matern(2.5)])
def test_finite_width_approaches_infinite_width_like_the_root_of_the_width(kernel):
    inputs, targets, *maps = problem(4)
    limit = train(KernelResNet(inputs, targets, *maps, kernel, 4, capacity=30), 30)
    gaps = []
    for width in (64, 256, 1024, 4096):
        w = features(kernel, 16, width)
        curves = train(FeatureResNet(inputs, targets, *maps, w, 4, DOUBLE), 30)
        gaps.append((curves - limit).square().mean().log2().item() / 2)
    assert -0.7 < (gaps[-1] - gaps[0]) / 6 < -0.35


@pytest.mark.parametrize("kernel", KERNELS)
def test_compressed_training_follows_exact_training(kernel):
    inputs, targets, *maps = problem(6)
    exact = KernelResNet(inputs, targets, *maps, kernel, 5, capacity=80)
    compressed = KernelResNet(inputs, targets, *maps, kernel, 5, capacity=80, tolerance=1e-3)
    curves = train(exact, 80)
    torch.testing.assert_close(train(compressed, 80), curves, rtol=1e-3, atol=0)
    torch.testing.assert_close(compressed.norm(), exact.norm(), rtol=1e-4, atol=0)
    assert compressed.centres_in_use < 40
    assert (compressed.projection_error <= 2e-3 * compressed.gradient_norm()).all()


def test_measuring_changes_no_training():
    inputs, targets, *maps = problem(4)
    for tolerance in (None, 1e-3):
        measured, undisturbed = (
            KernelResNet(inputs, targets, *maps, Gaussian(), 3, 12, tolerance) for _ in range(2)
        )
        train(measured, 5)
        torch.testing.assert_close(measured.evaluate(), measured.evaluate(), rtol=0, atol=0)
        assert torch.equal(train(measured, 5), train(undisturbed, 10)[5:])


def test_exact_training_refuses_to_run_out_of_room():
    inputs, targets, *maps = problem(4)
    model = KernelResNet(inputs, targets, *maps, Gaussian(), 2, capacity=2)
    with pytest.raises(RuntimeError, match="room"):
        train(model, 3)
