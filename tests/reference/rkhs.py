"""One network of random Fourier features by the equations as written, for autograd."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def features(z: Tensor, frequencies: Tensor) -> Tensor:
    """Return the features (Eq. 20, real form) ``(..., N, 2 r)`` of points ``(..., N, q)``."""
    angles = z @ frequencies.mT
    return torch.cat([angles.cos(), angles.sin()], dim=-1) / math.sqrt(frequencies.shape[-2])


def feature_gram(points: Tensor, frequencies: Tensor) -> Tensor:
    """Return the matrices of (1/r) sum_j cos<z - z', w_j>, ``(..., N, N)``."""
    phi = features(points, frequencies)
    return phi @ phi.mT


def losses(
    inputs: Tensor,
    targets: Tensor,
    input_map: Tensor,
    output_map: Tensor,
    frequencies: Tensor,
    weights: Iterable[Tensor],
    depth: int,
) -> Tensor:
    """Return the loss (Eq. 7) of each member.

    Parameters
    ----------
    inputs, targets
        x ``(..., N, d)`` and y ``(..., N, d')``.
    input_map, output_map
        A ``(q, d)`` and B ``(d', q)``.
    frequencies
        ``(..., r, q)``.
    weights
        W_k ``(..., q, 2 r)`` for each of the Euler steps.
    depth
        Number of Euler steps.
    """
    z = inputs @ input_map.mT
    for W in weights:
        z = z + features(z, frequencies) @ W.mT / depth
    return (z @ output_map.mT - targets).square().sum((-2, -1)) / (2 * inputs.shape[-2])
