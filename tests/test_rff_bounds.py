"""Bounds of the study of finite and infinite width: they hold on networks as trained."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resnet_limits.data.synthetic import jittered_grid, separation, standard_normal
from resnet_limits.models.embeddings import scaling_maps
from resnet_limits.models.kernels import Gaussian, feature_kappa, gram, smallest_eigenvalue
from resnet_limits.models.rkhs import FeatureResNet, KernelResNet, pl_quotient
from resnet_limits.studies.rff_width import bounds
from resnet_limits.studies.rff_width.bounds import LocalPL
from tests.reference.rkhs import feature_gram
from tests.studies import problem

DOUBLE = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


def local_pl(inputs, input_map, output_map, kappa, depth):
    """Measure the constants of data ``(N, d)`` and maps."""
    output = torch.linalg.svdvals(output_map)
    return LocalPL(
        samples=inputs.shape[0],
        separation=float(separation(inputs)),
        input_min=float(torch.linalg.svdvals(input_map)[-1]),
        output_min=float(output[-1]),
        output_max=float(output[0]),
        kappa=kappa,
        depth=depth,
    )


def embedded(alpha, draw=(0, 1)):
    return problem("rff_width", "embedding", alpha=[alpha], width=[64], draw=list(draw))


# Property 2 and Theorem 2


@pytest.mark.parametrize("width", [64, None])
def test_quotient_stays_within_the_proven_bounds(width):
    # Small targets: far from v = 0 the bounds are empty.
    draw = generator(0)
    inputs = jittered_grid(8, 2, 2.5, 0.1, draw)[None]
    targets = 0.1 * standard_normal(8, 2, draw)[None]
    maps = scaling_maps(1.0, 2, 2)
    if width is None:
        kernel = Gaussian()
        model = KernelResNet(inputs, targets, *maps, kernel, depth=20, capacity=50)
        kappa = kernel.kappa
    else:
        w = Gaussian().frequencies((1, width, 4), generator(1))
        model = FeatureResNet(inputs, targets, *maps, w, 20, DOUBLE)
        kappa = feature_kappa(w).item()
    pl = local_pl(inputs[0], *maps, kappa, 20)
    optimizer = torch.optim.SGD([model.weights], lr=1.0)
    for _ in range(50):
        radius, losses = model.norm(), model.loss_and_grad()
        quotient = pl_quotient(model.gradient_norm(), losses)
        visited = model.states[:, :-1]
        matrices = gram(kernel, visited) if width is None else feature_gram(visited, w[:, None])
        lower = pl.lower(radius, smallest_eigenvalue(matrices).amin(1))
        assert 0 < lower <= quotient <= pl.upper(radius)
        assert separation(visited).amin(1) >= pl.least_separation(radius)
        optimizer.step()


def test_theorem_2_holds_where_its_condition_does():
    # Far apart points and small targets satisfy Eq. 15 with constants that are all proven.
    kernel, depth = Gaussian(), 10
    draw = generator(0)
    inputs = jittered_grid(4, 2, 8.0, 0.1, draw)
    targets = 1e-4 * standard_normal(4, 2, draw)
    maps = scaling_maps(1.0, 2, 2)
    pl = local_pl(inputs, *maps, kernel.kappa, depth)
    start = targets.square().sum() / 8
    radius = torch.tensor(0.1, dtype=DOUBLE)
    expressivity = kernel.universality_bound(4, pl.least_separation(radius))
    assert pl.condition(start, radius, expressivity) <= radius
    step_size = (1 / pl.smoothness(start, radius)).item()
    model = KernelResNet(inputs[None], targets[None], *maps, kernel, depth, capacity=40)
    optimizer = torch.optim.SGD([model.weights], lr=step_size)
    losses = torch.zeros(40, dtype=DOUBLE)
    for step in range(40):
        losses[step] = model.loss_and_grad()[0]
        optimizer.step()
    torch.testing.assert_close(losses[0], start)
    steps = torch.arange(40, dtype=DOUBLE)
    assert (losses <= (1 - step_size * pl.lower(radius, expressivity)) ** steps * start).all()
    assert model.norm() <= radius


def test_condition_falls_like_the_inverse_of_the_scale():
    inputs = jittered_grid(8, 2, 2.5, 0.1, generator(0))
    radius, expressivity = torch.tensor(0.1), torch.tensor(0.9)
    left = [
        local_pl(inputs, *scaling_maps(alpha, 2, 2), Gaussian().kappa, 10).condition(
            torch.tensor(1.0), radius, expressivity
        )
        for alpha in (1.0, 10.0)
    ]
    assert left[0] / left[1] == pytest.approx(10)


# From recorded constants


def constants(alpha, width):
    built = embedded(alpha)
    frame, settings = built.list_constants(), built.settings
    row = frame[np.isinf(frame["width"]) == math.isinf(width)].iloc[0]
    return SimpleNamespace(
        **row, kernel=settings.kernel, samples=settings.samples, depth=settings.depth
    )


@pytest.mark.parametrize("width", [64, math.inf])
def test_expressivity_bounds_eigenvalues_on_points_that_moved(width):
    built = embedded(1.0, draw=[0])
    row, radius = constants(1.0, width), 0.05
    model = built.ensembles[0 if width == 64 else 1].model
    for seed in range(10):
        shift = torch.randn(
            model.states[:1, :1].shape, generator=torch.Generator().manual_seed(seed)
        )
        shift = radius * torch.nn.functional.normalize(shift.double(), dim=-1)
        model._states[0] += shift[0].mT
        if width == 64:
            model._compute_features(0)
        model.evaluate()
        smallest = torch.linalg.eigvalsh(model.visited_grams()[0, 0])[0]
        model._states[0] -= shift[0].mT
        assert 0 < bounds.expressivity(row, torch.tensor(radius)) <= smallest


@pytest.mark.parametrize("width", [64, math.inf])
def test_the_condition_of_theorem_2_falls_like_the_inverse_of_alpha(width):
    rows = [constants(alpha, width) for alpha in (256.0, 512.0)]
    # The same radius; at these alpha the kernel matrix is nearly that of points far apart.
    left = [float(bounds.left_side(row, torch.tensor(0.01).double())) for row in rows]
    lambdas = [float(bounds.expressivity(row, torch.tensor(0.01).double())) for row in rows]
    assert left[0] * lambdas[0] / (left[1] * lambdas[1]) == pytest.approx(2)
    assert bounds.condition(constants(4.0, width)).excess > 1
    assert bounds.condition(constants(65536.0, width)).excess <= 1
