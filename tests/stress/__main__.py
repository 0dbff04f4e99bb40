"""Runs the campaigns; see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.stress.cases import Campaign
from tests.stress.damage import damages, inputs
from tests.stress.disks import disks
from tests.stress.kills import inside, snakemakes, trainers

CAMPAIGNS: dict[str, tuple[Callable[[Campaign], None], int]] = {
    "inside": (inside, 12),
    "trainers": (trainers, 2),
    "snakemakes": (snakemakes, 1),
    "damages": (damages, 50),
    "inputs": (inputs, 100),
    "disks": (disks, 3),
}


def run(name: str, count: int, seed: int) -> Campaign:
    """Run one campaign in a folder of its own, which stays if something fails."""
    torch.set_num_threads(1)
    act, _ = CAMPAIGNS[name]
    with tempfile.TemporaryDirectory(prefix=f"stress-{name}-") as folder:
        campaign = Campaign(name, count, seed, Path(folder))
        if count:
            act(campaign)
    return campaign


def main() -> int:
    """Run all campaigns; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    for name, (act, default) in CAMPAIGNS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=act.__doc__)
    options = parser.parse_args()
    failures = 0
    for name in CAMPAIGNS:
        start = time.monotonic()
        campaign = run(name, getattr(options, name), options.seed)
        failures += len(campaign.failures)
        print(f"{campaign} ({time.monotonic() - start:.0f} s)", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
