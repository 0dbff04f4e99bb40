"""Decoded images on disk: written atomically, and verified whenever they are read.

A data set is two arrays in NumPy's format and a stamp in JSON. The stamp holds the SHA-256 of
pixels and labels, and a seal over itself. All of it is checked before every training: with a
processor's SHA instructions, 0.1 s for CIFAR-10, too little to make do with a sample.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.lib import format as npy
from pydantic import Field, Strict

from resnet_limits.data.regular_files import open_regular
from resnet_limits.documents import parse_json
from resnet_limits.errors import UserError
from resnet_limits.provenance import digest
from resnet_limits.settings import Distinct, Model, build

STAMP_BYTES = 2**18  # CIFAR-100's takes 2 KiB
PIXELS, LABELS = np.dtype(np.uint8), np.dtype(np.int64)

Count = Annotated[int, Field(ge=1)]
Channels = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...], Strict(False), Field(min_length=1)
]


class Counts(Model):
    """Numbers of training and test images."""

    train: Count
    test: Count


class Origin(Model):
    """What images were decoded from."""

    file: str = Field(description="path under the data root, or a package")
    kind: str
    size: int | None = Field(None, description="bytes of all its files")
    modified: int | None = Field(None, description="latest time of its files, in ns")


class Stamp(Model):
    """What is known of a data set without its images."""

    name: str
    label: str
    hash: str = Field(description="digest of pixels and labels")
    note: str
    classes: Distinct[str]
    counts: Counts
    shape: Annotated[tuple[Count, Count, Count], Strict(False)]
    mean: Channels
    std: Channels
    source: Origin

    def to_json(self) -> str:
        """Return the text of a stamp's file."""
        body = self.model_dump(mode="json", exclude_none=True)
        return json.dumps({**body, "seal": digest(body)}, indent=1) + "\n"


def read_stamp(path: Path) -> Stamp:
    """Read a stamp's file.

    Raises
    ------
    UserError
        If it is missing, not a whole stamp, or was changed after it was written.
    """
    with open_regular(path) as file:
        text = file.read(STAMP_BYTES).decode(errors="replace")
    content = parse_json(text, str(path))
    seal = content.pop("seal", None) if isinstance(content, dict) else None
    stamp = build(Stamp, content, str(path))
    if digest(content) != seal:
        raise UserError(f"{path}: was changed after it was written.")
    return stamp


def content_hash(images: np.ndarray, labels: np.ndarray, train: int) -> str:
    """Return a digest of pixels, labels and the number of training images."""
    content = hashlib.sha256(images.data)
    content.update(labels.data)
    content.update(str(train).encode())
    return content.hexdigest()[:16]


def write_decoded(
    folder: Path, stamp: Stamp, images: np.ndarray, labels: np.ndarray, work: Path
) -> None:
    """Replace a data set's files, the stamp last; until then the hash tells the old from the new.

    Parameters
    ----------
    folder
        Where they go.
    stamp, images, labels
        What is written.
    work
        Folder of the same file system, where they are written first.
    """
    for name, content in (
        (f"{stamp.name}.npy", images),
        (f"{stamp.name}.labels.npy", labels),
        (f"{stamp.name}.json", stamp.to_json()),
    ):
        with (work / name).open("wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                np.save(file, content)
            file.flush()
            os.fsync(file.fileno())
        (work / name).replace(folder / name)


def read_decoded(folder: Path, stamp: Stamp) -> tuple[np.ndarray, np.ndarray]:
    """Map images and labels, copy-on-write, and verify them.

    Raises
    ------
    UserError
        If they are missing or damaged, or of another decoding than the stamp.
    """
    train, count = stamp.counts.train, stamp.counts.train + stamp.counts.test
    images = _map(folder / f"{stamp.name}.npy", PIXELS, (count, *stamp.shape))
    labels = _map(folder / f"{stamp.name}.labels.npy", LABELS, (count,))
    if content_hash(images, labels, train) != stamp.hash:
        raise UserError(f"{folder / stamp.name}.npy: its hash, or that of its labels, is wrong.")
    if labels.min() < 0 or labels.max() >= len(stamp.classes):
        raise UserError(f"{folder / stamp.name}.labels.npy: has labels without a class.")
    return images, labels


def _map(path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Map an array of known type and shape, so that nothing is believed of the file's header."""
    wanted = io.BytesIO()
    header = {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(wanted, header)
    start = len(wanted.getvalue())
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        whole = size == start + math.prod(shape) * kind.itemsize
        if not whole or file.read(start) != wanted.getvalue():
            raise UserError(f"{path}: its size or header is wrong.")
        return np.memmap(file, kind, "c", start, shape)
