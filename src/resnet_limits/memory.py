"""Whether a training can fit into memory, before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from resnet_limits.errors import UserError
from resnet_limits.spec import RunConfig

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container or a batch job
GIGABYTE = 10**9


def require_memory(config: RunConfig, device: torch.device) -> None:
    """Refuse a training whose smallest conceivable need is more than all memory of its device.

    Raises
    ------
    UserError
        Naming the settings.
    """
    names, needed = config.largest_need
    available = total_memory(device)
    if needed > available:
        raise UserError(
            f"{config.key}: {names}: needs at least {needed / GIGABYTE:.3g} GB of memory, and this "
            f"machine has {available / GIGABYTE:.3g} GB; give smaller numbers."
        )


def total_memory(device: torch.device) -> int:
    """Return the bytes of a GPU, or those that this process may use of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(memory, int(CGROUP_LIMIT.read_text("ascii")))
    except (OSError, ValueError):  # no limit: "max", or no such file
        return memory
