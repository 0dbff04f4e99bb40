"""Tests of claims err as often as they say, and find what is there as often as they should."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from statsmodels.stats.power import TTestPower

from resnet_limits import power, stats
from resnet_limits.claims import limits, strictest
from resnet_limits.settings import build
from resnet_limits.study_files import Claim

pytestmark = pytest.mark.filterwarnings("error")


def claim(test="mean", bound=None, **changes):
    values = {"id": "c", "statement": "So.", "where": "Figure 1", "table": "t", "test": test}
    values |= {"arguments": {"value": "v"}, "bound": bound or {"above": 0.0}}
    return build(Claim, values | changes, "claims.yaml")


def characteristics(wanted, rows, reference=None, strictest=None):
    told = dict(wanted.arguments)
    if wanted.replicates:
        told["replicate"] = wanted.replicates
    if reference is not None:
        told["reference"] = reference
    confidence = limits(wanted.bound)
    estimate = stats.TESTS[wanted.test](rows, **told, confidence=confidence)
    bound = strictest or wanted.bound
    return power.characteristics(wanted, rows, estimate, reference, confidence, bound)


def standardized(n, mean=0.0, sd=1.0):
    """Return ``n`` numbers with exactly this mean and standard deviation."""
    values = np.random.default_rng(0).normal(size=n)
    return mean + sd * (values - values.mean()) / values.std(ddof=1)


# Known power


@pytest.mark.parametrize(("n", "effect"), [(3, 1.5), (5, 1.0), (9, 0.8)])
def test_power_of_a_mean_is_that_of_students_test(n, effect):
    wanted = claim(effect=effect, effect_source="planted")
    found = characteristics(wanted, pd.DataFrame({"v": standardized(n)}))
    known = TTestPower().power(effect, n, 0.05, alternative="larger")
    assert found.power == pytest.approx(known, abs=3 * math.sqrt(known * (1 - known) / 4000))
    needed = TTestPower().solve_power(effect, None, 0.05, 0.8, alternative="larger")
    assert abs(int(found.needed_n) - math.ceil(needed)) <= 1
    assert found.power_at == f"{effect:g} (planted)"


def test_table_1_of_three_runs_cannot_find_half_a_point():
    """The paper's own n: the largest difference of CIFAR-10, 0.56, at a spread of 0.4."""
    wanted = claim(bound={"below": 0.0}, effect=-0.56, effect_source="Table 1")
    found = characteristics(wanted, pd.DataFrame({"v": standardized(3, -0.5, 0.4)}))
    known = TTestPower().power(0.56 / 0.4, 3, 0.05, alternative="larger")
    assert found.power == pytest.approx(known, abs=0.025)
    assert found.power < 0.6
    assert 4 <= int(found.needed_n) <= 6


def test_power_of_a_share_is_binomial():
    rows = pd.DataFrame({"ok": [1] * 18 + [0] * 2})
    wanted = claim(
        "proportion", {"above": 0.5}, arguments={"holds": "ok"}, effect=0.8, effect_source="planted"
    )
    found = characteristics(wanted, rows)
    # The one-sided limit is above 1/2 from 15 of 20 on.
    known = sum(math.comb(20, k) * 0.8**k * 0.2 ** (20 - k) for k in range(15, 21))
    assert found.power == pytest.approx(known, abs=3 * math.sqrt(known * (1 - known) / 4000))


def test_all_of_few_cannot_show_that_nearly_all_hold():
    wanted = claim(
        "proportion", {"above": 0.9}, arguments={"holds": "ok"}, effect=1.0, effect_source="all"
    )
    found = characteristics(wanted, pd.DataFrame({"ok": [1] * 10}))
    assert (found.power, found.needed_n) == (0.0, "29")  # 0.9^29 < 0.05 < 0.9^28


def test_power_is_that_of_the_verdict_which_must_stand_at_half_the_margin():
    rows = pd.DataFrame({"v": standardized(9)})
    wanted = claim(bound={"above": 1.0}, effect=2.0, effect_source="planted")
    assert strictest(wanted).above == 1.5
    found = characteristics(wanted, rows, strictest=strictest(wanted))
    known = TTestPower().power(0.5, 9, 0.05, alternative="larger")
    assert found.power == pytest.approx(known, abs=3 * math.sqrt(known * (1 - known) / 4000))
    assert found.size == characteristics(wanted, rows).size  # of the interval at the claim's bound


@pytest.mark.parametrize(
    ("bound", "more", "ends"),
    [
        ({"below": 0.1}, {"effect": 0.0, "effect_source": "e"}, (-math.inf, 0.05)),
        ({"below": -2.0}, {}, (-math.inf, -4.0)),
        ({"above": -0.1, "below": 0.3}, {}, (0.0, 0.2)),
        ({"above": 0.0}, {}, (0.0, math.inf)),
        ({"below": -0.5, "source": "paper"}, {}, (-math.inf, -0.5)),
    ],
)
def test_the_strictest_bound_is_at_half_or_twice_the_margin(bound, more, ends):
    assert strictest(claim(bound=bound, **more)).ends == pytest.approx(ends)


def test_power_is_at_the_estimate_where_no_effect_is_named_and_says_so():
    found = characteristics(claim(), pd.DataFrame({"v": standardized(5, 2.0)}))
    assert found.power > 0.9
    assert "measured estimate" in found.power_at
    outside = characteristics(claim(), pd.DataFrame({"v": standardized(5, -2.0)}))
    assert (outside.power, outside.needed_n) == (None, "")
    assert "not within the bound" in outside.power_at


def test_an_effect_at_the_spread_of_noise_needs_more_than_is_tried():
    wanted = claim(effect=0.01, effect_source="planted")
    found = characteristics(wanted, pd.DataFrame({"v": standardized(5)}))
    assert found.needed_n == "more than 1000"


def test_fewer_than_the_claim_asks_for_decide_nothing():
    wanted = claim(effect=9.0, effect_source="planted", least_n=12)
    found = characteristics(wanted, pd.DataFrame({"v": standardized(5)}))
    assert (found.power, found.size, found.needed_n) == (0.0, 0.0, "12")


def test_the_same_claim_has_the_same_numbers():
    rows = pd.DataFrame({"v": standardized(12, 0.3)})
    assert characteristics(claim(), rows) == characteristics(claim(), rows)


# Size at the edge of the bound, on normal data

GRID = np.tile([8.0, 16.0, 32.0, 64.0], 4)
NORMAL = standardized(16)
PAIRS = pd.DataFrame(
    {
        "seed": np.tile(range(16), 2),
        "by": np.repeat(["new", "old"], 16),
        "v": np.concatenate([NORMAL + 0.3 * NORMAL[::-1], NORMAL]),
    }
)
TOLD = {"value": "v", "by": "by", "treatment": "new", "baseline": "old", "pair": ["seed"]}
REFERENCE = stats.Summary(mean=1.0, sd=0.2, n=20, least=0.5, largest=1.5)
LINE = pd.DataFrame({"x": GRID, "v": np.exp(0.1 * NORMAL) / GRID, "seed": np.arange(16) // 4})
COUNTS = pd.DataFrame({"x": GRID, "wrong": np.round(1000 / GRID), "trials": 1000})
COUNTS["wrong"] = np.random.default_rng(0).binomial(1000, 1 / GRID)
BAND = {"above": -0.5, "below": 0.5}
SIZES = {
    "mean of 3": (claim(), pd.DataFrame({"v": standardized(3)}), None),
    "mean of 8": (claim(bound={"below": 1.0}), pd.DataFrame({"v": standardized(8)}), None),
    "mean of 30, resampled": (
        claim(), pd.DataFrame({"v": np.concatenate([NORMAL, -NORMAL])}), None,
    ),
    "mean in a band": (claim(bound=BAND), pd.DataFrame({"v": standardized(8, sd=0.1)}), None),
    "replicates": (
        claim(replicate="seed"),
        pd.DataFrame({"seed": np.arange(20) // 5, "v": standardized(20)}),
        None,
    ),
    "pairs": (claim("paired_difference", arguments=TOLD), PAIRS, None),
    "pairs in deviations": (
        claim("paired_difference", {"above": -1.0, "below": 1.0},
              arguments={**TOLD, "in_standard_deviations": True}), PAIRS, None,
    ),
    "pairs in deviations, one side": (
        claim("paired_difference", {"above": 1.0},
              arguments={**TOLD, "in_standard_deviations": True}), PAIRS, None,
    ),
    "share": (
        claim("proportion", {"above": 0.5}, arguments={"holds": "ok"}),
        pd.DataFrame({"ok": [1, 0] * 15}), None,
    ),
    "share near one": (
        claim("proportion", {"above": 0.9}, arguments={"holds": "ok"}),
        pd.DataFrame({"ok": [1] * 40}), None,
    ),
    "slope": (claim("slope", {"below": -0.5}, arguments={"x": "x", "y": "v"}), LINE, None),
    "slope of few": (
        claim("slope", {"below": -0.5}, arguments={"x": "x", "y": "v"}), LINE[:4], None,
    ),
    "slopes per replicate": (
        claim("slope", {"below": -0.5}, replicate="seed",
              arguments={"x": "x", "y": "v", "per": "replicate"}), LINE, None,
    ),
    "slope of failures": (
        claim("binomial_slope", {"below": -0.5},
              arguments={"x": "x", "failures": "wrong", "trials": "trials"}), COUNTS, None,
    ),
    "trend": (
        claim("trend", arguments={"x": "x", "y": "v"}), LINE, None,
    ),
    "trend of few": (
        claim("trend", arguments={"x": "x", "y": "v"}), LINE[:6], None,
    ),
    "equivalence": (
        claim("equivalence", BAND, reference={"file": "a.csv", "select": {}, "mean": "m",
              "sd": "s", "n": "n"}), pd.DataFrame({"v": standardized(3, 1.0, 0.1)}), REFERENCE,
    ),
    "equivalence in deviations": (
        claim("equivalence", {"above": -2.0, "below": 2.0}, arguments={"value": "v",
              "unit": "pooled_sd"}, reference={"file": "a.csv", "select": {}, "mean": "m",
              "sd": "s", "n": "n"}), pd.DataFrame({"v": standardized(3, 1.0, 0.2)}), REFERENCE,
    ),
    "equivalence to one draw": (
        claim("equivalence", BAND, reference={"file": "a.csv", "select": {}, "mean": "m",
              "sd": "s", "n": "n", "one_draw": True}),
        pd.DataFrame({"v": standardized(3, 1.0, 0.2)}),
        replace(REFERENCE, one_draw=True),
    ),
    "equivalence of one": (
        claim("equivalence", BAND, reference={"file": "a.csv", "select": {}, "mean": "m",
              "sd": "s", "n": "n"}), pd.DataFrame({"v": [1.1]}), REFERENCE,
    ),
}  # fmt: skip
EXACT = ("mean of 3", "mean of 8", "mean in a band", "pairs", "slope", "slopes per replicate")


@pytest.mark.parametrize("case", SIZES)
def test_the_size_is_at_most_nominal(case):
    wanted, rows, reference = SIZES[case]
    nominal = (1 - limits(wanted.bound)) / 2
    margin = 3 * math.sqrt(nominal * (1 - nominal) / power.PLANTED)
    size = characteristics(wanted, rows, reference).size
    print(case, size)
    assert size <= nominal + margin
    if case in EXACT:
        assert size >= nominal - margin


@pytest.mark.parametrize("n", [3, 12])
def test_too_large_a_confidence_would_be_seen(n):
    """An interval that is too narrow for its n has a size above the nominal one."""
    planting = power.of_values(standardized(n), 0.6)
    low, high = planting.intervals(0.0, n, power.PLANTED, np.random.default_rng(0))
    assert power.share_inside(low, high, claim().bound) > 0.15


# What is planted, and that planted tables are judged as single ones


@pytest.mark.parametrize("n", [4, 15])
def test_residuals_have_the_measured_spread(n):
    values = standardized(n, 3.0, 0.5)
    drawn = power.residuals(values, (4000, n), np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.std() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("n", [4, 15])
def test_joint_residuals_have_the_measured_covariance(n):
    values = np.stack([standardized(n), np.random.default_rng(1).normal(size=n)])
    drawn = power.joint_residuals(values, (40000,), np.random.default_rng(0))
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(values), atol=0.05)


def test_many_regressions_of_failures_are_the_single_ones():
    random = np.random.default_rng(0)
    counts = random.binomial(100, random.beta(5, 5 * GRID / 2, (6, 16)))
    counts[0, -4:] = 0
    slope, low, high = power.failure_ends(np.log(GRID), counts / 100, np.full(16, 100), 0.9)
    for row in range(6):
        rows = pd.DataFrame({"x": GRID, "wrong": counts[row], "trials": 100})
        single = stats.binomial_slope(rows, "x", "wrong", "trials", confidence=0.9)
        found = slope[row], low[row], high[row]
        assert found == pytest.approx((single.value, single.low, single.high), rel=1e-5)


def test_many_rank_correlations_are_the_single_ones():
    y = np.random.default_rng(0).normal(size=(5, 16))
    rho, low, high = power.rank_ends(GRID, y, 0.9)
    for row in range(5):
        single = stats.trend(pd.DataFrame({"x": GRID, "y": y[row]}), "x", "y", confidence=0.9)
        assert rho[row] == pytest.approx(spearmanr(GRID, y[row]).statistic)
        assert (low[row], high[row]) == pytest.approx((single.low, single.high))


@pytest.mark.parametrize("case", ["slope", "slope of failures", "trend", "equivalence"])
def test_planted_tables_center_on_the_truth(case):
    wanted, rows, reference = SIZES[case]
    planting = power.plantings(wanted, rows, reference, 0.95)
    truth = 0.4 if case in ("trend", "equivalence") else -0.7
    low, high = planting.intervals(truth, 20, 2000, np.random.default_rng(0))
    assert np.mean((low + high) / 2) == pytest.approx(truth, abs=0.08)


def test_points_of_any_number_cover_the_grid():
    position = np.array([1.0, 2.0, 3.0, 4.0])
    assert power.spread_over(position, 2).tolist() == [1, 3]
    assert power.spread_over(position, 8).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("threshold", [1, 2, 3, 17, 64, 100])
def test_the_least_number_is_found(threshold):
    assert power.least(lambda n: n >= threshold, 1, 100) == threshold
    assert power.least(lambda n: n > 100, 1, 100) is None
