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
    "sin": torch.sin,
    "identity": lambda u: u,
}
DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda u: torch.sigmoid(u) * torch.sigmoid(-u),
    "tanh": lambda u: 1 - torch.tanh(u).square(),
    "sin": torch.cos,
    "identity": torch.ones_like,
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
        One of `ACTIVATIONS`.
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


def chain_terms(x: Tensor, theta: Tensor, activation: str, order: int) -> list[Tensor]:
    """Return the terms that Section 2.2 counts: every set of k layers gives one product.

    The layers l_1 < ... < l_k give, with D^l = sigma'(theta^l X^0),

        L^{-k} D^{l_k} theta^{l_k} ... D^{l_2} theta^{l_2} sigma(theta^{l_1} X^0),

    and there are binomial(L, k) of them. They are the whole expansion of a network whose blocks
    are linearized at X^0.

    Parameters
    ----------
    x, theta, activation
        As in `states`.
    order
        The highest order.

    Returns
    -------
    list of Tensor
        Sums over all sets of 0, ..., ``order`` layers, each of the shape of ``x``; the first is
        X^0, and the first two sum to `first_order`.
    """
    sigma, derivative = ACTIVATIONS[activation], DERIVATIVES[activation]
    depth = theta.shape[1]
    sums = [torch.zeros_like(x) for _ in range(order)]
    for weights in theta.unbind(1):
        hidden = x @ weights.mT
        slope = derivative(hidden)
        blocks = [sigma(hidden), *(slope * (total @ weights.mT) for total in sums[:-1])]
        sums = [total + block / depth for total, block in zip(sums, blocks, strict=True)]
    return [x, *sums]


def terms(x: Tensor, theta: Tensor, activation: str, order: int) -> list[Tensor]:
    """Return the complete terms of X^L of order 0, ..., ``order`` in the blocks.

    With every block multiplied by epsilon, X^L is a power series in epsilon; term k is its
    coefficient k. The series is propagated through the layers exactly, truncated after ``order``.
    From order 3 on it has more terms than `chain_terms`, with higher derivatives of sigma: a set of
    k layers gives (k-1)! of them, since each layer may act on any of those below it.

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
    """Return the power series of y = sigma(u) by k y_k = sum_j j u_j s_{k-j}, s = sigma'(u)."""
    if activation == "identity":
        return list(u)
    y = [ACTIVATIONS[activation](u[0])]
    slope = [DERIVATIVES[activation](u[0])]
    for k in range(1, len(u)):
        y.append(_integrated(u, slope, k))
        slope.append(_slope(u, y, k, activation))
    return y


def _slope(u: Sequence[Tensor], y: Sequence[Tensor], k: int, activation: str) -> Tensor:
    """Return coefficient k > 0 of sigma'(u)."""
    if activation == "sin":  # the derivative of cos u is -y u'
        return -_integrated(u, y, k)
    # sigma' = sigma - sigma^2 for the sigmoid, 1 - sigma^2 for tanh.
    square = sum((y[i] * y[k - i] for i in range(k + 1)), torch.zeros_like(y[0]))
    return y[k] - square if activation == "sigmoid" else -square


def _integrated(u: Sequence[Tensor], factor: Sequence[Tensor], k: int) -> Tensor:
    """Return coefficient k > 0 of the integral of u' times a series."""
    products = (j * u[j] * factor[k - j] for j in range(1, k + 1))
    return sum(products, torch.zeros_like(u[0])) / k
