"""What Property 2 and Theorem 2 prove for a network, from the constants that its run recorded.

The README derives every bound. All functions take a row of the probe ``constants`` together with
the run's settings, and return tensors of the radii's shape.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.models.rkhs import LocalPL
from resnet_limits.studies.rff_width.experiments import KERNELS

RADII = torch.logspace(-6, 0, 601, dtype=torch.float64)


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
    """Return Property 2's constants of a network of D Euler steps."""
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
    """Look for the R of Eq. 15 among 100 in a decade."""
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
