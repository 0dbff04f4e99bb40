"""Stationary kernels of Barboni, Peyre and Vialard (2022): values, frequencies, constants.

A kernel is a function k of the distance ``s`` between two points of R^q, with k(0) = 1, and
K(z, z') = k(||z - z'||) Id_q is the kernel of the residuals' RKHS. By Bochner's theorem k is the
mean of cos<z - z', w> over the kernel's law of frequencies w; r draws of w are the random Fourier
features of Eq. 20, and their Gram matrix approaches that of k like r^(-1/2).

The paper writes the Matern kernel in two ways that disagree: the frequencies of Eq. 18 (a
Student t with 2 nu degrees of freedom) belong to the argument sqrt(2 nu) s and not, as in Eq. 17,
to sqrt(2 nu) s / (2 pi). Only Eq. 18 has the Gaussian limit and the kappa that the paper states,
so Eq. 18 is used.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Kernel(ABC):
    """A stationary kernel with k(0) = 1, decreasing in the distance."""

    @abstractmethod
    def __call__(self, distance: Tensor) -> Tensor:
        """Return k(s) for distances s >= 0 of any shape."""

    @abstractmethod
    def slope(self, distance: Tensor) -> Tensor:
        """Return k'(s) / s, continuous at 0; the gradient of k(||z||) is this times z."""

    @abstractmethod
    def frequencies(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw frequencies of the given shape in float64; the last axis is R^q (Eq. 18)."""

    @property
    @abstractmethod
    def moments(self) -> tuple[float, float]:
        """Second and fourth moment of one frequency coordinate: -k''(0) and k''''(0)."""

    @property
    def kappa(self) -> float:
        """Admissibility constant of Assumption 1, by Eq. 19 (proven, independent of q)."""
        second, fourth = self.moments
        return 1.0 + math.sqrt(second) + math.sqrt(fourth)

    def universality_bound(self, samples: int, separation: Tensor) -> Tensor:
        """Bound the smallest eigenvalue of Gram matrices of separated points from below.

        By Gershgorin's theorem and because k decreases, lambda of Eq. 13 is at least
        ``1 - (N - 1) k(separation)``. Proven, but zero or negative unless points are far apart.
        """
        return 1.0 - (samples - 1) * self(separation)


@dataclass(frozen=True)
class Gaussian(Kernel):
    """The kernel exp(-s^2 / 2), whose frequencies are N(0, I_q)."""

    def __call__(self, distance: Tensor) -> Tensor:
        """Return k(s)."""
        return distance.square().mul_(-0.5).exp_()

    def slope(self, distance: Tensor) -> Tensor:
        """Return k'(s) / s = -k(s)."""
        return self(distance).neg_()

    def frequencies(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw standard normal frequencies."""
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    @property
    def moments(self) -> tuple[float, float]:
        """Return 1 and 3."""
        return 1.0, 3.0


@dataclass(frozen=True)
class Matern(Kernel):
    """The Matern kernel of Eq. 18 with half-integer smoothness.

    With a = sqrt(2 nu) s it is M_nu(a) = 2^(1 - nu) / Gamma(nu) a^nu K_nu(a), a polynomial times
    exp(-a). Since (a^nu K_nu)' = -a^nu K_(nu - 1), k'(s) / s = -nu / (nu - 1) M_(nu - 1)(a).

    Parameters
    ----------
    smoothness
        nu = 5/2, 7/2, ...; below, the fourth moment and with it kappa is infinite.

    Raises
    ------
    ValueError
        If the smoothness is not a half-integer of at least 5/2.
    """

    smoothness: float

    def __post_init__(self) -> None:
        if self.smoothness < 2.5 or (2 * self.smoothness) % 2 != 1:
            raise ValueError(f"smoothness must be 5/2, 7/2, ..., not {self.smoothness}")

    def __call__(self, distance: Tensor) -> Tensor:
        """Return k(s)."""
        return _half_integer_matern(self._degree, distance * math.sqrt(2 * self.smoothness))

    def slope(self, distance: Tensor) -> Tensor:
        """Return k'(s) / s."""
        scaled = distance * math.sqrt(2 * self.smoothness)
        factor = -self.smoothness / (self.smoothness - 1)
        return _half_integer_matern(self._degree - 1, scaled).mul_(factor)

    def frequencies(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw Student t vectors with 2 nu degrees of freedom and identity scale."""
        freedom = round(2 * self.smoothness)
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        squares = torch.randn((*shape[:-1], freedom), generator=generator, dtype=torch.float64)
        chi_square = squares.square_().sum(-1, keepdim=True)
        return normal * (freedom / chi_square).sqrt()

    @property
    def moments(self) -> tuple[float, float]:
        """Return nu / (nu - 1) and 3 nu^2 / ((nu - 1) (nu - 2))."""
        nu = self.smoothness
        return nu / (nu - 1), 3 * nu**2 / ((nu - 1) * (nu - 2))

    @property
    def _degree(self) -> int:
        return int(self.smoothness)


KERNELS: dict[str, Kernel] = {
    "gaussian": Gaussian(),
    "matern2.5": Matern(2.5),
    "matern4.5": Matern(4.5),
}


def _half_integer_matern(degree: int, scaled: Tensor) -> Tensor:
    """Return M_(degree + 1/2)(a): a polynomial in a of this degree, times exp(-a)."""
    p = degree
    leading = math.factorial(p) / math.factorial(2 * p)
    falling = [
        leading * 2 ** (p - i) * math.factorial(p + i) / math.factorial(i) / math.factorial(p - i)
        for i in range(p + 1)
    ]
    value = torch.full_like(scaled, falling[0])
    for coefficient in falling[1:]:
        value.mul_(scaled).add_(coefficient)
    return value.mul_(torch.exp(-scaled))


def pairwise_distances(points: Tensor, others: Tensor) -> Tensor:
    """Return distances ``(..., n, m)`` between ``(..., n, q)`` and ``(..., m, q)``.

    Differences are squared and summed directly: expanding the square would leave an error of
    1e-8 in the distance of points that coincide.
    """
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")


def gram(kernel: Kernel, points: Tensor) -> Tensor:
    """Return the kernel matrices ``(..., N, N)`` of points ``(..., N, q)``, in float64."""
    points = points.to(torch.float64)
    return kernel(pairwise_distances(points, points))


def smallest_eigenvalue(matrices: Tensor) -> Tensor:
    """Return the smallest eigenvalues ``(...)`` of symmetric matrices ``(..., N, N)``.

    Matrices with a non-finite entry (of runs that diverged) give NaN and disturb no other.
    """
    finite = matrices.isfinite().all(dim=-1).all(dim=-1)
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    usable = torch.where(finite[..., None, None], matrices, identity)
    return torch.where(finite, torch.linalg.eigvalsh(usable)[..., 0], torch.nan)


def feature_kappa(frequencies: Tensor) -> Tensor:
    """Bound the admissibility constant (Assumption 1) of a finite set of random features.

    For ``v = W phi`` with real features, ||v|| <= ||W||, ||Dv|| <= ||W|| times the root of the
    largest eigenvalue of (1/r) sum_j w_j w_j^T, and ||D^2 v|| <= ||W|| times the root of
    ``max (1/r) sum_j <w_j, u>^4`` over unit vectors u; the first two are attained. The quartic
    maximum is hard in general. With S = u u^T it is the form ``<S, C S>`` of the q^2 x q^2 matrix
    C of fourth moments, and (tr S)^2 = ||S||^2 on such S, so that the largest eigenvalue of
    ``C - c (vec(I) vec(I)^T - I)`` is an upper bound for every c. The c chosen here, the mean of
    w_a^2 w_b^2 over a != b, makes it exact for isotropic laws, hence as r grows.

    Parameters
    ----------
    frequencies
        ``(..., r, q)``.

    Returns
    -------
    Tensor
        A proven upper bound of shape ``(...)``, in float64, that tends to Eq. 19 as r grows.
    """
    w = frequencies.to(torch.float64)
    count, q = w.shape[-2:]
    second = w.mT @ w / count
    squares = (w[..., :, None] * w[..., None, :]).flatten(-2)
    fourth = squares.mT @ squares / count
    identity = torch.eye(q, dtype=w.dtype, device=w.device)
    mixed = (w.square().sum(-1).square() - w.pow(4).sum(-1)).mean(-1) / max(q * (q - 1), 1)
    trace = identity.flatten()
    vanishing = trace[:, None] * trace - torch.eye(q * q, dtype=w.dtype, device=w.device)
    fourth = fourth - mixed[..., None, None] * vanishing
    largest_second = torch.linalg.eigvalsh(second)[..., -1]
    largest_fourth = torch.linalg.eigvalsh(fourth)[..., -1]
    kappa: Tensor = 1.0 + largest_second.sqrt() + largest_fourth.sqrt()
    return kappa
