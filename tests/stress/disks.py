"""Full disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

from tests.stress.cases import Campaign, contents, require, runs
from tests.stress.kills import _trainer

SIZES = (8, 16, 24, 32, 48, 64, 96, 128)  # KiB


def disks(campaign: Campaign) -> None:
    """Train on a disk that is too small, enlarge it, and train on."""
    disk = campaign.fresh("disk")
    if not _mount(disk, 1024):
        campaign.skipped = "this user may not mount a tmpfs"
        return
    try:
        _fill(campaign)
    finally:
        subprocess.run(["umount", disk], check=True)


def _fill(campaign: Campaign) -> None:
    config = next(runs())
    text = json.dumps(config.to_json())
    whole, disk = campaign.fresh("whole"), campaign.folder / "disk"
    require(_trainer(text, whole).wait() == 0, "failed undisturbed")
    for number in range(campaign.count):
        size = SIZES[number % len(SIZES)]
        with campaign.case(f"a disk of {size} KiB"):
            for path in disk.iterdir():
                shutil.rmtree(path)
            _resize(disk, size)
            process = _trainer(text, disk / "run", stderr=subprocess.PIPE)
            error = process.communicate()[1].decode()
            require("Traceback" not in error, error)
            if process.returncode:
                require(process.returncode == 2 and error.count("\n") == 1, error)
                require("No space left" in error and str(disk) in error, error)
            _resize(disk, 4096)
            require(_trainer(text, disk / "run").wait() == 0, "failed when continued")
            require(contents(disk / "run") == contents(whole), "differing or stray files")


def _mount(folder: os.PathLike[str], size: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "stress", os.fspath(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:  # no such program
        return False


def _resize(folder: os.PathLike[str], size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}k", os.fspath(folder)], check=True)
