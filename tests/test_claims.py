"""A verdict follows from the interval and the bound alone."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from resnet_limits.analysis import make_table
from resnet_limits.claims import (
    VERDICTS,
    decide,
    describe_bound,
    judge,
    judge_study,
    read_verdicts,
)
from resnet_limits.errors import UserError
from resnet_limits.layout import Layout
from resnet_limits.settings import build
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
        "bound": {"above": 0.5},
    }
    return build(Claim, values | changes, "claims.yaml")


def table():
    return pd.DataFrame(
        {
            "ok": [True] * 30,
            "kind": ["a"] * 30,
            "diverged": [False] * 28 + [True] * 2,
            "dataset": "toy",
        }
    )


def test_verdict_carries_all_that_a_reader_needs():
    result = judge(claim(), table(), "quick")
    assert result.verdict == "reproduced"
    assert result.n == 30
    assert result.interval[0] < 1.0 == result.estimate
    assert result.bound == "above 0.5"
    assert "proportion" in result.test
    assert result.data == "toy; scale quick"
    assert "2 of 30" in result.note


def test_an_unfit_data_set_is_not_tested_at_any_scale():
    unfit = claim(not_tested_on={"digits": "a stand-in"})
    verdict = judge(unfit, table().assign(dataset="digits"), "laptop")
    assert (verdict.verdict, verdict.why, verdict.n) == ("not tested", "a stand-in", 0)
    assert judge(unfit, table().assign(dataset="cifar10"), "smoke").verdict == "reproduced"


def test_no_rows_or_an_unfit_scale_are_not_tested():
    assert judge(claim(select={"kind": "b"}), table(), "quick").verdict == "not tested"
    unfit = claim(not_tested_at={"smoke": "too short"})
    verdict = judge(unfit, table(), "smoke")
    assert (verdict.verdict, verdict.why) == ("not tested", "too short")
    assert judge(unfit, table(), "quick").verdict == "reproduced"
    empty = judge(claim(), table()[:0], "quick")
    assert (empty.verdict, empty.why) == (
        "not tested",
        "nothing that it needs was run at scale quick",
    )


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
            "c: test 'proportion' cannot .*'okay'.* columns are ok, kind",
        ),
        ({"select": {"knid": "a"}}, "c.select: column 'knid' does not exist; did you mean 'kind'"),
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
    if text == "{}":
        assert read_verdicts("two_spirals", "smoke", judged) == []
        return
    with pytest.raises(UserError, match=r"claims.json: no readable verdicts .*; run Snakemake"):
        read_verdicts("two_spirals", "smoke", judged)


def test_missing_tables_and_verdicts_are_named(judged):
    judged.claims("smoke", "two_spirals").unlink()
    with pytest.raises(UserError, match=r"claims.json: no readable verdicts .*; run Snakemake"):
        read_verdicts("two_spirals", "smoke", judged)
    judged.table("smoke", "two_spirals", "final").unlink()
    with pytest.raises(UserError, match=r"tables/final.csv: .*; run Snakemake"):
        judge_study("two_spirals", "smoke", judged)
