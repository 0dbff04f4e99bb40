"""Synthetic regression points and targets, from explicit generators."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def jittered_grid(
    count: int, dimension: int, spacing: float, jitter: float, generator: torch.Generator
) -> Tensor:
    """Draw well separated points: the first of a centred cubic grid, each slightly shifted.

    Parameters
    ----------
    count
        Number of points N; the grid is the smallest cube that holds them.
    dimension
        Dimension d.
    spacing
        Distance between neighbours in the grid.
    jitter
        Largest shift of a coordinate as a fraction of the spacing; shifts are uniform. Points
        stay ``(1 - 2 jitter) spacing`` apart.
    generator
        Source of randomness.

    Returns
    -------
    Tensor
        Points ``(count, dimension)`` in float64.
    """
    side: int = math.ceil(round(count ** (1 / dimension), 9))
    indices = itertools.islice(itertools.product(range(side), repeat=dimension), count)
    grid = torch.tensor(list(indices), dtype=torch.float64) - (side - 1) / 2
    shift = 2 * torch.rand(count, dimension, generator=generator, dtype=torch.float64) - 1
    return spacing * (grid + jitter * shift)


def standard_normal(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    """Draw ``(count, dimension)`` independent standard normal coordinates in float64."""
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64)


def separation(points: Tensor) -> Tensor:
    """Return the smallest distance between any two points ``(..., N, d)``, shape ``(...)``."""
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    same = torch.eye(points.shape[-2], dtype=torch.bool, device=points.device)
    return distance.masked_fill(same, torch.inf).flatten(-2).amin(-1)
