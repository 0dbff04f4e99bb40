"""The stress suite with small counts, under pytest: ``pytest -m stress``."""

from __future__ import annotations

import pytest

from tests.stress.__main__ import CAMPAIGNS, run

pytestmark = [pytest.mark.stress, pytest.mark.slow]


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_campaign(name):
    campaign = run(name, CAMPAIGNS[name][1], seed=0)
    print(campaign)
    if campaign.skipped:
        pytest.skip(campaign.skipped)
    assert not campaign.failures
