"""The table of verdicts on the front page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from resnet_limits import front_page
from resnet_limits.claims import VERDICTS, Verdict
from resnet_limits.errors import UserError
from resnet_limits.spec import load_study, study_names

README = Path(__file__).parents[1] / "README.md"
VERDICT = Verdict("falls_fast", "S.", "claim", "Theorem 1", "", "", "mean", "", verdict=VERDICTS[0])


def test_claims_are_counted_and_named_by_verdict_and_checks_are_not():
    found = [VERDICT, replace(VERDICT, id="other", verdict=VERDICTS[3])]
    found += [replace(VERDICT, id="ours", kind="check")]
    *_, row = front_page.table_of_verdicts([(load_study("two_spirals"), found)]).splitlines()
    link = "[`two_spirals`](src/resnet_limits/studies/two_spirals/README.md)"
    assert row == f"| {link} | **1**: falls fast |  |  | **1**: other |"


def test_of_many_claims_the_first_are_named():
    many = [replace(VERDICT, id=f"c{number}") for number in range(front_page.MOST + 1)]
    *_, row = front_page.table_of_verdicts([(load_study("two_spirals"), many)]).splitlines()
    assert "| **15**: c0, c1, c2, and 12 more |" in row


def test_only_the_table_between_the_markers_changes():
    text = f"a\n{front_page.BEGIN}\nold\n{front_page.END}\nb\n"
    renewed = front_page.with_verdicts(text, "new", README)
    assert renewed == f"a\n{front_page.BEGIN}\n\nnew\n\n{front_page.END}\nb\n"
    with pytest.raises(UserError, match=r"README.md: lacks the lines"):
        front_page.with_verdicts("no markers", "new", README)


def test_the_front_page_counts_every_claim_and_shows_figures_that_exist():
    """Which verdict each has, a job of CI compares, once they have been derived."""
    text = README.read_text("utf-8")
    table = text[text.index(front_page.BEGIN) : text.index(front_page.END)]
    for name in study_names():
        (row,) = (line for line in table.splitlines() if f"[`{name}`]" in line)
        counted = sum(int(part.split("**")[1]) for part in row.split("|") if "**" in part)
        claims = [claim for claim in load_study(name).claims if claim.kind == "claim"]
        assert counted == len(claims)
    for path in text.split('<img src="')[1:]:
        assert (README.parent / path.split('"')[0]).is_file()
