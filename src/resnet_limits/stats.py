"""Estimates with intervals: every test that a claim may ask for, by name.

Each takes rows of a tidy table and returns an `Estimate`. Functions of arrays, such as `student`,
work on the last axis, so that many planted samples take one call (`power`).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from resnet_limits.errors import UserError, require_known

# statsmodels and scipy.stats take most of a second to import: functions that need them do so.

CONFIDENCE = 0.95
GIVEN = ("rows", "replicate", "reference", "confidence")  # what a claim says by keys of its own
LINEAR = 0.9  # r^2 from which a decay is called linear on the log axis


Ends = tuple[Any, Any, Any]  # estimate, low and high: numbers, or arrays of them


class TooFewError(ValueError):
    """Raised where the rows are too few, or too alike, for an interval; the text says why."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes
    ----------
    value, low, high
        Estimate and ends of the interval.
    n
        Number of independent observations.
    p_value
        For the hypothesis that the value is 0, where the test has one.
    note
        What a reader should know besides.
    """

    value: float
    low: float
    high: float
    n: int
    p_value: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """Published runs: mean, standard deviation and number, and the range of single runs.

    With ``one_draw`` they share a random draw that each of our runs makes anew.
    """

    mean: float
    sd: float
    n: int
    least: float
    largest: float
    one_draw: bool = False


@dataclass(frozen=True)
class Line:
    """A least-squares line ``y = intercept + slope x``."""

    slope: Estimate
    intercept: float
    standard_error: float
    r_squared: float


def fit_line(x: ArrayLike, y: ArrayLike, confidence: float = CONFIDENCE) -> Line:
    """Fit a line by ordinary least squares (statsmodels).

    Raises
    ------
    TooFewError
        With fewer than three finite points.
    """
    from statsmodels.regression.linear_model import OLS
    from statsmodels.tools import add_constant

    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    finite = np.isfinite(x) & np.isfinite(y)
    if finite.sum() < 3 or np.ptp(x[finite]) == 0:
        raise TooFewError("a line with an interval needs three points or more")
    fit = OLS(y[finite], add_constant(x[finite])).fit()
    low, high = fit.conf_int(1 - confidence)[1]
    slope = Estimate(fit.params[1], low, high, int(finite.sum()), float(fit.pvalues[1]))
    with np.errstate(invalid="ignore"):  # equal values have no r^2
        return Line(slope, float(fit.params[0]), float(fit.bse[1]), float(fit.rsquared))


def slope(
    rows: pd.DataFrame,
    x: str,
    y: str,
    log: str = "both",
    mean_over: str | None = None,
    per: str | None = None,
    *,
    replicate: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Slope of ``y`` over ``x``.

    Parameters
    ----------
    rows
        Observations.
    x, y
        Columns.
    log
        Which are replaced by their logarithms: ``both``, ``x``, ``y`` or ``none``.
    mean_over
        A column over which ``y`` is averaged first, before logarithms, such as ``seed``. It is
        averaged over nothing else: rows of different methods, say, give points of their own.
    per
        ``replicate`` for the mean of the slopes of each replicate, with Student's interval.

    Raises
    ------
    UserError
        If there is no column ``mean_over``, or rows that differ otherwise would be averaged.
    TooFewError
        With fewer than three points, one ``x`` only, or one replicate.
    """
    if per is not None:
        return _mean(slopes(rows, x, y, log, replicate), confidence)
    line, dropped = log_line(rows, x, y, log, mean_over, confidence)
    note = f"{dropped} points with no logarithm left out" if dropped else ""
    return replace(line.slope, note=note)


def slopes(
    rows: pd.DataFrame, x: str, y: str, log: str = "both", replicate: Sequence[str] = ()
) -> np.ndarray:
    """Return the least-squares slope of every replicate, of two points or more."""
    horizontal, vertical = _logarithms(rows, x, y, log)
    points = rows[list(replicate)].assign(horizontal=horizontal, vertical=vertical)
    points = points[np.isfinite(points[["horizontal", "vertical"]]).all(axis=1)]
    found = []
    for _, group in points.groupby(list(replicate), sort=False):
        position = group["horizontal"].to_numpy()
        if np.ptp(position) == 0:
            raise TooFewError("a slope of each replicate needs two points or more of each")
        found.append(line_ends(position, group["vertical"].to_numpy())[0])
    return np.array(found)


def line_ends(x: np.ndarray, y: np.ndarray, confidence: float = CONFIDENCE) -> Ends:
    """Return the least-squares slope of ``y`` (..., points) over ``x``, and its interval.

    It is `fit_line` in closed form; two points have a slope and no interval.
    """
    from scipy import stats as scipy_stats

    centred, freedom = x - x.mean(), len(x) - 2
    found = (y @ centred) / (centred @ centred)
    if freedom == 0:
        return found, np.full_like(found, -np.inf), np.full_like(found, np.inf)
    residuals = y - y.mean(-1, keepdims=True) - found[..., None] * centred
    error = np.sqrt((residuals**2).sum(-1) / freedom / (centred @ centred))
    half = scipy_stats.t.ppf((1 + confidence) / 2, freedom) * error
    return found, found - half, found + half


def log_line(
    rows: pd.DataFrame,
    x: str,
    y: str,
    log: str = "both",
    mean_over: str | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[Line, int]:
    """Fit what `slope` reports; also return how many points had no logarithm."""
    horizontal, vertical = line_points(rows, x, y, log, mean_over)
    return fit_line(horizontal, vertical, confidence), int((~np.isfinite(vertical)).sum())


def line_points(
    rows: pd.DataFrame, x: str, y: str, log: str = "both", mean_over: str | None = None
) -> tuple[pd.Series, pd.Series]:
    """Return the points that `log_line` fits."""
    points = rows if mean_over is None else _averaged(rows, x, y, mean_over)
    return _logarithms(points, x, y, log)


def _logarithms(rows: pd.DataFrame, x: str, y: str, log: str) -> tuple[pd.Series, pd.Series]:
    horizontal, vertical = rows[x].astype(float), rows[y].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        horizontal = np.log(horizontal) if log in ("both", "x") else horizontal
        vertical = np.log(vertical) if log in ("both", "y") else vertical
    return horizontal, vertical


def _averaged(rows: pd.DataFrame, x: str, y: str, over: str) -> pd.DataFrame:
    """Average ``y`` over one column, one row for each ``x`` and each other condition."""
    others = rows.columns.drop([x, y])
    require_known(over, others, "mean_over: column")
    conditions = [name for name in others.drop(over) if _is_crossed(rows, x, name, over)]
    point = [x, *conditions]
    if rows.duplicated([*point, over]).any():
        raise UserError(
            f"mean_over: rows with the same {x!r} and {over!r} would be averaged too; "
            "select one of them."
        )
    return rows.groupby(point, as_index=False, dropna=False)[y].mean()


def _is_crossed(rows: pd.DataFrame, x: str, name: str, over: str) -> bool:
    """Tell a condition, such as the method, from a measurement, such as another loss.

    At every ``x``, each value of a condition occurs with each value of ``over``.
    """
    wanted = rows.groupby(x, dropna=False)[over].transform("nunique")
    found = rows.groupby([x, name], dropna=False)[over].transform("nunique")
    return bool((found == wanted).all())


def line_columns(
    rows: pd.DataFrame,
    x: str,
    y: str,
    columns: Sequence[str],
    log: str = "both",
    mean_over: str | None = None,
) -> dict[str, Any]:
    """Return the line that `slope` fits as columns of a table; NaN without a fit.

    Parameters
    ----------
    rows, x, y, log, mean_over
        As for `slope`.
    columns
        Which columns: ``slope`` with its interval ``low`` and ``high`` and its ``p_value``;
        ``standard_error``, ``intercept``, ``r_squared``, and ``points``, their number (0 without
        a fit).
    """
    found: dict[str, Any] = {"points": 0}
    with suppress(TooFewError):
        found = _describe_line(log_line(rows, x, y, log, mean_over)[0])
    return {name: found.get(name, math.nan) for name in columns}


def decay_columns(
    rows: pd.DataFrame, columns: Sequence[str], step: str = "step", loss: str = "loss"
) -> dict[str, Any]:
    """Fit an exponential decay of a loss, as columns of a table; NaN without a fit.

    Parameters
    ----------
    rows
        Measurements of one network. There is no fit if one of the losses is not finite.
    columns
        Which columns: ``rate``, minus the slope of the log loss over steps; ``first_step``,
        ``last_step``; ``falls``, whether the rate's whole interval is above 0; ``linear``,
        whether in addition r^2 >= `LINEAR`; and those of `line_columns`.
    step, loss
        Names of the columns in ``rows``.
    """
    found: dict[str, Any] = {
        "first_step": rows[step].min(),
        "last_step": rows[step].max(),
        "falls": False,
        "linear": False,
        "points": 0,
    }
    if np.isfinite(rows[loss]).all():
        with suppress(TooFewError):
            line, _ = log_line(rows, step, loss, log="y")
            falls = line.slope.high < 0
            linear = falls and line.r_squared >= LINEAR
            found |= {"rate": -line.slope.value, "falls": falls, "linear": linear}
            found |= _describe_line(line)
    return {name: found.get(name, math.nan) for name in columns}


def estimate_columns(name: str, estimate: Estimate) -> dict[str, Any]:
    """Return an estimate as columns: ``name``, ``low``, ``high``, ``p_value`` and ``points``."""
    return {
        name: estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "p_value": estimate.p_value,
        "points": estimate.n,
    }


def _describe_line(line: Line) -> dict[str, Any]:
    return estimate_columns("slope", line.slope) | {
        "standard_error": line.standard_error,
        "intercept": line.intercept,
        "r_squared": line.r_squared,
    }


def binomial_slope(
    rows: pd.DataFrame, x: str, failures: str, trials: str, *, confidence: float = CONFIDENCE
) -> Estimate:
    """Slope of log failure probability over log ``x``.

    Binomial regression with log link, which needs no special case for no failures at all. The
    dispersion is estimated (Pearson), since runs differ by more than their test points do; the
    interval is Student's for that reason.
    """
    from scipy import stats as scipy_stats
    from statsmodels.genmod import families
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.regression.linear_model import OLS
    from statsmodels.tools import add_constant
    from statsmodels.tools.sm_exceptions import DomainWarning

    if rows[x].nunique() < 2 or len(rows) < 3:
        raise TooFewError("a slope with an interval needs three runs at two sizes or more")
    total = rows[trials].to_numpy(dtype=float)
    counts = rows[failures].to_numpy(dtype=float)
    if (counts == total).all():
        raise TooFewError("every trial failed, so there is no slope")
    regressors = add_constant(np.log(rows[x].to_numpy(dtype=float)))
    start = OLS(np.log((counts + 0.5) / (total + 1)), regressors).fit().params
    # A log link allows probabilities above 1; start where all are below.
    start[0] -= max(0.0, float((regressors @ start).max()) + 1e-3)
    # Shares weighted by trials, and not counts: for counts statsmodels' Pearson dispersion
    # leaves out the number of trials.
    family = families.Binomial(link=families.links.Log())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DomainWarning)  # the link's range, dealt with above
        model = GLM(counts / total, regressors, family=family, var_weights=total)
        fit = model.fit(scale="X2", start_params=start)
    critical = scipy_stats.t.ppf((1 + confidence) / 2, len(rows) - 2)
    value, half = float(fit.params[1]), critical * float(fit.bse[1])
    return Estimate(value, value - half, value + half, len(rows), float(fit.pvalues[1]))


def means(rows: pd.DataFrame, by: str | list[str], value: str) -> pd.DataFrame:
    """Return mean and interval of ``value`` in each group: columns mean, low, high, n.

    A group of one has no interval: its ends are not numbers.
    """
    from scipy import stats as scipy_stats

    groups = rows.groupby(by, sort=False)[value]
    table = groups.agg(mean="mean", n="count").reset_index()
    critical = scipy_stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(table["n"] - 1, 1))
    half = groups.sem().to_numpy() * critical
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def share_means(
    rows: pd.DataFrame,
    by: str | list[str],
    value: str,
    whole: float = 1.0,
    trials: str | None = None,
) -> pd.DataFrame:
    """Return what `means` does of shares, with intervals that stay between 0 and ``whole``.

    They are Wilson's, for the number of trials whose binomial spread is that of the observations:
    the mean's standard error times Student's quantile is that of a binomial share times the normal
    quantile. At the mean of 1/2 this is the interval of `means`, but for terms of higher order.

    Parameters
    ----------
    rows, by, value
        As for `means`.
    whole
        What a share of 1 is in the unit of ``value``, 100 for percentages.
    trials
        A column with the trials of each observation, of which there cannot be more in all. Without
        it, observations that are all equal have no interval.
    """
    from scipy import stats as scipy_stats
    from statsmodels.stats.proportion import proportion_confint

    table = means(rows, by, value)
    groups, share = rows.groupby(by, sort=False), (table["mean"] / whole).to_numpy()
    error = (
        (table["high"] - table["mean"]).to_numpy()
        / whole
        / scipy_stats.norm.ppf((1 + CONFIDENCE) / 2)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = share * (1 - share) / error**2
    if trials is not None:
        most = groups[trials].sum().to_numpy()
        effective = np.where(error == 0, most, np.minimum(effective, most))
    effective = np.where(np.isfinite(effective), effective, np.nan)
    low, high = proportion_confint(
        share * effective, effective, alpha=1 - CONFIDENCE, method="wilson"
    )
    return table.assign(low=low * whole, high=high * whole)


def student(values: np.ndarray, confidence: float = CONFIDENCE) -> Ends:
    """Return the mean of ``values`` (..., n) with Student's interval."""
    from scipy import stats as scipy_stats

    n = values.shape[-1]
    center, spread = values.mean(-1), values.std(-1, ddof=1) / math.sqrt(n)
    half = scipy_stats.t.ppf((1 + confidence) / 2, n - 1) * spread
    return center, center - half, center + half


def fieller(ratio: Any, variance: Any, freedom: int, confidence: float = CONFIDENCE) -> Ends:
    """Return a mean in units of a standard deviation, with its interval.

    Parameters
    ----------
    ratio
        Mean over standard deviation, which are independent for normal data.
    variance
        Variance of the mean, in squares of the unit.
    freedom
        Degrees of freedom of the standard deviation.

    Notes
    -----
    The ends solve ``(ratio - end)^2 = t^2 (variance + end^2 / (2 freedom))`` (Fieller), where the
    last term is the error of the unit. They are infinite where that alone is too large.
    """
    from scipy import stats as scipy_stats

    critical = scipy_stats.t.ppf((1 + confidence) / 2, freedom)
    lead = 1 - critical**2 / (2 * freedom)
    if lead <= 0:
        infinite = np.full_like(ratio, np.inf, dtype=float)
        return ratio, -infinite, infinite
    root = np.sqrt(ratio**2 - lead * (ratio**2 - critical**2 * variance))
    return ratio, (ratio - root) / lead, (ratio + root) / lead


def noncentral(ratio: Any, variance: Any, freedom: int, confidence: float = CONFIDENCE) -> Ends:
    """Return the same where ``variance`` is known, as of a difference of means of equal spread.

    Then the ratio has a noncentral t distribution, whose interval is that of its normal
    approximation (Johnson and Welch).
    """
    from scipy import stats as scipy_stats

    center = ratio * (1 - 1 / (4 * freedom))
    half = np.sqrt(variance + ratio**2 / (2 * freedom)) * scipy_stats.norm.ppf((1 + confidence) / 2)
    return ratio, center - half, center + half


def mean(
    rows: pd.DataFrame,
    value: str,
    *,
    replicate: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of a column over replicates, with Student's interval.

    ``replicate`` names the columns that tell replicates apart; without them each row is one.
    """
    return _mean(averages(rows, value, replicate), confidence)


def averages(rows: pd.DataFrame, value: str, replicate: Sequence[str] = ()) -> np.ndarray:
    """Return the mean of a column within each replicate."""
    values = rows.dropna(subset=[value]).astype({value: float})
    if replicate:
        values = values.groupby(list(replicate), sort=False, as_index=False)[value].mean()
    return np.asarray(values[value], dtype=float)


def _mean(values: np.ndarray, confidence: float = CONFIDENCE) -> Estimate:
    from scipy import stats as scipy_stats

    if len(values) < 2:
        raise TooFewError("an interval needs two observations or more")
    center, low, high = student(values, confidence)
    varies = np.ptp(values) > 0
    p_value = float(scipy_stats.ttest_1samp(values, 0.0).pvalue) if varies else None
    return Estimate(float(center), float(low), float(high), len(values), p_value)


def paired_difference(
    rows: pd.DataFrame,
    value: str,
    by: str,
    treatment: object,
    baseline: object,
    pair: Sequence[str],
    in_standard_deviations: bool = False,
    *,
    replicate: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of ``value`` at the treatment minus at the baseline, over pairs.

    Parameters
    ----------
    rows
        Observations, one per pair and level.
    value
        Column to compare.
    by, treatment, baseline
        Column that tells the two apart, and its two levels.
    pair
        Columns that identify a pair, such as ``seed``.
    in_standard_deviations
        Give the difference in units of the baseline's standard deviation over pairs, with the
        wider of Fieller's interval and that of the noncentral t distribution.
    replicate
        Those of ``pair`` that tell replicates apart; pairs are averaged within one first.
    """
    levels = pairs(rows, value, by, treatment, baseline, pair, replicate)
    difference = levels[0] - levels[1]
    if not in_standard_deviations:
        return _mean(difference, confidence)
    if difference.size < 2 or np.ptp(levels[1]) == 0:
        raise TooFewError("the baseline does not vary, so its standard deviation is no unit")
    ratio, low, high = in_units(levels, confidence)
    return Estimate(float(ratio), float(low), float(high), difference.size)


def pairs(
    rows: pd.DataFrame,
    value: str,
    by: str,
    treatment: object,
    baseline: object,
    pair: Sequence[str],
    replicate: Sequence[str] = (),
) -> np.ndarray:
    """Return ``value`` at treatment and baseline of every replicate, (2, n)."""
    wide = rows.pivot_table(index=list(pair), columns=by, values=value)
    for level in (treatment, baseline):
        if level not in wide:
            raise TooFewError(f"no rows with {by} = {level}")
    both = wide[[treatment, baseline]].dropna()
    if replicate:
        both = both.groupby(level=list(replicate)).mean()
    return np.asarray(both, dtype=float).T


def in_units(levels: np.ndarray, confidence: float = CONFIDENCE) -> Ends:
    """Return the mean difference of treatment and baseline (..., 2, n) in baseline deviations."""
    difference, baseline = levels[..., 0, :] - levels[..., 1, :], levels[..., 1, :]
    n, unit = baseline.shape[-1], baseline.std(-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resampled baseline may not vary
        variance = (difference.std(-1, ddof=1) / unit) ** 2 / n
        ratio = difference.mean(-1) / unit
        # For few pairs, the one is too narrow away from 0, and the other one towards it.
        kinds = [kind(ratio, variance, n - 1, confidence) for kind in (fieller, noncentral)]
    return ratio, np.minimum(kinds[0][1], kinds[1][1]), np.maximum(kinds[0][2], kinds[1][2])


def equivalence(
    rows: pd.DataFrame,
    value: str,
    unit: str = "absolute",
    *,
    reference: Summary,
    replicate: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of our runs minus that of published ones.

    Parameters
    ----------
    rows, value, replicate
        As for `mean`.
    unit
        ``absolute``, with the wider of Welch's interval and Student's; or ``pooled_sd``, the
        difference in units of the pooled standard deviation, with that of the noncentral t
        distribution, for which both spreads must be alike.
    reference
        The published runs. Their spread stands for ours where we have one run.
    """
    ours = averages(rows, value, replicate)
    if ours.size == 0:
        raise TooFewError("no runs")
    theirs = (np.array(reference.mean), np.array(reference.sd))
    found, low, high = compared(ours, theirs, reference.n, unit, confidence, reference.one_draw)
    least, largest = ours.min(), ours.max()
    inside = reference.least <= least and largest <= reference.largest
    note = (
        f"Our runs, {least:.4g} to {largest:.4g}, are {'' if inside else 'not all '}within theirs, "
        f"{reference.least:.4g} to {reference.largest:.4g} (n = {reference.n})"
    )
    return Estimate(float(found), float(low), float(high), ours.size, note=note)


def compared(
    ours: np.ndarray,
    theirs: tuple[np.ndarray, np.ndarray],
    n_theirs: int,
    unit: str,
    confidence: float = CONFIDENCE,
    one_draw: bool = False,
) -> Ends:
    """Return the difference of our runs (..., n) to published means and deviations (...).

    With ``one_draw`` the published mean varies as much as one run of ours, so that the interval is
    at least a prediction interval.
    """
    from scipy import stats as scipy_stats

    n, (mean_theirs, sd_theirs) = ours.shape[-1], theirs
    difference = ours.mean(-1) - mean_theirs
    variance = ours.var(-1, ddof=1) if n > 1 else np.zeros_like(difference)
    freedom = n + n_theirs - 2
    pooled = ((n - 1) * variance + (n_theirs - 1) * sd_theirs**2) / freedom
    share = 1 / n + 1 / n_theirs
    if unit == "pooled_sd":
        return noncentral(difference / np.sqrt(pooled), share, freedom, confidence)
    quantile = (1 + confidence) / 2
    half = scipy_stats.t.ppf(quantile, freedom) * np.sqrt(share * pooled)
    if n > 1:  # Welch's interval alone is too narrow for two or three runs
        parts = variance / n, sd_theirs**2 / n_theirs
        degrees = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (n_theirs - 1))
        half = np.maximum(half, scipy_stats.t.ppf(quantile, degrees) * np.sqrt(sum(parts)))
    if n > 1 and one_draw:
        predicted = scipy_stats.t.ppf(quantile, n - 1) * np.sqrt((1 + 1 / n) * variance)
        half = np.maximum(half, predicted)
    return difference, difference - half, difference + half


def proportion(
    rows: pd.DataFrame,
    holds: str,
    by: str | None = None,
    *,
    replicate: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Share of rows where a column of 0/1 or booleans holds, with Clopper and Pearson's interval.

    With ``replicate`` it is the mean over replicates of their shares, and the interval that of as
    many trials as there are replicates: whole replicates that hold or do not are the worst case.
    ``by`` names a column whose groups' shares go into the note.
    """
    shares = averages(rows, holds, replicate)
    if shares.size == 0:
        raise TooFewError("no rows")
    low, high = clopper_pearson(shares.sum(), shares.size, confidence)
    note = ""
    if by is not None:
        counts = rows.dropna(subset=[holds]).groupby(by)[holds].agg(["sum", "count"])
        note = f"By {by}: " + ", ".join(
            f"{group}: {int(row['sum'])}/{row['count']}" for group, row in counts.iterrows()
        )
    return Estimate(float(shares.mean()), float(low), float(high), shares.size, note=note)


def clopper_pearson(count: Any, n: int, confidence: float = CONFIDENCE) -> tuple[Any, Any]:
    """Return the exact interval of a share; ``count`` need not be whole."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, alpha=1 - confidence, method="beta")
    return low, high


def value(rows: pd.DataFrame, column: str, reduce: str = "only") -> Estimate:
    """Return one number, for what is exact: a column's ``max``, ``min``, or ``only`` value.

    Raises
    ------
    UserError
        If there are several rows for ``only``, or ``reduce`` is another word.
    """
    require_known(reduce, ("max", "min", "only"), "reduce")
    numbers = rows[column].astype(float).to_numpy()
    if reduce == "only" and len(numbers) != 1:
        raise UserError(f"{len(numbers)} rows, where 'only' needs one; select it.")
    number = float({"max": np.max, "min": np.min, "only": np.max}[reduce](numbers))
    return Estimate(number, number, number, 1)


def trend(rows: pd.DataFrame, x: str, y: str, *, confidence: float = CONFIDENCE) -> Estimate:
    """Spearman's rank correlation: 1 for a rising, -1 for a falling monotone trend.

    The interval is Bonett and Wright's (2000).
    """
    from scipy import stats as scipy_stats

    points = rows[[x, y]].astype(float).dropna()
    if len(points) < 5:
        raise TooFewError("a rank correlation with an interval needs five points or more")
    result = scipy_stats.spearmanr(points[x], points[y])
    if math.isnan(result.statistic):
        raise TooFewError("a rank correlation needs values that vary")
    rho, low, high = bonett_wright(result.statistic, len(points), confidence)
    return Estimate(float(rho), float(low), float(high), len(points), float(result.pvalue))


def bonett_wright(rho: Any, n: int, confidence: float = CONFIDENCE) -> Ends:
    """Return rank correlations of ``n`` points with Bonett and Wright's interval."""
    from scipy import stats as scipy_stats

    half = scipy_stats.norm.ppf((1 + confidence) / 2) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    center = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    return rho, np.tanh(center - half), np.tanh(center + half)


def halfway(rows: pd.DataFrame, x: str, holds: str) -> Estimate:
    """Value of ``x > 0`` at which the share of rows where ``holds`` is true rises past 1/2.

    Logistic regression on log x, whose midpoint gets a profile-likelihood interval. Where the
    data separate completely, the steepness has no finite estimate but the interval still is one:
    it reaches from the last x with failures to the first without, and the estimate is its middle.
    The likelihood is maximized on a grid, over midpoints between the smallest and largest x.

    Raises
    ------
    TooFewError
        If all rows hold, or none does.
    """
    from scipy import stats as scipy_stats

    counts = rows.groupby(x)[holds].agg(["sum", "count"])
    hits, total = counts["sum"].to_numpy(dtype=float), counts["count"].to_numpy(dtype=float)
    if hits.sum() in (0, total.sum()):
        raise TooFewError("the share never passes one half")
    position = np.log(counts.index.to_numpy(dtype=float))
    middles, slopes = np.linspace(position[0], position[-1], 2001), np.geomspace(0.2, 500, 120)
    profile = np.full(len(middles), -np.inf)
    for steepness in slopes:
        logits = steepness * (position - middles[:, None])
        fits = -hits * np.logaddexp(0, -logits) - (total - hits) * np.logaddexp(0, logits)
        profile = np.maximum(profile, fits.sum(1))
    best = middles[profile > profile.max() - 1e-3]
    inside = middles[profile > profile.max() - scipy_stats.chi2.ppf(CONFIDENCE, 1) / 2]
    value, low, high = np.exp([(best[0] + best[-1]) / 2, inside[0], inside[-1]])
    return Estimate(float(value), float(low), float(high), int(total.sum()))


TESTS: dict[str, Callable[..., Estimate]] = {
    "binomial_slope": binomial_slope,
    "equivalence": equivalence,
    "mean": mean,
    "paired_difference": paired_difference,
    "proportion": proportion,
    "slope": slope,
    "trend": trend,
    "value": value,
}


def parameters(test: str) -> tuple[str, ...]:
    """Return the names of a test's arguments: what a claim may set under ``arguments``."""
    return tuple(name for name in inspect.signature(TESTS[test]).parameters if name not in GIVEN)
