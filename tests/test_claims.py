"""A verdict follows from the interval and the bound alone."""

import pandas as pd
import pytest
from resnet_limits.schemas import schema

from resnet_limits.claims import decide, judge
from resnet_limits.errors import UserError
from resnet_limits.stats import TESTS, Estimate


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
    assert decide(Estimate((low + high) / 2, low, high, 10), bound)[0] == verdict


def test_too_few_observations_are_inconclusive():
    assert decide(Estimate(1, 0.9, 1.1, 4), {"above": 0}, least_n=5)[0] == "inconclusive"


def claim(**changes):
    return {
        "id": "c",
        "statement": "Most hold.",
        "where": "Figure 1",
        "table": "t",
        "test": "proportion",
        "arguments": {"holds": "ok"},
        "bound": {"above": 0.5},
    } | changes


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
    assert result["verdict"] == "reproduced"
    assert result["n"] == 30
    assert result["interval"][0] < 1.0 == result["estimate"]
    assert result["bound"] == "above 0.5"
    assert "proportion" in result["test"]
    assert result["data"] == "toy; scale quick"
    assert "2 of 30" in result["note"]


def test_an_unfit_data_set_is_not_tested_at_any_scale():
    unfit = claim(not_tested_on={"digits": "a stand-in"})
    verdict = judge(unfit, table().assign(dataset="digits"), "laptop")
    assert (verdict["verdict"], verdict["why"]) == ("not tested", "a stand-in")
    assert judge(unfit, table().assign(dataset="cifar10"), "smoke")["verdict"] == "reproduced"


def test_no_rows_or_an_unfit_scale_are_not_tested():
    assert judge(claim(select={"kind": "b"}), table(), "quick")["verdict"] == "not tested"
    unfit = claim(not_tested_at={"smoke": "too short"})
    assert judge(unfit, table(), "smoke") | {"verdict": "not tested", "why": "too short"} == judge(
        unfit, table(), "smoke"
    )
    assert judge(unfit, table(), "quick")["verdict"] == "reproduced"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test": "propotion"}, "proportion"),
        ({"arguments": {"hold": "ok"}}, "holds"),
        ({"arguments": {"holds": "okay"}}, "okay"),
        ({"select": {"knid": "a"}}, "kind"),
    ],
)
def test_a_claim_with_a_typo_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        judge(claim(**changes), table(), "quick")


def test_the_schema_knows_every_test():
    properties = schema("claims")["items"]["properties"]
    assert sorted(properties["test"]["enum"]) == sorted(TESTS)


def test_a_selection_without_rows_says_what_there_is():
    result = judge(claim(select={"kind": "b"}), table(), "quick")
    assert "kind = b (there are kind: a)" in result["why"]


def test_every_test_takes_rows_first():
    for test in TESTS.values():
        assert next(iter(test.__annotations__)) == "rows"
