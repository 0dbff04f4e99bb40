"""Independent sources of randomness, one per purpose."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for one purpose of one seed.

    Parameters
    ----------
    seed
        The run's seed.
    purpose
        What is drawn from it, e.g. ``"weights"`` or ``"data", 64``; other purposes and other
        seeds give streams that have nothing to do with each other.
    device
        Where the numbers are made.
    """
    words = "/".join([str(seed), *(str(word) for word in purpose)])
    mixed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little")
    return torch.Generator(device=device).manual_seed(mixed % 2**63)
