"""What Property 2 and Theorem 2 prove for a network, from the constants that its run recorded.

The README derives every bound. All functions take a row of the probe ``constants`` together with
the run's settings. Bounds have the shape of the radii.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.models.kernels import KERNELS

RADII = torch.logspace(-6, 0, 601, dtype=torch.float64)


@dataclass(frozen=True)
class LocalPL:
    """Constants of Property 2 and Theorem 2 for a network of D Euler steps.

    All are proven once ``expressivity`` is: a lower bound of lambda in Eq. 13, the smallest
    eigenvalue of kernel matrices of N points that are `least_separation` apart.

    Attributes
    ----------
    samples
        N.
    separation
        Smallest distance delta of two inputs.
    input_min
        Smallest singular value of A.
    output_min, output_max
        Smallest and largest singular value of B^T.
    kappa
        Assumption 1: `Kernel.kappa`, or `feature_kappa` for features.
    depth
        Number of Euler steps D.
    """

    samples: int
    separation: float
    input_min: float
    output_min: float
    output_max: float
    kappa: float
    depth: int

    def growth(self, radius: Tensor) -> Tensor:
        """Bound the factor by which a pass lengthens differences of states, and adjoints."""
        return torch.exp(self.kappa * radius)

    def decay(self, radius: Tensor) -> Tensor:
        """Bound the factor by which it shortens them; 0 where nothing is proven."""
        exponent = self.kappa * radius
        bound = torch.exp(-exponent - exponent.square() / self.depth)
        return torch.where(exponent <= 0.68 * math.sqrt(self.depth), bound, 0.0)

    def least_separation(self, radius: Tensor) -> Tensor:
        """Bound distances of visited points from below, for residuals of norm at most R."""
        return self.input_min * self.separation * self.decay(radius)

    def lower(self, radius: Tensor, expressivity: Tensor) -> Tensor:
        """Return m(R) of Eq. 14; with R + R_0 for R it is mu, the rate of Theorem 2."""
        factor = expressivity.clamp_min(0) * self.decay(radius).square()
        return self.output_min**2 / self.samples * factor

    def upper(self, radius: Tensor) -> Tensor:
        """Return M(R) of Eq. 14 with Lambda = N (proven, since k(0) = 1)."""
        return self.output_max**2 * self.growth(radius).square()

    def condition(self, loss: Tensor, radius: Tensor, expressivity: Tensor) -> Tensor:
        """Return the left side of Eq. 15; Theorem 2 applies where it is at most R.

        It is 2 sqrt(2) sqrt(M) / m sqrt(L) of Theorem 1.

        Parameters
        ----------
        loss
            L(v^0).
        radius
            R, for a start from v^0 = 0.
        expressivity
            lambda at `least_separation` of R.
        """
        steep = self.upper(radius).sqrt() / self.lower(radius, expressivity)
        return math.sqrt(8) * steep * loss.sqrt()

    def smoothness(self, loss: Tensor, radius: Tensor) -> Tensor:
        """Return a proven beta (Definition 3) for the ball of radius R about v^0 = 0.

        Steps eta <= 1 / beta are small enough for Theorem 2.
        """
        stretch, sigma = self.growth(radius), self.output_max
        first = self.kappa * stretch
        error = (2 * loss).sqrt() + sigma * first * radius
        second = first.square() * (self.kappa * radius * stretch + 2)
        return (sigma * first).square() + sigma * error * second


class Condition(NamedTuple):
    """Eq. 15 at the smallest R where it holds, or where it is closest to.

    The smallest R has the fastest rate and the longest steps.

    Attributes
    ----------
    excess
        Left side over R; Theorem 2 applies if it is at most 1.
    radius
        That R.
    rate
        mu of Theorem 2 at that R.
    smoothness
        beta in the ball of that R; Theorem 2 asks for eta at most 1 / beta.
    """

    excess: float
    radius: float
    rate: float
    smoothness: float


def local_pl(row: Any) -> LocalPL:
    """Return Property 2's constants of a network."""
    return LocalPL(
        samples=int(row.samples),
        separation=float(row.separation),
        input_min=float(row.input_min),
        output_min=float(row.output_norm),
        output_max=float(row.output_norm),
        kappa=float(row.kappa),
        depth=int(row.depth),
    )


def expressivity(row: Any, radius: Tensor) -> Tensor:
    """Bound the smallest eigenvalue on all points that residuals of norm <= R can visit.

    Points move by at most R, hence the matrix of features by sqrt(N) speed R, and its smallest
    singular value by no more. At infinite width, Gershgorin's bound may be better.
    """
    start = math.sqrt(max(float(row.start_smallest), 0.0))
    moved = math.sqrt(row.samples) * float(row.speed) * radius
    bound = (start - moved).clamp_min(0).square()
    if not math.isinf(row.width):
        return bound
    apart = local_pl(row).least_separation(radius)
    return torch.maximum(bound, KERNELS[row.kernel].universality_bound(int(row.samples), apart))


def left_side(row: Any, radius: Tensor, smallest: Tensor | None = None) -> Tensor:
    """Return the left side of Eq. 15, proven unless a smallest eigenvalue is plugged in."""
    smallest = expressivity(row, radius) if smallest is None else smallest
    return local_pl(row).condition(_loss(row), radius, smallest)


def common_radius(row: Any) -> Tensor:
    """Return R = 1 / (3 kappa), where exp(3 kappa R) / R of Eq. 15 is smallest."""
    return torch.tensor(1 / (3 * float(row.kappa)), dtype=torch.float64)


def condition(row: Any) -> Condition:
    """Search for the R of Eq. 15, at 100 radii per decade."""
    pl, excess = local_pl(row), left_side(row, RADII) / RADII
    holds = (excess <= 1).nonzero()
    best = int(holds[0]) if len(holds) else int(excess.argmin())
    radius = RADII[best]
    return Condition(
        excess=float(excess[best]),
        radius=float(radius),
        rate=float(pl.lower(radius, expressivity(row, radius))),
        smoothness=float(pl.smoothness(_loss(row), radius)),
    )


def quotient_bounds(row: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """Return Property 2's bounds of one network's PL quotients.

    Parameters
    ----------
    row
        Its constants.
    rows
        Its measurements, with columns ``norm`` and ``smallest``.

    Returns
    -------
    DataFrame
        ``lower``: m(||v||) with the smallest eigenvalue on the points of the pass, proven for
        that pass. ``lower_ball``: m(||v||) proven for all residuals of that norm. ``upper``: M.
    """
    pl = local_pl(row)
    radius = torch.tensor(rows["norm"].to_numpy(), dtype=torch.float64)
    visited = torch.tensor(rows["smallest"].to_numpy(), dtype=torch.float64)
    return pd.DataFrame(
        {
            "lower": pl.lower(radius, visited).numpy(),
            "lower_ball": pl.lower(radius, expressivity(row, radius)).numpy(),
            "upper": pl.upper(radius).numpy(),
        },
        index=rows.index,
    )


def _loss(row: Any) -> Tensor:
    return torch.tensor(float(row.start_loss), dtype=torch.float64)
