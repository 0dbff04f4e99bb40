"""The setting of Chen et al.'s theory: a two-layer ODE as means over particles.

Equation 2 with L Euler steps, M particles of the field at each and K of the output layer,

    z_{l+1} = z_l + (alpha / (L M)) sum_m u_lm tanh(w_lm . z_l + b_lm),      z_0 = x,
    f(x)    = (beta / K) sum_k a_k tanh(v_k . z_L + c_k).

It is a `TwoLayerODE` whose outer weights are ``alpha / M`` or ``beta / K`` times a particle's and
whose outer biases are 0, and is evaluated and differentiated as such.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from resnet_limits.models.two_layer_ode import TwoLayerODE, particles

NODES = 44  # per dimension: the limit's smallest eigenvalue is then right to about 1 %


def draw_particles(
    shape: tuple[int, ...], inner: int, outer: int, generator: torch.Generator
) -> Tensor:
    """Draw standard Gaussian particles in mirror pairs, ``(*shape, inner + outer)``.

    A pair shares its inner weights and has opposite outer ones. So the mean over particles is 0 at
    the start, as it is in the limit of many; independent particles would leave an output of the
    order of ``beta / sqrt(K)``, which training then has to undo.
    """
    *others, count = shape
    half = torch.randn(*others, count // 2, inner + outer, generator=generator, dtype=torch.float64)
    mirrored = torch.cat([half[..., :inner], -half[..., inner:]], dim=-1)
    return torch.cat([half, mirrored], dim=-2)


class ParticleODE:
    """A batch of independent networks, called members, as means over particles.

    Parameters
    ----------
    field
        Particles (w, b, u) of the field, ``(members, L, M, 2 d + 1)``.
    head
        Particles (v, c, a) of the output layer, ``(members, K, d + 2)``.
    alpha, beta
        Scales of Eq. 2, ``(members,)``.
    """

    def __init__(self, field: Tensor, head: Tensor, alpha: Tensor, beta: Tensor) -> None:
        self.alpha, self.beta = alpha, beta
        self.depth, self.field_count, self.head_count = *field.shape[1:3], head.shape[1]
        self._field_scale = (alpha / self.field_count)[:, None, None, None]
        self._head_scale = (beta / self.head_count)[:, None, None]
        width = head.shape[-1] - 1  # of a particle's inner weights
        self.network = TwoLayerODE(
            field[..., :width],
            _outer_maps(field[..., width:] * self._field_scale),
            head[..., :width],
            _outer_maps(head[..., width:] * self._head_scale),
            self.depth,
            "per_step",
        )

    def particles(self) -> tuple[Tensor, Tensor]:
        """Return the field's and the output layer's particles."""
        network = self.network
        return (
            particles(network.field_inner, network.field_outer / self._field_scale),
            particles(network.head_inner, network.head_outer / self._head_scale),
        )

    def mobility(self) -> dict[str, Tensor]:
        """Return how fast the particle gradient flow moves each weight, per unit of gradient.

        A particle of the output layer has mass 1/K and moves by -K times the loss's gradient (Eq.
        9); one of the field has mass 1/(L M) (Eq. 8). A weight that is s times a particle's moves
        s^2 times as fast. Outer biases rest.
        """
        field, head = self.depth * self.field_count, self.head_count
        network = self.network
        return {
            "field_inner": torch.full_like(network.field_inner, field),
            "field_outer": _resting_bias(field * self._field_scale**2, network.field_outer),
            "head_inner": torch.full_like(network.head_inner, head),
            "head_outer": _resting_bias(head * self._head_scale**2, network.head_outer),
        }

    def gram_matrices(self, members: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return G1 and G2 of Eq. 19 and 20 for homogeneous inputs, each ``(members, n, n)``.

        Means over particles of products of the gradients of ``f / beta`` and, for G1, without the
        factor alpha: the loss falls by ``4 beta^2 / n^2 r^T (alpha^2 G1 + G2) r`` (Proposition
        4.2, with r = f - y and the mean squared error).
        """
        network = self.network
        inner, head_inner = network.field_inner[members], network.head_inner[members]
        outer = network.field_outer[members, ..., :-1]
        states, hidden = [x], []
        for w, u in zip(inner.unbind(1), outer.unbind(1), strict=True):
            hidden.append(torch.tanh(w @ states[-1]))
            # The row of zeros keeps the state's row of ones.
            states.append(states[-1] + pad(u @ hidden[-1], (0, 0, 0, 1)) / self.depth)

        a = (network.head_outer[members, :, :-1] / self._head_scale[members]).mT
        top = torch.tanh(head_inner @ states[-1])
        sensitivity = a * (1 - top**2)
        g2 = (_products(top) + _products(sensitivity) * _products(states[-1])) / self.head_count
        adjoint = head_inner[..., :-1].mT @ sensitivity / self.head_count
        g1 = torch.zeros_like(g2)
        for step in reversed(range(self.depth)):
            scaled = outer[:, step].mT @ adjoint * (1 - hidden[step] ** 2)  # alpha / M u.p tanh'
            free = scaled / self._field_scale[members, 0]
            g1 += _products(adjoint) * _products(hidden[step])
            g1 += _products(free) * _products(states[step])
            adjoint = adjoint + inner[:, step, :, :-1].mT @ scaled / self.depth
        return g1 / (self.depth * self.field_count), g2


def limit_gram(x: Tensor, nodes: int = NODES) -> Tensor:
    """Return G2 at the start in the limit of many particles, ``(members, n, n)``.

    The field's mean is 0 there, so z_L = x and, with X = (x, 1) and standard Gaussian W,
    ``G2 = E[tanh(W.X) tanh(W.X')] + X.X' E[tanh'(W.X) tanh'(W.X')]`` (proof of Lemma 4.3). The
    expectations are by Gauss-Hermite quadrature.

    Parameters
    ----------
    x
        Homogeneous inputs in the plane, ``(members, 3, n)``.
    nodes
        Of the quadrature in each of W's three dimensions.
    """
    line, weight = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    weights = np.einsum("i,j,k->ijk", weight, weight, weight).ravel() / weight.sum() ** 3
    kept = weights > np.finfo(float).eps ** 2
    root = torch.from_numpy(np.sqrt(weights[kept])).to(x.device)[:, None]
    top = torch.tanh(torch.from_numpy(grid[kept]).to(x.device) @ x)
    return _products(root * top) + _products(root * (1 - top**2)) * _products(x)


def gaussian_divergence(now: Tensor, start: Tensor) -> Tensor:
    """Return the KL divergence between Gaussians of the particles' moments, ``(members,)``.

    A stand-in for the divergence of the particles' laws, which so few particles do not determine.
    Particles are rows, ``(members, ..., count, dimension)``; over other dimensions, such as Euler
    steps, the mean is taken.
    """
    mean, covariance = _moments(now)
    start_mean, start_covariance = _moments(start)
    precision = torch.linalg.inv(start_covariance)
    shift = (mean - start_mean).unsqueeze(-1)
    trace = (precision @ covariance).diagonal(dim1=-2, dim2=-1).sum(-1)
    quadratic = (shift.mT @ precision @ shift).squeeze(-1).squeeze(-1)
    volume = torch.logdet(start_covariance) - torch.logdet(covariance)
    divergence: Tensor = (trace - now.shape[-1] + quadratic + volume) / 2
    return divergence.flatten(1).mean(1) if divergence.ndim > 1 else divergence


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    mean = rows.mean(dim=-2)
    centered = rows - mean.unsqueeze(-2)
    return mean, centered.mT @ centered / rows.shape[-2]


def _outer_maps(weights: Tensor) -> Tensor:
    """Turn outer weights by particle, ``(..., m, o)``, into affine maps without bias."""
    return pad(weights.mT, (0, 1))


def _resting_bias(speed: Tensor, outer: Tensor) -> Tensor:
    return pad(speed.expand_as(outer[..., :-1]), (0, 1))


def _products(rows: Tensor) -> Tensor:
    """Return the inner products of all pairs of columns."""
    products: Tensor = rows.mT @ rows
    return products


def largest_step(gram: Tensor, samples: int, beta: Tensor) -> Tensor:
    """Return the step size above which gradient descent diverges while G rests, ``(members,)``.

    The residuals move by ``-(2 beta^2 / n) G r``.
    """
    largest: Tensor = torch.linalg.eigvalsh(gram)[:, -1]
    return samples / (beta**2 * largest)
