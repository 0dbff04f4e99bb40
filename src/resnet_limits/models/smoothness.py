"""How smooth weights are in depth, by number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


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


def without(weights: Tensor, start: Tensor) -> Tensor:
    """Return the weights less their component along the start, both of one shape.

    Weight decay shrinks the start, so a difference from it keeps a part of it.
    """
    share = (weights * start).sum() / start.square().sum()
    return weights - share * start


def interpolate(weights: Tensor, factor: int) -> Tensor:
    """Interpolate the weights of all layers, ``(L, ...)``, to those of ``factor`` times as many.

    Layer k of L stands at depth (k - 1/2) / L. Between layers weights are linear in depth, before
    the first and behind the last they are constant.
    """
    path = weights.flatten(1).T.unsqueeze(0)
    finer = F.interpolate(path, scale_factor=factor, mode="linear", align_corners=False)
    return finer[0].T.reshape(-1, *weights.shape[1:])
