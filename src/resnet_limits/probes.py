"""When to measure, and rows of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # tables need the steps, and should not wait for torch
    from torch import Tensor


def log_spaced(steps: int, count: int) -> list[int]:
    """Return 0, ``steps`` and up to ``count`` whole numbers between, evenly spaced in log."""
    inner = np.unique(np.geomspace(1, max(steps, 1), count).round().astype(int))
    return sorted({0, steps, *inner.tolist()})


def evenly_spaced(steps: int, count: int) -> list[int]:
    """Return 0, ``steps`` and whole numbers between, ``count`` intervals as equal as can be."""
    return sorted({round(steps * index / count) for index in range(count + 1)})


def member_rows(members: Sequence[Mapping[str, Any]], **columns: Tensor) -> pd.DataFrame:
    """Return one row per member from tensors of shape ``(members,)``."""
    frame = pd.DataFrame(list(members))
    for name, values in columns.items():
        frame[name] = values.detach().double().cpu().numpy()
    return frame
