"""Deep residual networks, one dense block per layer, and their expansion in orders of the blocks.

X^{l+1} = X^l + (1/L) sigma(theta^l X^l) for l = 0, ..., L-1 (Lu et al. 2020, Eq. 3 with one
particle per layer). All tensors carry a leading axis of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda u: u,
}


def states(x: Tensor, theta: Tensor, activation: str) -> list[Tensor]:
    """Return X^0, ..., X^L.

    Parameters
    ----------
    x
        X^0, shape ``(networks, samples, width)``.
    theta
        Weights, shape ``(networks, depth, width, width)``.
    activation
        ``sigmoid``, ``tanh`` or ``identity``.
    """
    sigma, depth = ACTIVATIONS[activation], theta.shape[1]
    path = [x]
    for weights in theta.unbind(1):
        path.append(path[-1] + sigma(path[-1] @ weights.mT) / depth)
    return path


def first_order(x: Tensor, theta: Tensor, activation: str) -> Tensor:
    """Return X^0 + (1/L) sum_l sigma(theta^l X^0), the two-layer network of the same weights."""
    hidden = torch.einsum("nsi,nlji->nlsj", x, theta)
    return x + ACTIVATIONS[activation](hidden).mean(1)


def terms(x: Tensor, theta: Tensor, activation: str, order: int) -> list[Tensor]:
    """Return the terms of X^L of order 0, ..., ``order`` in the blocks (Section 2.2).

    With every block multiplied by epsilon, X^L is a power series in epsilon; term k is its
    coefficient k. The series is propagated through the layers exactly, truncated after ``order``.

    Parameters
    ----------
    x, theta, activation
        As in `states`.
    order
        The highest order.

    Returns
    -------
    list of Tensor
        Each of the shape of ``x``; the first is X^0, and the first two sum to `first_order`.
    """
    depth = theta.shape[1]
    series = [x, *(torch.zeros_like(x) for _ in range(order))]
    for weights in theta.unbind(1):
        block = _apply([term @ weights.mT for term in series], activation)
        series = [x, *(series[k] + block[k - 1] / depth for k in range(1, order + 1))]
    return series


def _apply(u: Sequence[Tensor], activation: str) -> list[Tensor]:
    """Return the power series of sigma(u) by k y_k = sum_j j u_j s_{k-j}, where s = sigma'(u)."""
    if activation == "identity":
        return list(u)
    y = [ACTIVATIONS[activation](u[0])]
    slope: list[Tensor] = []
    for k in range(1, len(u)):
        square = sum(y[i] * y[k - 1 - i] for i in range(k))
        # sigma' = sigma - sigma^2 for the sigmoid, 1 - sigma^2 for tanh.
        linear = y[k - 1] if activation == "sigmoid" else torch.full_like(y[0], float(k == 1))
        slope.append(linear - square)
        products = (j * u[j] * slope[k - j] for j in range(1, k + 1))
        y.append(sum(products, torch.zeros_like(y[0])) / k)
    return y
