"""What this machine has, without importing torch."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from resnet_limits.locks import try_lock

DEVICES = Path("/dev")
VISIBLE = "CUDA_VISIBLE_DEVICES"  # which of NVIDIA's GPUs a process may use; unset, all

_held: list[IO[str]] = []  # locks of this process, until it ends


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA or AMD GPU is loaded on this machine."""
    return bool(_nvidia()) or (DEVICES / "kfd").exists()


def settle_on_one_gpu() -> None:
    """Leave this process one of the GPUs that it may use, with the fewest trainings.

    To be called before torch looks for GPUs. With one GPU or none, nothing changes.
    """
    allowed = os.environ.get(VISIBLE)
    gpus = allowed.split(",") if allowed is not None else list(map(str, range(len(_nvidia()))))
    if len(gpus) > 1:
        os.environ[VISIBLE], lock = _least_used(gpus)
        _held.append(lock)


def _nvidia() -> list[Path]:
    return list(DEVICES.glob("nvidia[0-9]*"))


def _least_used(gpus: Sequence[str]) -> tuple[str, IO[str]]:
    """Return a GPU, and a lock that counts as one training on it."""
    folder = Path(tempfile.gettempdir(), f"resnet-limits-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    return next(
        (gpu, lock)
        for trainings in itertools.count()
        for gpu in gpus
        if (lock := try_lock(folder / f"gpu{gpu}.{trainings}.lock"))
    )
