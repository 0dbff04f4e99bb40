"""Stub: digits only, until the data layer is merged."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Split:
    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Images:
    name: str
    label: str
    hash: str
    note: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_images(name: str, root: Path) -> Images:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    assert name == "digits", name
    x, y = load_digits(return_X_y=True)
    x = np.rint(x * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    a, b, c, d = train_test_split(x, y.astype(np.int64), test_size=360, stratify=y, random_state=0)
    return Images(
        "digits",
        "digits",
        "0",
        "",
        tuple("0123456789"),
        Split(a, c),
        Split(b, d),
        (float(a.mean() / 255),),
        (float(a.std() / 255),),
    )
