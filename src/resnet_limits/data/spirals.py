"""Two Spirals: the distribution of torchdyn's ``generate_spirals``, from an explicit generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TURN = 780.0  # degrees: the largest angle


def two_spirals(
    count: int, noise: float, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Draw points of two interleaved spiral arms.

    Arms alternate with the index, so that every even prefix is balanced. With
    ``u, e1, e2`` uniform on [0, 1], the angle is ``a = sqrt(u)`` times 780 degrees, the radius
    is ``a``, and the first arm's point is ``(-a cos a + noise e1, a sin a + noise e2)``; the
    second arm is minus the first.

    Parameters
    ----------
    count
        Number of points on both arms together.
    noise
        Width of the uniform noise on each coordinate.
    generator
        Source of randomness.
    dtype
        Type of the points.

    Returns
    -------
    x, y
        Points, ``(2, count)``, and labels -1 or +1, ``(count,)``.
    """
    uniform = torch.rand(3, count, generator=generator, dtype=torch.float64)
    angle = uniform[0].sqrt() * math.radians(TURN)
    arm = torch.stack([-angle.cos() * angle, angle.sin() * angle]) + noise * uniform[1:]
    label = torch.ones(count, dtype=torch.float64)
    label[0::2] = -1.0
    return (-label * arm).to(dtype), label.to(dtype)
