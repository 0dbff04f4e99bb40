"""Planted values are found again, and intervals cover at the stated rate."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.special

from resnet_limits import stats
from resnet_limits.errors import UserError


def power_law(slope, noise, seed=0, sizes=(32, 64, 128, 256, 512), seeds=10):
    random = np.random.default_rng(seed)
    n = np.repeat(sizes, seeds)
    error = 3.0 * n.astype(float) ** slope * np.exp(noise * random.normal(size=len(n)))
    return pd.DataFrame({"n": n, "error": error, "seed": np.tile(range(seeds), len(sizes))})


def test_slope_recovers_a_planted_rate():
    estimate = stats.slope(power_law(-0.7, 0.0), "n", "error")
    assert estimate.value == pytest.approx(-0.7)
    assert estimate.high - estimate.low < 1e-6
    assert estimate.n == 50


def test_slope_of_means_has_one_point_per_size():
    assert stats.slope(power_law(-0.7, 0.1), "n", "error", mean_over="seed").n == 5


def test_slope_intervals_cover():
    hits = 0
    for seed in range(200):
        estimate = stats.slope(power_law(-0.7, 0.3, seed), "n", "error")
        hits += estimate.low < -0.7 < estimate.high
    assert 180 <= hits <= 199  # 95 % of 200, give or take three standard deviations


def test_slope_says_how_many_points_have_no_logarithm():
    rows = power_law(-0.7, 0.0)
    rows.loc[[0, 7], "error"] = 0.0
    estimate = stats.slope(rows, "n", "error")
    assert estimate.n == 48
    assert estimate.note.startswith("2 points")


@pytest.mark.parametrize(
    "rows", [power_law(-1, 0, sizes=(32, 64), seeds=1), power_law(-1, 0, sizes=(32,))]
)
def test_slope_refuses_too_few_points(rows):
    with pytest.raises(stats.TooFewError):
        stats.slope(rows, "n", "error")


def overdispersed(seed, sizes=(16, 32, 64, 128, 256), seeds=10, trials=1000):
    random = np.random.default_rng(seed)
    n = np.repeat(sizes, seeds)
    mean = 4.0 * n**-0.8
    # Runs differ by more than their test points do: a beta-binomial.
    probability = random.beta(30 * mean, 30 * (1 - mean))
    wrong = random.binomial(trials, probability)
    return pd.DataFrame({"n": n, "wrong": wrong, "trials": trials})


def test_binomial_slope_recovers_a_planted_rate_without_bias():
    estimates = [
        stats.binomial_slope(overdispersed(seed), "n", "wrong", "trials") for seed in range(60)
    ]
    values = np.array([estimate.value for estimate in estimates])
    assert abs(values.mean() + 0.8) < 3 * values.std() / np.sqrt(60)


def test_binomial_slope_intervals_allow_for_overdispersion():
    estimates = [
        stats.binomial_slope(overdispersed(seed), "n", "wrong", "trials") for seed in range(100)
    ]
    assert sum(estimate.low < -0.8 < estimate.high for estimate in estimates) >= 86


def test_binomial_slope_takes_runs_without_a_single_error():
    rows = overdispersed(0)
    rows.loc[rows["n"] == 256, "wrong"] = 0
    estimate = stats.binomial_slope(rows, "n", "wrong", "trials")
    assert np.isfinite([estimate.value, estimate.low, estimate.high]).all()
    assert estimate.value < -0.8


def test_paired_difference_removes_what_pairs_share():
    random = np.random.default_rng(0)
    shared = 10 * random.normal(size=12)
    rows = pd.concat(
        pd.DataFrame(
            {
                "seed": range(12),
                "method": method,
                "error": shared + shift + 0.01 * random.normal(size=12),
            }
        )
        for method, shift in (("old", 0.0), ("new", -0.5))
    )
    estimate = stats.paired_difference(rows, "error", "method", "new", "old", ["seed"])
    assert estimate.n == 12
    assert estimate.low < -0.5 < estimate.high
    assert estimate.high - estimate.low < 0.05
    scaled = stats.paired_difference(rows, "error", "method", "new", "old", ["seed"], True)
    spread = rows.query("method == 'old'")["error"].std()
    assert scaled.value == pytest.approx(estimate.value / spread)


def test_paired_difference_needs_both_levels():
    rows = pd.DataFrame({"seed": [0, 1], "method": "old", "error": [1.0, 2.0]})
    with pytest.raises(stats.TooFewError, match="new"):
        stats.paired_difference(rows, "error", "method", "new", "old", ["seed"])


def test_proportion_is_clopper_and_pearsons():
    rows = pd.DataFrame({"ok": [True] * 8 + [False] * 2, "n": [1] * 5 + [2] * 5})
    estimate = stats.proportion(rows, "ok", by="n")
    assert estimate.value == 0.8
    assert (estimate.low, estimate.high) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert estimate.note == "By n: 1: 5/5, 2: 3/5"


def test_trend_of_a_rising_sequence_is_one():
    rows = pd.DataFrame({"x": range(20), "y": np.exp(np.arange(20.0))})
    assert stats.trend(rows, "x", "y").value == pytest.approx(1.0)
    rows["y"] = np.random.default_rng(0).normal(size=20)
    flat = stats.trend(rows, "x", "y")
    assert flat.low < 0 < flat.high


def test_means_are_students():
    rows = pd.DataFrame({"g": ["a"] * 4 + ["b"], "v": [1.0, 2.0, 3.0, 4.0, 7.0]})
    table = stats.means(rows, "g", "v").set_index("g")
    assert table.loc["a", "mean"] == 2.5
    assert table.loc["a", "high"] == pytest.approx(2.5 + 3.1824 * 0.6455, abs=1e-3)
    assert np.isnan(table.loc["b", "high"])
    mean = stats.mean(rows[rows["g"] == "a"], "v")
    assert (mean.low, mean.high) == pytest.approx(tuple(table.loc["a", ["low", "high"]]))


def test_intervals_of_shares_stay_within_0_and_1_and_hold_the_mean():
    rows = pd.DataFrame(
        {"g": np.repeat([0, 1, 2], 3), "share": [98.0, 100, 100, 0, 0, 3, 49, 50, 51]}
    )
    student = stats.means(rows, "g", "share")
    assert student["high"][0] > 100 and student["low"][1] < 0
    found = stats.share_means(rows, "g", "share", whole=100)
    assert (found["low"] > 0).all() and (found["high"] < 100).all()
    assert (found["low"] < found["mean"]).all() and (found["mean"] < found["high"]).all()
    pd.testing.assert_series_equal(found.loc[2], student.loc[2], rtol=2e-3)


def test_shares_that_do_not_vary_have_the_interval_of_their_trials():
    rows = pd.DataFrame({"g": 0, "share": [0.0, 0.0], "trials": 50})
    found = stats.share_means(rows, "g", "share", trials="trials").loc[0]
    # Wilson's upper end for 0 of n is z^2 / (n + z^2).
    assert found["low"] == pytest.approx(0, abs=1e-12)
    assert found["high"] == pytest.approx(1.96**2 / (100 + 1.96**2), rel=1e-4)
    assert stats.share_means(rows, "g", "share")[["low", "high"]].isna().all(axis=None)
    alone = stats.share_means(rows[:1], "g", "share", trials="trials")
    assert alone[["low", "high"]].isna().all(axis=None)  # one run says nothing of the spread


def test_intervals_of_shares_cover_also_where_seeds_differ():
    random = np.random.default_rng(0)
    chance = random.beta(2, 38, size=(400, 10))  # a mean of 0.05, and seeds that differ
    share = random.binomial(200, chance) / 200
    rows = pd.DataFrame(
        {"sample": np.repeat(np.arange(400), 10), "share": share.ravel(), "trials": 200}
    )
    found = stats.share_means(rows, "sample", "share", trials="trials")
    hits = ((found["low"] < 0.05) & (found["high"] > 0.05)).sum()
    assert 360 <= hits <= 396  # 95 % of 400, a little less or more for so small a share


# Averages


def crossed(factor):
    """Two methods whose errors differ by a factor, and other measurements of every row."""
    one = power_law(-0.7, 0.1).assign(method="one")
    other = one.assign(method="other", error=factor * one["error"])
    rows = pd.concat([one, other], ignore_index=True)
    return rows.assign(loss=rows["error"] ** 2, diverged=rows["seed"] == 3, dataset="planted")


def test_averages_run_over_the_named_column_alone():
    estimate = stats.slope(crossed(8.0), "n", "error", mean_over="seed")
    assert estimate.n == 10
    # Over seeds and methods together there would be no residual between the methods.
    assert estimate.high - estimate.low > 0.5
    for method, rows in crossed(8.0).groupby("method"):
        alone = stats.slope(rows, "n", "error", mean_over="seed")
        assert alone.n == 5, method
        assert alone.value == pytest.approx(estimate.value)


def test_average_of_one_condition_is_the_mean_at_each_size():
    rows = power_law(-0.7, 0.3).assign(wrong=lambda rows: (1000 * rows["error"]).astype(int))
    means = rows.groupby("n", as_index=False)["error"].mean()
    by_hand = stats.slope(means, "n", "error")
    assert stats.slope(rows, "n", "error", mean_over="seed") == by_hand
    assert stats.slope(rows.sample(frac=0.8, random_state=0), "n", "error", mean_over="seed").n == 5


@pytest.mark.parametrize("column", ["sed", "n", "banana"])
def test_average_over_an_unknown_column_is_refused(column):
    with pytest.raises(UserError, match=f"mean_over: column '{column}'.*seed"):
        stats.slope(power_law(-0.7, 0.1), "n", "error", mean_over=column)


def test_average_over_a_column_that_leaves_rows_alike_is_refused():
    twice = pd.concat([power_law(-0.7, 0.1, seed) for seed in (0, 1)])
    with pytest.raises(UserError, match="averaged too"):
        stats.slope(twice, "n", "error", mean_over="seed")


# Columns of tables


def test_line_columns_are_the_slope():
    rows = power_law(-0.7, 0.1)
    names = ["slope", "low", "high", "p_value", "points", "intercept"]
    found = stats.line_columns(rows, "n", "error", names)
    slope = stats.slope(rows, "n", "error")
    expected = [slope.value, slope.low, slope.high, slope.p_value, slope.n]
    assert list(found.values())[:-1] == expected
    assert found["intercept"] == pytest.approx(np.log(3.0), abs=0.2)


def test_line_columns_without_a_line_are_not_numbers():
    found = stats.line_columns(power_law(-1, 0, sizes=(32,)), "n", "error", ["slope", "points"])
    assert np.isnan(found["slope"])
    assert found["points"] == 0


DECAY = ["first_step", "last_step", "rate", "falls", "linear"]


def test_a_planted_decay_is_recovered():
    steps = np.arange(5, 100, 5)
    found = stats.decay_columns(pd.DataFrame({"step": steps, "loss": 3 * 0.9**steps}), DECAY)
    assert found == {
        "first_step": 5,
        "last_step": 95,
        "rate": pytest.approx(-np.log(0.9)),
        "falls": True,
        "linear": True,
    }
    slow = stats.decay_columns(pd.DataFrame({"step": steps, "loss": steps**-0.1}), DECAY)
    assert slow["falls"]
    assert not slow["linear"]


@pytest.mark.parametrize("losses", [[3.0, 2.0], [3.0, 2.0, 1.0, np.inf, np.nan]])
def test_a_short_or_diverged_decay_has_no_rate(losses):
    rows = pd.DataFrame({"step": range(len(losses)), "loss": losses})
    found = stats.decay_columns(rows, DECAY)
    assert np.isnan(found["rate"])
    assert not found["falls"]
    assert not found["linear"]


# The threshold


def planted(midpoint, steepness, draws, seed=0):
    source = np.random.default_rng(seed)
    widths = np.repeat(2.0 ** np.arange(11), draws)
    share = scipy.special.expit(steepness * np.log(widths / midpoint))
    return pd.DataFrame({"width": widths, "converged": source.random(len(widths)) < share})


@pytest.mark.slow
def test_a_planted_threshold_is_recovered_with_its_interval():
    covered = 0
    for seed in range(40):
        found = stats.halfway(planted(20.0, 2.0, 20, seed), "width", "converged")
        assert found.value == pytest.approx(20.0, rel=0.6)
        covered += found.low <= 20 <= found.high
    assert covered >= 34


def test_a_separated_threshold_has_the_bracket_as_interval():
    found = stats.halfway(planted(20.0, 1e3, 10), "width", "converged")
    assert found.value == pytest.approx(math.sqrt(16 * 32), rel=0.01)
    assert found.low == pytest.approx(16, rel=0.02)
    assert found.high == pytest.approx(32, rel=0.02)


def test_no_threshold_without_both_outcomes():
    rows = planted(20.0, 1e3, 10)
    for value in (True, False):
        with pytest.raises(stats.TooFewError):
            stats.halfway(rows.assign(converged=value), "width", "converged")


def test_parameters_are_what_a_claim_may_give_as_arguments():
    assert stats.parameters("mean") == ("value",)
    assert stats.parameters("slope") == ("x", "y", "log", "mean_over", "per")
    assert not any(set(stats.GIVEN) & set(stats.parameters(test)) for test in stats.TESTS)


# Replicates


def replicated(seeds=6, rows=20, slope=-0.7, spread=0.1, seed=0):
    """Seeds whose slopes differ, and rows of one seed that do not."""
    random = np.random.default_rng(seed)
    x = np.tile(np.geomspace(1, 100, rows), seeds)
    exponent = np.repeat(slope + spread * random.normal(size=seeds), rows)
    return pd.DataFrame({"seed": np.repeat(range(seeds), rows), "x": x, "y": 2 * x**exponent})


def test_rows_of_a_replicate_are_averaged_first():
    rows = replicated()
    means = rows.groupby("seed")["y"].mean()
    estimate = stats.mean(rows, "y", replicate=["seed"])
    assert estimate.n == 6
    assert estimate == stats.mean(means.to_frame(), "y")
    assert stats.mean(rows, "y").n == 120


def test_replicates_can_be_told_apart_by_several_columns():
    rows = replicated().assign(half=lambda rows: rows.groupby("seed").cumcount() < 10)
    assert stats.mean(rows, "y", replicate=["seed", "half"]).n == 12


def test_slopes_per_replicate_have_students_interval():
    rows = replicated()
    slopes = [stats.slope(group, "x", "y").value for _, group in rows.groupby("seed")]
    estimate = stats.slope(rows, "x", "y", per="replicate", replicate=["seed"])
    by_hand = stats.mean(pd.DataFrame({"slope": slopes}), "slope")
    assert estimate.n == 6
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (by_hand.value, by_hand.low, by_hand.high)
    )


def test_a_slope_per_replicate_needs_two_points_of_each():
    rows = pd.DataFrame({"seed": [0, 0, 1, 1], "x": [1, 2, 3, 3], "y": [1.0, 2.0, 3.0, 4.0]})
    with pytest.raises(stats.TooFewError, match="two points"):
        stats.slope(rows, "x", "y", per="replicate", replicate=["seed"])


def test_a_share_of_replicates_that_hold_or_do_not_counts_replicates():
    rows = pd.DataFrame({"seed": np.repeat(range(10), 5), "ok": np.repeat([1] * 8 + [0] * 2, 5)})
    whole = stats.proportion(rows, "ok", replicate=["seed"])
    assert whole.n == 10
    assert (whole.low, whole.high) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert stats.proportion(rows, "ok").high < whole.high


def test_pairs_are_averaged_within_a_replicate():
    random = np.random.default_rng(0)
    rows = pd.DataFrame(
        [
            {"seed": seed, "layers": layers, "model": model, "error": random.normal()}
            for seed in range(4)
            for layers in (5, 10)
            for model in ("a", "b")
        ]
    )
    told = {"value": "error", "by": "model", "treatment": "a", "baseline": "b"}
    estimate = stats.paired_difference(rows, **told, pair=["seed", "layers"], replicate=["seed"])
    assert estimate.n == 4
    means = rows.groupby(["seed", "model"], as_index=False)["error"].mean()
    by_hand = stats.paired_difference(means, **told, pair=["seed"])
    assert (estimate.value, estimate.low) == pytest.approx((by_hand.value, by_hand.low))


# Closed forms, limits and published runs


def test_the_closed_form_of_a_line_is_statsmodels():
    random = np.random.default_rng(0)
    x, y = random.normal(size=9), random.normal(size=(5, 9))
    slope, low, high = stats.line_ends(x, y, 0.9)
    for row in range(5):
        line = stats.fit_line(x, y[row], 0.9).slope
        assert (slope[row], low[row], high[row]) == pytest.approx((line.value, line.low, line.high))


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ("mean", {"value": "y"}),
        ("slope", {"x": "x", "y": "y"}),
        ("trend", {"x": "x", "y": "y"}),
        ("proportion", {"holds": "ok"}),
        ("binomial_slope", {"x": "x", "failures": "wrong", "trials": "trials"}),
    ],
)
def test_a_lower_confidence_narrows_the_interval(test, told):
    random = np.random.default_rng(0)
    rows = replicated(3, 8).assign(ok=random.random(24) < 0.5, trials=50)
    rows["y"] *= np.exp(0.1 * random.normal(size=24))
    rows["wrong"] = random.binomial(50, 0.5 * rows["x"].astype(float) ** -0.3)
    wide, narrow = (stats.TESTS[test](rows, **told, confidence=c) for c in (0.95, 0.9))
    assert wide.value == narrow.value
    assert wide.low < narrow.low < narrow.high < wide.high


def test_exact_values_are_one_number():
    rows = pd.DataFrame({"v": [1.0, 3.0, 2.0]})
    largest = stats.value(rows, "v", "max")
    assert (largest.value, largest.low, largest.high) == (3.0, 3.0, 3.0)
    assert stats.value(rows, "v", "min").value == 1.0
    assert stats.value(rows[1:2], "v").value == 3.0
    with pytest.raises(UserError, match="3 rows"):
        stats.value(rows, "v")


def test_equivalence_is_welchs():
    from scipy.stats import ttest_ind_from_stats

    ours = pd.DataFrame({"v": [1.0, 1.4, 1.9]})
    # Theirs vary far less than ours, so that Welch's interval is the wider one.
    reference = stats.Summary(mean=1.2, sd=0.03, n=20, least=0.9, largest=1.5)
    estimate = stats.equivalence(ours, "v", reference=reference)
    values = ours["v"]
    welch = ttest_ind_from_stats(values.mean(), values.std(), 3, 1.2, 0.03, 20, equal_var=False)
    # The interval ends at 0 exactly at the p-value's confidence.
    edge = stats.equivalence(ours, "v", reference=reference, confidence=1 - welch.pvalue)
    assert estimate.value == pytest.approx(values.mean() - 1.2)
    assert edge.low == pytest.approx(0, abs=1e-9)
    assert "not all within theirs, 0.9 to 1.5" in estimate.note


def test_a_published_mean_of_one_draw_counts_as_one_run():
    from scipy.stats import t as student

    ours = pd.DataFrame({"v": [1.0, 1.4, 1.9]})
    reference = stats.Summary(mean=1.2, sd=0.03, n=20, least=0.9, largest=1.5, one_draw=True)
    estimate = stats.equivalence(ours, "v", reference=reference)
    half = student.ppf(0.975, 2) * ours["v"].std() * math.sqrt(1 + 1 / 3)
    assert estimate.high - estimate.value == pytest.approx(half)


def test_one_run_is_compared_by_the_published_spread():
    reference = stats.Summary(mean=1.0, sd=0.1, n=10, least=0.8, largest=1.2)
    one = stats.equivalence(pd.DataFrame({"v": [1.05]}), "v", reference=reference)
    half = 2.262157 * 0.1 * math.sqrt(1 + 1 / 10)
    assert (one.low, one.high) == pytest.approx((0.05 - half, 0.05 + half), abs=1e-6)
    assert one.note.startswith("Our runs, 1.05 to 1.05, are within theirs")
    scaled = stats.equivalence(pd.DataFrame({"v": [1.05]}), "v", "pooled_sd", reference=reference)
    assert scaled.value == pytest.approx(0.5)


def test_a_unit_of_few_observations_has_no_finite_interval():
    ratio, low, high = stats.fieller(np.array(1.0), 0.1, 2)
    assert (ratio, low, high) == (1.0, -np.inf, np.inf)


def test_a_noncentral_interval_ends_where_the_distribution_says():
    from scipy.stats import nct

    ratio, low, high = stats.noncentral(0.8, 0.2, 20, 0.9)
    error = math.sqrt(0.2)
    assert nct.sf(ratio / error, 20, low / error) == pytest.approx(0.05, abs=0.003)
    assert nct.cdf(ratio / error, 20, high / error) == pytest.approx(0.05, abs=0.003)
