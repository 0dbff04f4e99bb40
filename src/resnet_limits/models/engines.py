"""Which engine computes a model: torch, or kernels compiled by numba."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

BACKENDS = ("auto", "numba", "torch")


@cache
def has_numba() -> bool:
    """Return whether numba is installed; it is optional (extra `fast`)."""
    return find_spec("numba") is not None


def is_compilable(tensor: Tensor) -> bool:
    """Return whether compiled kernels take this type on this device."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def choose_engine(backend: str, compilable: bool, needed: str) -> str:
    """Return the engine that a backend stands for, "numba" or "torch".

    Parameters
    ----------
    backend
        "numba", "torch", or "auto": numba where it is installed and can do it.
    compilable
        Whether numba can do it.
    needed
        What numba needs, for the message.

    Raises
    ------
    ValueError
        If the backend is unknown, or numba is asked for what it cannot do.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend == "numba" and not compilable:
        raise ValueError(f"numba needs {needed}")
    if backend == "auto":
        return "numba" if compilable and has_numba() else "torch"
    return backend
