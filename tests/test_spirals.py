"""Two Spirals against torchdyn's generator, and its closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchdyn.datasets import generate_spirals

from resnet_limits.data.spirals import TURN, two_spirals
from resnet_limits.random import generator


def draw(count, noise=0.4, seed=0):
    return two_spirals(count, noise, generator(seed, "test"), torch.float64)


@pytest.mark.parametrize("statistic", ["x1", "x2", "radius"])
@pytest.mark.parametrize("label", [-1.0, 1.0])
def test_law_agrees_with_torchdyn(statistic, label):
    np.random.seed(0)  # noqa: NPY002 - torchdyn knows no other
    theirs, classes = generate_spirals(4000, noise=0.4)
    theirs = theirs[classes == (0 if label < 0 else 1)].T
    ours, labels = draw(8000)
    ours = ours[:, labels == label]
    measure = {"x1": lambda x: x[0], "x2": lambda x: x[1], "radius": lambda x: x.norm(dim=0)}
    test = ks_2samp(measure[statistic](ours).numpy(), measure[statistic](theirs).numpy())
    assert test.pvalue > 0.01


def test_without_noise_points_lie_on_the_arms():
    x, y = draw(1000, noise=0.0)
    radius = x.norm(dim=0)
    assert radius.max() <= math.radians(TURN)
    arm = torch.stack([-radius.cos() * radius, radius.sin() * radius])
    torch.testing.assert_close(x, -y * arm)


def test_second_moment_of_the_radius():
    x, _ = draw(200_000, noise=0.0)
    expected = math.radians(TURN) ** 2 / 2  # E[U] times the largest radius squared
    assert x.square().sum(dim=0).mean().item() == pytest.approx(expected, rel=0.01)


def test_classes_are_balanced_in_every_even_prefix():
    _, y = draw(100)
    assert (y.cumsum(0)[1::2] == 0).all()


def test_generators_give_one_stream_per_purpose_and_seed():
    first = torch.rand(4, generator=generator(0, "train", 32))
    assert torch.equal(first, torch.rand(4, generator=generator(0, "train", 32)))
    for other in (generator(1, "train", 32), generator(0, "train", 64), generator(0, "test")):
        assert not torch.equal(first, torch.rand(4, generator=other))
