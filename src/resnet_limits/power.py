"""Operating characteristics of a claim's test: what it decides where the truth is known.

Tables of the same shape as the measured one are planted with a known truth and go through the
claim's own test and decision. Planted are replicates, or the points of a slope, since the test
averages within replicates first.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from resnet_limits.stats import (
    Ends,
    Estimate,
    Summary,
    averages,
    bonett_wright,
    clopper_pearson,
    compared,
    in_units,
    line_ends,
    line_points,
    pairs,
    slopes,
    student,
)
from resnet_limits.study_files import ARGUMENTS, Bound, Claim

WANTED = 0.8  # power from which a test counts as able to find what is there
MOST = 1000  # largest number of replicates that is tried
PLANTED, TRIED = 4000, 1000  # tables for the power at the present n, and in the search for n
NUMBERS = 2_000_000  # that one planting draws at most
RESAMPLED = 20  # replicates from which residuals are resampled; fewer are taken as normal

Interval = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Planting:
    """How tables of a claim are planted.

    Attributes
    ----------
    intervals
        Called with the true value, the number of replicates, the number of tables, and a
        generator; returns the ends of the test's interval in each table.
    least_n
        Fewest replicates that have an interval.
    range
        True values that there can be.
    """

    intervals: Callable[[float, int, int, np.random.Generator], Interval]
    least_n: int
    range: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True)
class Characteristics:
    """What a test does where the truth is known.

    Attributes
    ----------
    power
        Probability of the verdict `reproduced` where the claim is true; None where no true value
        is named and the measured one is not within the bound.
    power_at
        Which true value that is.
    size
        Probability that the interval lies within the bound where the truth is at the edge of it,
        the larger one of two.
    needed_n
        Replicates for a power of `WANTED`; empty where there is no power to speak of.
    """

    power: float | None
    power_at: str
    size: float | None
    needed_n: str


def characteristics(
    claim: Claim,
    rows: pd.DataFrame,
    estimate: Estimate,
    reference: Summary | None,
    confidence: float,
    strictest: Bound,
) -> Characteristics:
    """Plant tables like the claim's rows and count what its test decides.

    Parameters
    ----------
    claim, rows, reference
        As the test had them.
    estimate
        What it measured.
    confidence
        Of the interval that decides.
    strictest
        The bound that an interval must be within for `reproduced`: the claim's own, or that at
        half or twice its margin. The size is that of the interval at the claim's own.
    """
    planting = plantings(claim, rows, reference, confidence)

    def share(bound: Bound, truth: float, n: int, tables: int) -> float:
        if n < max(claim.least_n, planting.least_n):
            return 0.0
        # The same numbers for every truth and n, so that shares do not jump between them.
        random = np.random.default_rng(zlib.crc32(claim.id.encode()))
        low, high = planting.intervals(truth, n, max(1, min(tables, NUMBERS // n)), random)
        return share_inside(low, high, bound)

    edges = [e for e in claim.bound.ends if planting.range[0] < e < planting.range[1]]
    edges = [edge for edge in edges if math.isfinite(edge)]
    size = max((share(claim.bound, edge, estimate.n, PLANTED) for edge in edges), default=None)
    truth, power_at = _truth(claim, estimate)
    if truth is None:
        return Characteristics(None, power_at, size, "")
    needed = least(lambda n: share(strictest, truth, n, TRIED) >= WANTED, planting.least_n, MOST)
    return Characteristics(
        share(strictest, truth, estimate.n, PLANTED),
        power_at,
        size,
        f"more than {MOST}" if needed is None else str(needed),
    )


def _truth(claim: Claim, estimate: Estimate) -> tuple[float | None, str]:
    if claim.effect is not None:
        return claim.effect, f"{claim.effect:g} ({claim.effect_source})"
    if claim.bound.has(estimate.value, estimate.value):
        return estimate.value, "the measured estimate, since the claim names no effect"
    return None, "the claim names no effect, and the measured estimate is not within the bound"


def share_inside(low: np.ndarray, high: np.ndarray, bound: Bound) -> float:
    """Return the share of intervals that lie within a bound."""
    lowest, highest = bound.ends
    return float(np.mean((lowest < low) & (high < highest)))


def least(holds: Callable[[int], bool], start: int, most: int) -> int | None:
    """Return the least number from which something holds, or None if not up to ``most``.

    It is found by doubling and bisection: whatever holds for a number must hold for larger ones.
    """
    fails, number = start - 1, start
    while not holds(number):
        if number == most:
            return None
        fails, number = number, min(2 * number, most)
    while number - fails > 1:
        middle = (fails + number) // 2
        fails, number = (fails, middle) if holds(middle) else (middle, number)
    return number


# How each test's tables are planted


def plantings(
    claim: Claim, rows: pd.DataFrame, reference: Summary | None, confidence: float
) -> Planting:
    """Return how tables like a claim's rows are planted."""
    told, replicate = dict(claim.arguments), claim.replicates
    if claim.test == "mean":
        return of_values(averages(rows, told["value"], replicate), confidence)
    if claim.test == "paired_difference":
        scaled = told.pop("in_standard_deviations", False)
        levels = pairs(rows, **told, replicate=replicate)
        return (
            of_levels(levels, confidence)
            if scaled
            else of_values(-np.diff(levels, axis=0)[0], confidence)
        )
    if claim.test == "slope" and "per" in told:
        del told["per"]
        return of_values(slopes(rows, **told, replicate=replicate), confidence)
    if claim.test == "slope":
        return of_line(*line_points(rows, **told), confidence)
    if claim.test == "binomial_slope":
        x, failures, trials = (rows[told[key]].to_numpy(float) for key in ARGUMENTS[claim.test])
        return of_failures(x, failures, trials, confidence)
    if claim.test == "trend":
        points = rows[[told["x"], told["y"]]].dropna()
        return of_ranks(points[told["x"]].to_numpy(float), confidence)
    if claim.test == "equivalence" and reference is not None:
        ours = averages(rows, told["value"], replicate)
        return of_published(ours, reference, told.get("unit", "absolute"), confidence)
    return of_shares(confidence)


def of_values(values: np.ndarray, confidence: float) -> Planting:
    """Plant replicates about the true mean with the measured spread."""

    def intervals(truth: float, n: int, tables: int, random: np.random.Generator) -> Interval:
        return student(truth + residuals(values, (tables, n), random), confidence)[1:]

    return Planting(intervals, 2)


def of_levels(levels: np.ndarray, confidence: float) -> Planting:
    """Plant pairs (2, n), whose difference is told in the baseline's standard deviations."""
    unit = levels[1].std(ddof=1)

    def intervals(truth: float, n: int, tables: int, random: np.random.Generator) -> Interval:
        planted = np.moveaxis(joint_residuals(levels, (tables, n), random), -1, 1)
        planted[:, 0] += truth * unit
        return in_units(planted, confidence)[1:]

    return Planting(intervals, 2)


def of_shares(confidence: float) -> Planting:
    """Plant replicates that hold with the true probability."""

    def intervals(truth: float, n: int, tables: int, random: np.random.Generator) -> Interval:
        return clopper_pearson(random.binomial(n, truth, tables), n, confidence)

    return Planting(intervals, 1, (0, 1))


def of_line(x: pd.Series, y: pd.Series, confidence: float) -> Planting:
    """Plant points about a line of the true slope, with residuals as measured."""
    finite = np.isfinite(x) & np.isfinite(y)
    position, height = np.sort(x[finite].to_numpy()), y[finite].to_numpy()[np.argsort(x[finite])]
    slope = line_ends(position, height)[0]
    remainder = (height - slope * position) * math.sqrt(
        (len(position) - 1) / (len(position) - 2)
    )  # a line takes one degree of freedom more than a mean

    def intervals(truth: float, n: int, tables: int, random: np.random.Generator) -> Interval:
        x = spread_over(position, n)
        return line_ends(x, truth * x + residuals(remainder, (tables, n), random), confidence)[1:]

    return Planting(intervals, 3)


def of_failures(
    x: np.ndarray, failures: np.ndarray, trials: np.ndarray, confidence: float
) -> Planting:
    """Plant failures at the true slope, with the measured level and dispersion."""
    order = np.argsort(x)
    position, failures, trials = np.log(x[order]), failures[order], trials[order]
    intercept, slope, _, dispersion = (
        part[0] for part in fit_failures(position, failures[None] / trials, trials)
    )
    center = np.average(position, weights=failures + 0.5)
    level = intercept + slope * center

    def intervals(truth: float, n: int, tables: int, random: np.random.Generator) -> Interval:
        x, count = spread_over(position, n), spread_over(trials, n).astype(int)
        mean = np.minimum(np.exp(level + truth * (x - center)), 1 - 1e-6)
        common = np.clip((dispersion - 1) / (count - 1), 1e-9, 0.99)  # correlation within a run
        odds = (1 - common) / common
        share = random.beta(mean * odds, (1 - mean) * odds, (tables, n))
        return failure_ends(x, random.binomial(count, share) / count, count, confidence)[1:]

    return Planting(intervals, 3)


def of_ranks(x: np.ndarray, confidence: float) -> Planting:
    """Plant points of the true rank correlation over the measured ``x``, as a Gaussian copula."""
    from scipy import stats as scipy_stats

    position = np.sort(x)

    def intervals(truth: float, n: int, tables: int, random: np.random.Generator) -> Interval:
        x = spread_over(position, n)
        scores = scipy_stats.norm.ppf(scipy_stats.rankdata(x) / (n + 1))
        scores = (scores - scores.mean()) / scores.std()
        correlation = 2 * math.sin(math.pi * truth / 6)
        noise = math.sqrt(max(0.0, 1 - correlation**2)) * random.standard_normal((tables, n))
        return rank_ends(x, correlation * scores + noise, confidence)[1:]

    return Planting(intervals, 5, (-1, 1))


def of_published(ours: np.ndarray, reference: Summary, unit: str, confidence: float) -> Planting:
    """Plant our runs and the published ones, whose means differ by the true value."""
    n_theirs, sd_theirs = reference.n, reference.sd
    ours = ours if len(ours) > 1 else sd_theirs * np.array([-1.0, 1.0]) / math.sqrt(2)
    among = ours.std(ddof=1) if reference.one_draw else sd_theirs / math.sqrt(n_theirs)
    freedom = len(ours) + n_theirs - 2
    squares = (len(ours) - 1) * ours.var(ddof=1) + (n_theirs - 1) * sd_theirs**2
    scale = math.sqrt(squares / freedom) if unit == "pooled_sd" else 1.0

    def intervals(truth: float, n: int, tables: int, random: np.random.Generator) -> Interval:
        planted = truth * scale + residuals(ours, (tables, n), random)
        means = among * random.standard_normal(tables)
        spreads = sd_theirs * np.sqrt(random.chisquare(n_theirs - 1, tables) / (n_theirs - 1))
        return compared(planted, (means, spreads), n_theirs, unit, confidence, reference.one_draw)[
            1:
        ]

    return Planting(intervals, 1)


def rank_ends(x: np.ndarray, y: np.ndarray, confidence: float) -> Ends:
    """Return Spearman's rank correlation of ``x`` and ``y`` (tables, n), which has no ties."""
    from scipy import stats as scipy_stats

    n, ranks = len(x), scipy_stats.rankdata(x)
    centred, planted = ranks - ranks.mean(), y.argsort(-1).argsort(-1) - (n - 1) / 2
    norms = np.sqrt((centred @ centred) * (planted**2).sum(-1))
    return bonett_wright(planted @ centred / norms, n, confidence)


# Random parts


def residuals(
    values: np.ndarray, shape: tuple[int, ...], random: np.random.Generator
) -> np.ndarray:
    """Draw deviations from a mean: of measured values, or normal ones where these are few."""
    return joint_residuals(values[None], shape, random)[..., 0]


def joint_residuals(
    values: np.ndarray, shape: tuple[int, ...], random: np.random.Generator
) -> np.ndarray:
    """Draw deviations of several values (k, n) at once, (*shape, k)."""
    n = values.shape[1]
    centred = (values - values.mean(1, keepdims=True)) / math.sqrt(n - 1)
    if n < RESAMPLED:
        # With the values' covariance, whatever its rank.
        return np.asarray(random.standard_normal((*shape, n)) @ centred.T)
    return np.asarray(math.sqrt(n) * centred.T[random.integers(n, size=shape)])


def spread_over(position: np.ndarray, n: int) -> np.ndarray:
    """Return ``n`` points that cover sorted positions alike."""
    return position[np.arange(n) * len(position) // n]


# Binomial regression of many tables at once


def failure_ends(x: np.ndarray, share: np.ndarray, trials: np.ndarray, confidence: float) -> Ends:
    """Return the slope of log ``share`` (tables, n) over ``x`` with the test's interval.

    It is `stats.binomial_slope`, for many tables.
    """
    from scipy import stats as scipy_stats

    _, slope, variance, dispersion = fit_failures(x, share, trials)
    half = scipy_stats.t.ppf((1 + confidence) / 2, len(x) - 2) * np.sqrt(dispersion * variance)
    return slope, slope - half, slope + half


def fit_failures(
    x: np.ndarray, share: np.ndarray, trials: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit binomial regression with log link by iteratively reweighted least squares.

    Returns
    -------
    intercept, slope, variance, dispersion
        Of every table; the slope's variance is that for dispersion 1, which is Pearson's.
    """
    start = np.log((share * trials + 0.5) / (trials + 1))
    intercept, slope, _ = _weighted_lines(x, start, np.ones_like(start))
    above = (intercept[:, None] + slope[:, None] * x).max(-1) + 1e-3
    intercept = intercept - np.maximum(0.0, above)  # a log link allows probabilities above 1
    for _ in range(50):
        log_mean = np.minimum(intercept[:, None] + slope[:, None] * x, -1e-10)
        mean = np.exp(log_mean)
        weights = trials * mean / (1 - mean)
        before = slope
        intercept, slope, variance = _weighted_lines(x, log_mean + (share - mean) / mean, weights)
        if np.allclose(slope, before, rtol=1e-9, atol=1e-9):
            break
    mean = np.exp(np.minimum(intercept[:, None] + slope[:, None] * x, -1e-10))
    pearson = trials * (share - mean) ** 2 / (mean * (1 - mean))
    return intercept, slope, variance, pearson.sum(-1) / (len(x) - 2)


def _weighted_lines(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return intercepts, slopes and their variances of weighted least squares, (tables)."""
    total = weights.sum(-1, keepdims=True)
    center = (weights * x).sum(-1, keepdims=True) / total
    height = (weights * y).sum(-1, keepdims=True) / total
    variance = 1 / (weights * (x - center) ** 2).sum(-1)
    slope = variance * (weights * (x - center) * (y - height)).sum(-1)
    return height[:, 0] - slope * center[:, 0], slope, variance
