"""How smooth weights are in depth, by number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Smoothness(NamedTuple):
    """Measures of a path of weights Z_1, ..., Z_L, each a tensor without axes.

    Attributes
    ----------
    von_neumann_ratio
        Mean squared difference of successive layers over twice the variance across layers, both
        summed over entries. Independent layers have 1 on average, whatever their law; a smooth
        path has O(1/L^2); layers that are all equal have 0. A smooth path with independent noise
        has about the noise's share of the variance.
    mean_distance
        Mean over k of ||Z_{k+1} - Z_k||_F.
    largest_distance
        Its maximum over k.
    """

    von_neumann_ratio: Tensor
    mean_distance: Tensor
    largest_distance: Tensor


def smoothness(weights: Tensor) -> Smoothness:
    """Measure the weights of all layers, of shape ``(L, ...)`` with L > 1, in float64.

    Raises
    ------
    ValueError
        If there is but one layer.
    """
    if len(weights) < 2:
        raise ValueError("smoothness in depth needs two layers or more")
    path = weights.detach().double().flatten(1)
    differences = path[1:] - path[:-1]
    ratio = path.new_zeros(())  # of equal layers, whose variance may be a rounding
    if differences.any():
        ratio = differences.square().mean(0).sum() / (2 * path.var(0).sum())
    distances = torch.linalg.vector_norm(differences, dim=1)
    return Smoothness(ratio, distances.mean(), distances.max())
