"""What this machine has, without importing torch."""

from __future__ import annotations

from pathlib import Path


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA or AMD GPU is loaded on this machine."""
    device = Path("/dev")
    return any(device.glob("nvidia[0-9]*")) or (device / "kfd").exists()
