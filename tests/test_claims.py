"""A verdict follows from the interval and the bound alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from resnet_limits.analysis import make_table
from resnet_limits.claims import (
    VERDICTS,
    Verdict,
    decide,
    describe_bound,
    doubled,
    holm,
    judge,
    judge_study,
    limits,
    read_reference,
    read_verdicts,
    standing,
)
from resnet_limits.errors import UserError
from resnet_limits.layout import Layout
from resnet_limits.report import Section, claims_table, multiplicity
from resnet_limits.settings import build, to_json
from resnet_limits.spec import load_study
from resnet_limits.stats import TESTS, Estimate
from resnet_limits.study_files import Bound, Claim

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("low", "high", "bound", "verdict"),
    [
        (-1.0, -0.6, {"below": -0.5}, "reproduced"),
        (-1.0, -0.4, {"below": -0.5}, "inconclusive"),
        (-0.4, -0.1, {"below": -0.5}, "not reproduced"),
        (0.1, 0.2, {"above": 0}, "reproduced"),
        (-0.2, -0.1, {"above": 0}, "not reproduced"),
        (-0.5, 0.5, {"above": -1, "below": 1}, "reproduced"),
        (0.5, 1.5, {"above": -1, "below": 1}, "inconclusive"),
        (1.1, 1.5, {"above": -1, "below": 1}, "not reproduced"),
        (float("nan"), 1.0, {"above": 0}, "inconclusive"),
    ],
)
def test_interval_decides(low, high, bound, verdict):
    assert decide(Estimate((low + high) / 2, low, high, 10), Bound(**bound))[0] == verdict


def test_too_few_observations_are_inconclusive():
    estimate = Estimate(1, 0.9, 1.1, 4)
    assert decide(estimate, Bound(above=0), least_n=5)[0] == "inconclusive"
    assert decide(estimate, Bound(above=0), least_n=4)[0] == "reproduced"


def claim(**changes):
    values = {
        "id": "c",
        "statement": "Most hold.",
        "where": "Figure 1",
        "table": "t",
        "test": "proportion",
        "arguments": {"holds": "ok"},
        "bound": {"above": 0.5, "source": "paper: most"},
    }
    return build(Claim, values | changes, "claims.yaml")


def table():
    return pd.DataFrame(
        {
            "ok": [True] * 30,
            "kind": ["a"] * 30,
            "diverged": [False] * 28 + [True] * 2,
            "dataset": "toy",
            "protocol": "paper",
            "departures": "",
        }
    )


def test_verdict_carries_all_that_a_reader_needs():
    result = judge(claim(), table(), "quick")
    assert result.verdict == "reproduced"
    assert result.n == 30
    assert result.interval[0] < 1.0 == result.estimate
    assert result.bound == "above 0.5 (paper: most)"
    assert result.test == "proportion(holds=ok), 95% one-sided limits"
    assert result.protocol == "paper"
    assert result.power == 1.0
    assert 0.02 < result.size <= 0.06
    assert result.needed_n == "5"  # 1/2^5 < 0.05 < 1/2^4
    assert result.p_value == pytest.approx(0.5**30, abs=1e-8)
    assert result.data == "toy; scale quick"
    assert "2 of 30" in result.note


def test_an_unfit_data_set_is_not_tested_at_any_scale():
    unfit = claim(not_tested_on={"digits": "a stand-in"})
    verdict = judge(unfit, table().assign(dataset="digits"), "laptop")
    assert (verdict.verdict, verdict.why, verdict.n) == ("not tested", "a stand-in", 0)
    assert judge(unfit, table().assign(dataset="cifar10"), "smoke").verdict == "reproduced"


def test_no_rows_are_not_tested():
    assert judge(claim(select={"kind": "b"}), table(), "quick").verdict == "not tested"
    empty = judge(claim(), table()[:0], "quick")
    assert (empty.verdict, empty.why) == (
        "not tested",
        "nothing that it needs was run at scale quick",
    )


# Protocols


def at(protocol, departures):
    return table().assign(protocol=["paper"] * 20 + [protocol] * 10, departures=departures)


def test_a_reduced_run_cannot_decide_a_claim():
    rows = at("reduced", "epochs 8")
    found = judge(claim(), rows, "laptop")
    assert (found.verdict, found.protocol, found.n) == ("not tested", "reduced", 0)
    assert found.why == "not the paper's protocol but reduced: epochs 8"
    check = judge(claim(kind="check"), rows, "laptop")
    assert (check.verdict, check.protocol) == ("reproduced", "reduced")
    assert judge(claim(truncated=True), rows, "laptop").verdict == "not tested"


def test_a_truncated_run_decides_claims_that_allow_for_it():
    rows = at("truncated", "stop_after 5")
    assert judge(claim(), rows, "laptop").why.endswith("truncated: stop_after 5")
    found = judge(claim(truncated=True), rows, "laptop")
    assert (found.verdict, found.protocol) == ("reproduced", "truncated")


def changed(experiment="resnet20", study="sorted_tau", **changes):
    run = next(load_study(study).runs("paper", experiment))
    return load_study(study).protocol_of(experiment, to_json(run.settings) | changes)


def test_the_protocol_of_a_run_is_found_from_its_settings():
    assert changed() == ("paper", "")
    assert changed(seed=99) == ("paper", "")  # any seed is as good as another
    assert changed(network="resnet32") == ("reduced", "network resnet32")  # not in this grid
    assert changed(stop_after=5) == ("truncated", "stop_after 5")
    assert changed(stop_after=5, epochs=8) == ("reduced", "epochs 8, stop_after 5")
    assert changed(schedule={"kind": "cosine"}) == ("reduced", "schedule other")
    assert changed(unknown=1) == ("reduced", "unknown 1")


def test_points_of_an_axis_may_be_fewer_and_not_others():
    assert changed("rate", "two_spirals", n_train=[32, 64])[0] == "paper"
    assert changed("rate", "two_spirals", n_train=[32, 48])[0] == "reduced"
    assert changed("rate", "two_spirals", probes=3, boundary_n=[32])[0] == "paper"


def test_missing_settings_are_departures():
    study = load_study("two_spirals")
    settings = to_json(next(study.runs("paper", "rate")).settings)
    del settings["noise"]
    assert study.protocol_of("rate", settings) == ("reduced", "noise other")


# Limits, exact numbers and doubts


def numbers(*values, **columns):
    rows = pd.DataFrame({"v": values, "dataset": "toy"})
    return rows.assign(**columns)


def about(bound, test="mean", told=None, **changes):
    return claim(test=test, arguments=told or {"value": "v"}, bound=bound, **changes)


def test_one_side_is_tested_one_sided():
    # The two-sided 95 % interval of this sample holds 0, the one-sided limit does not.
    sample = numbers(0.2, 1.0, 1.8, -0.1, 1.1)
    one = judge(about({"above": 0}), sample, "paper")
    assert (one.verdict, limits(Bound(above=0))) == ("reproduced", pytest.approx(0.9))
    two = judge(about({"above": 0, "below": 9, "source": "paper"}), sample, "paper")
    assert (two.verdict, limits(Bound(above=0, below=9))) == ("inconclusive", 0.95)
    assert two.interval[0] < 0 < one.interval[0]


def test_exact_numbers_are_decided_alone():
    wanted = about(
        {"below": 4, "source": "paper"}, "value", {"column": "v", "reduce": "max"}, exact=True
    )
    found = judge(wanted, numbers(1.0, 3.0), "paper")
    assert (found.verdict, found.estimate, found.why) == (
        "reproduced",
        3.0,
        "the number is below 4",
    )
    assert (found.interval, found.n, found.power, found.p_value) == (None, 0, None, None)
    assert found.sensitivity == "bounds above 3"
    assert judge(wanted, numbers(4.0), "paper").verdict == "not reproduced"
    assert judge(wanted, numbers(float("nan")), "paper").verdict == "inconclusive"


@pytest.mark.parametrize(
    ("bound", "interval", "verdict", "stands"),
    [
        ({"above": 1}, (2, 3), "reproduced", (-math.inf, 2)),
        ({"above": 4}, (2, 3), "not reproduced", (3, math.inf)),
        ({"above": 2.5}, (2, 3), "inconclusive", (2, 3)),
        ({"below": 4}, (2, 3), "reproduced", (3, math.inf)),
        ({"below": 1}, (2, 3), "not reproduced", (-math.inf, 2)),
        ({"above": -1, "below": 1}, (-0.25, 0.5), "reproduced", (0.5, math.inf)),
        ({"above": -1, "below": 1}, (2, 3), "not reproduced", (0, 2)),
        ({"above": -1, "below": 1}, (0.5, 3), "inconclusive", (0.5, 3)),
    ],
)
def test_a_verdict_stands_over_a_range_of_bounds(bound, interval, verdict, stands):
    estimate = Estimate(sum(interval) / 2, *interval, 9)
    assert decide(estimate, Bound(**bound))[0] == verdict
    assert standing(estimate, Bound(**bound), verdict) == stands
    # Just within the range the verdict is the same, just outside it is not.
    low, high = stands
    for end, inward in ((low, 1e-6), (high, -1e-6)):
        for shift, same in ((inward, True), (-inward, False)):
            if math.isfinite(end) and end > 0:
                moved = {side: math.copysign(end + shift, value) for side, value in bound.items()}
                assert (decide(estimate, Bound(**moved))[0] == verdict) == same


def test_what_a_bound_of_ours_must_stand():
    assert doubled(about({"below": 4})) == (2, 8)
    assert doubled(about({"below": -1})) == (-2, -0.5)
    assert doubled(about({"below": 4, "source": "paper: Theorem 1"})) is None
    assert doubled(about({"above": 0})) is None
    assert doubled(about({"above": -1.25, "below": -0.75})) == (0.125, 0.5)
    nearly = about({"below": 1.5}, effect=1.0, effect_source="no growth")
    assert doubled(nearly) == (1.25, 2.0)
    share = about({"above": 0.75}, "proportion", {"holds": "v"})
    assert doubled(share) == (0.5, 0.875)


def test_a_verdict_that_hangs_on_our_bound_is_inconclusive():
    sample = numbers(2.9, 3.0, 3.1)
    doubtful = judge(about({"below": 4}), sample, "paper")
    assert doubtful.verdict == "inconclusive"
    assert "reproduced stands for bounds above 3.17 only, not from 2 to 8" in doubtful.why
    assert doubtful.bound_range == (pytest.approx(3.1686, abs=1e-4), None)
    assert judge(about({"below": 8}), sample, "paper").verdict == "reproduced"
    papers = judge(about({"below": 4, "source": "paper: Table 1"}), sample, "paper")
    assert papers.verdict == "reproduced"
    assert judge(about({"below": 1}), sample, "paper").verdict == "not reproduced"


def test_an_inconclusive_verdict_says_how_many_replicates_it_needs():
    wanted = about({"below": 0}, effect=-0.25, effect_source="Table 1")
    found = judge(wanted, numbers(-0.6, 0.1, 0.0), "paper")
    assert found.verdict == "inconclusive"
    assert found.power < 0.5
    assert found.why.endswith(f"0.8 needs n = {found.needed_n}")
    assert 10 <= int(found.needed_n) <= 20


def test_a_size_above_the_nominal_is_said():
    sample = numbers(*([0.0] * 24), 9.0)  # one outlier of 25
    assert "above the nominal 0.05" in judge(about({"below": 4}), sample, "paper").note
    even = numbers(*range(-12, 13))
    assert "nominal" not in judge(about({"below": 4}), even, "paper").note


def test_replicates_are_what_counts():
    rows = numbers(*([1.0, 2.0, 3.0] * 4), seed=[0, 1, 2] * 4)
    found = judge(about({"above": 0}, replicate="seed"), rows, "paper")
    assert found.n == 3
    assert "replicate=seed" in found.test


# Published runs


REFERENCE = {"file": "a.csv", "select": {"epoch": 5}, "mean": "m", "sd": "s", "n": "runs"}


def test_runs_are_compared_with_published_ones(tmp_path):
    (tmp_path / "a.csv").write_text("epoch,m,s,runs\n4,9,1,20\n5,2.0,0.1,20\n")
    wanted = about({"above": -0.5, "below": 0.5}, "equivalence", reference=REFERENCE)
    reference = read_reference(wanted, tmp_path)
    assert (reference.mean, reference.sd, reference.n) == (2.0, 0.1, 20)
    assert (reference.least, reference.largest) == (1.8, 2.2)
    found = judge(wanted, numbers(1.95, 2.0, 2.1), "paper", reference)
    assert found.verdict == "reproduced"
    assert "are within theirs, 1.8 to 2.2 (n = 20)" in found.note
    assert judge(wanted, numbers(5.0, 5.1, 5.2), "paper", reference).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"mean": "mm"}, "column 'mm' does not exist"), ({"select": {}}, "2 rows of a.csv")],
)
def test_a_mistake_in_a_reference_is_named(tmp_path, changes, words):
    (tmp_path / "a.csv").write_text("epoch,m,s,runs\n4,9,1,20\n5,2,0.1,20\n")
    wanted = about({"above": -1, "below": 1}, "equivalence", reference=REFERENCE | changes)
    with pytest.raises(UserError, match=words):
        read_reference(wanted, tmp_path)


# Many claims


def verdict(p_value, name="reproduced", kind="claim", interval=(0.0, 1.0)):
    return Verdict(
        "c", "", kind, "", "", "", "", "", verdict=name, p_value=p_value, interval=interval
    )


def test_holms_correction_is_a_column():
    found = holm(
        [
            verdict(0.02),
            verdict(0.001),
            verdict(0.03, "not reproduced"),
            verdict(None, "inconclusive"),
            verdict(0.0001, kind="check"),
            verdict(None, interval=None),
        ]
    )
    # Of four: 0.001 < 0.05/4, but 0.02 > 0.05/3, and whatever follows falls with it.
    assert found == ["inconclusive", "reproduced", "inconclusive", "inconclusive", "", ""]
    assert holm([verdict(0.02), verdict(0.025)]) == ["reproduced", "reproduced"]


def test_the_report_counts_what_chance_would_decide():
    many = [verdict(0.001) for _ in range(39)] + [verdict(0.04), verdict(0.001, kind="check")]
    exact = replace(verdict(None, interval=None), exact=True)
    untested = verdict(None, "not tested", interval=None)
    assert multiplicity([*many, exact, untested]) == {
        "judged": 41,
        "exact": 1,
        "tested": 40,
        "by_chance": pytest.approx(2.0),
        "lost": [],
    }
    assert multiplicity([verdict(0.03), verdict(0.04)])["lost"] == ["c", "c"]


def test_the_table_of_claims_has_all_numbers():
    study = load_study("two_spirals")
    found = replace(verdict(0.01), bound_range=(None, 2.0), power=0.9, needed_n="7")
    row = claims_table([Section(study, [found], {}, {}, [], [])]).iloc[0]
    assert (row["holm"], row["bound_high"], row["power"]) == ("reproduced", 2.0, 0.9)
    assert (row["low"], row["high"], row["needed_n"], row["study"]) == (0, 1, "7", "two_spirals")


def test_the_p_value_is_that_of_students_test():
    from scipy.stats import ttest_1samp

    sample = numbers(1.0, 2.0, 2.5, 3.0)
    known = ttest_1samp(sample["v"], 1.0, alternative="greater").pvalue
    found = judge(about({"above": 1.0, "source": "paper"}), sample, "paper")
    assert found.p_value == pytest.approx(known, rel=0.01)


# Rows


def test_the_rows_are_those_selected():
    rows = table().assign(kind=["a"] * 20 + ["b"] * 6 + ["c"] * 4)
    assert judge(claim(select={"kind": "b"}), rows, "quick").n == 6
    assert judge(claim(select={"kind": ["b", "c"]}), rows, "quick").n == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arguments": {"hold": "ok"}}, "c: test 'proportion' cannot use its arguments: .*hold"),
        (
            {"arguments": {"holds": "okay"}},
            r"c.arguments.holds: table t: column 'okay' does not .* mean 'ok'.* Known: .*kind, ok",
        ),
        ({"replicate": "sed"}, "c.replicate: table t: column 'sed' does not exist; .*Known: .*ok"),
        ({"select": {"knid": "a"}}, "c.select: .* 'knid' does not exist; did you mean 'kind'"),
    ],
)
def test_a_claim_with_a_typo_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        judge(claim(**changes), table(), "quick")


def test_a_selection_without_rows_says_what_there_is():
    result = judge(claim(select={"kind": "b"}), table(), "quick")
    assert "kind = b (there are kind: a)" in result.why


def test_every_test_takes_rows_first():
    for test in TESTS.values():
        assert next(iter(test.__annotations__)) == "rows"


def test_bounds_are_told_in_words():
    assert describe_bound(Bound(above=-0.5)) == "above -0.5"
    assert describe_bound(Bound(above=0, below=1e-6)) == "above 0 and below 1e-06"


@pytest.fixture
def judged(tmp_path):
    """A study of which nothing was run, judged."""
    layout = Layout(tmp_path / "results")
    for name in load_study("two_spirals").tables:
        make_table("two_spirals", name, "smoke", layout)
    judge_study("two_spirals", "smoke", layout)
    return layout


def test_a_study_without_runs_has_every_verdict_not_tested(judged):
    verdicts = read_verdicts("two_spirals", "smoke", judged)
    assert [verdict.id for verdict in verdicts] == [c.id for c in load_study("two_spirals").claims]
    assert {verdict.verdict for verdict in verdicts} == {"not tested"} < set(VERDICTS)


@pytest.mark.parametrize("text", ["", "[", "{}", "[{}]", "[1]", "null", '[{"id": NaN}]'])
def test_damaged_verdicts_are_named(judged, text):
    path = judged.claims("smoke", "two_spirals")
    json.loads(path.read_text())
    path.write_text(text)
    with pytest.raises(UserError, match=r"claims.json: no readable verdicts .*; run Snakemake"):
        read_verdicts("two_spirals", "smoke", judged)


def test_missing_tables_and_verdicts_are_named(judged):
    judged.claims("smoke", "two_spirals").unlink()
    with pytest.raises(UserError, match=r"claims.json: no readable verdicts .*; run Snakemake"):
        read_verdicts("two_spirals", "smoke", judged)
    judged.table("smoke", "two_spirals", "final").unlink()
    with pytest.raises(UserError, match=r"tables/final.csv: .*; run Snakemake"):
        judge_study("two_spirals", "smoke", judged)
