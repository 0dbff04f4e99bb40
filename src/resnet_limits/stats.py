"""Estimates with intervals: every test that a claim may ask for, by name.

Each takes rows of a tidy table and returns an `Estimate`; the numbers come from statsmodels and
scipy. All intervals are at 95 %.
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
LINEAR = 0.9  # r^2 from which a decay is called linear on the log axis


class TooFewError(ValueError):
    """Raised where the rows are too few, or too alike, for an interval; the text says why."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes
    ----------
    value, low, high
        Estimate and ends of the interval.
    n
        Number of observations.
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
class Line:
    """A least-squares line ``y = intercept + slope x``."""

    slope: Estimate
    intercept: float
    standard_error: float
    r_squared: float


def fit_line(x: ArrayLike, y: ArrayLike) -> Line:
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
    low, high = fit.conf_int(1 - CONFIDENCE)[1]
    slope = Estimate(fit.params[1], low, high, int(finite.sum()), float(fit.pvalues[1]))
    with np.errstate(invalid="ignore"):  # equal values have no r^2
        return Line(slope, float(fit.params[0]), float(fit.bse[1]), float(fit.rsquared))


def slope(
    rows: pd.DataFrame, x: str, y: str, log: str = "both", mean_over: str | None = None
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

    Raises
    ------
    UserError
        If there is no column ``mean_over``, or rows that differ otherwise would be averaged.
    TooFewError
        With fewer than three points, or one ``x`` only.
    """
    line, dropped = log_line(rows, x, y, log, mean_over)
    note = f"{dropped} points with no logarithm left out" if dropped else ""
    return replace(line.slope, note=note)


def log_line(
    rows: pd.DataFrame, x: str, y: str, log: str = "both", mean_over: str | None = None
) -> tuple[Line, int]:
    """Fit what `slope` reports; also return how many points had no logarithm."""
    points = rows if mean_over is None else _averaged(rows, x, y, mean_over)
    horizontal, vertical = points[x].astype(float), points[y].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        horizontal = np.log(horizontal) if log in ("both", "x") else horizontal
        vertical = np.log(vertical) if log in ("both", "y") else vertical
    return fit_line(horizontal, vertical), int((~np.isfinite(vertical)).sum())


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


def binomial_slope(rows: pd.DataFrame, x: str, failures: str, trials: str) -> Estimate:
    """Slope of log failure probability over log ``x``.

    Binomial regression with log link, which needs no special case for no failures at all. The
    dispersion is estimated (Pearson), since runs differ by more than their test points do.
    """
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
    low, high = fit.conf_int(1 - CONFIDENCE)[1]
    return Estimate(fit.params[1], low, high, len(rows), float(fit.pvalues[1]))


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


def mean(rows: pd.DataFrame, value: str) -> Estimate:
    """Mean of a column, with Student's interval."""
    return _mean(rows[value].astype(float).dropna().to_numpy())


def _mean(values: np.ndarray) -> Estimate:
    from scipy import stats as scipy_stats

    if len(values) < 2:
        raise TooFewError("an interval needs two observations or more")
    center, spread = float(values.mean()), float(scipy_stats.sem(values))
    if spread == 0:
        return Estimate(center, center, center, len(values))
    low, high = scipy_stats.t.interval(CONFIDENCE, len(values) - 1, center, spread)
    p_value = float(scipy_stats.ttest_1samp(values, 0.0).pvalue)
    return Estimate(center, float(low), float(high), len(values), p_value)


def paired_difference(
    rows: pd.DataFrame,
    value: str,
    by: str,
    treatment: object,
    baseline: object,
    pair: Sequence[str],
    in_standard_deviations: bool = False,
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
        Give the difference in units of the baseline's standard deviation over pairs.
    """
    wide = rows.pivot_table(index=list(pair), columns=by, values=value)
    for level in (treatment, baseline):
        if level not in wide:
            raise TooFewError(f"no rows with {by} = {level}")
    both = wide[[treatment, baseline]].dropna()
    unit = float(both[baseline].std()) if in_standard_deviations else 1.0
    if unit == 0 or math.isnan(unit):
        raise TooFewError("the baseline does not vary, so its standard deviation is no unit")
    return _mean(((both[treatment] - both[baseline]) / unit).to_numpy())


def proportion(rows: pd.DataFrame, holds: str, by: str | None = None) -> Estimate:
    """Share of rows where a column of 0/1 or booleans holds, with Wilson's interval.

    ``by`` names a column whose groups' shares go into the note.
    """
    from statsmodels.stats.proportion import proportion_confint

    observed = rows.dropna(subset=[holds])
    if observed.empty:
        raise TooFewError("no rows")
    count, n = int(observed[holds].sum()), len(observed)
    low, high = proportion_confint(count, n, alpha=1 - CONFIDENCE, method="wilson")
    note = ""
    if by is not None:
        shares = observed.groupby(by)[holds].agg(["sum", "count"])
        note = f"by {by}: " + ", ".join(
            f"{group}: {int(row['sum'])}/{row['count']}" for group, row in shares.iterrows()
        )
    return Estimate(count / n, float(low), float(high), n, note=note)


def trend(rows: pd.DataFrame, x: str, y: str) -> Estimate:
    """Spearman's rank correlation: 1 for a rising, -1 for a falling monotone trend.

    The interval is Bonett and Wright's (2000).
    """
    from scipy import stats as scipy_stats

    pairs = rows[[x, y]].astype(float).dropna()
    if len(pairs) < 5:
        raise TooFewError("a rank correlation with an interval needs five points or more")
    result = scipy_stats.spearmanr(pairs[x], pairs[y])
    rho, n = float(result.statistic), len(pairs)
    if math.isnan(rho):
        raise TooFewError("a rank correlation needs values that vary")
    half = scipy_stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    center = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    low, high = math.tanh(center - half), math.tanh(center + half)
    return Estimate(rho, low, high, n, float(result.pvalue))


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
    "halfway": halfway,
    "mean": mean,
    "paired_difference": paired_difference,
    "proportion": proportion,
    "slope": slope,
    "trend": trend,
}


def parameters(test: str) -> list[str]:
    """Return the names of a test's arguments, without ``rows``: what a claim may set."""
    return [name for name in inspect.signature(TESTS[test]).parameters if name != "rows"]
