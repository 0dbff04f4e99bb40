"""Image data sets: found or downloaded, decoded once, then memory-mapped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_limits.data.sources import (
    SET_DATA_ROOT,
    SETS,
    Decoded,
    Source,
    download,
    find_source,
    read_source,
)
from resnet_limits.errors import UserError, require_known
from resnet_limits.files import write_atomic
from resnet_limits.locks import locked

DECODED = "decoded"  # folder in the data root
DIGITS_TEST = 360  # of 1797 images


@dataclass(frozen=True)
class Split:
    """Images, uint8 ``(N, H, W, C)``, and labels, int64 ``(N,)``."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Images:
    """A data set.

    Attributes
    ----------
    name
        Name in configurations, such as ``"cifar10"``.
    label
        Name in tables and figures, such as ``"cifar10 (JPEG copy)"``.
    hash
        Digest of pixels and labels.
    note
        A caveat for readers, or empty.
    classes
        Names of the classes, indexed by label.
    train, test
        The images. Arrays mapped from a file are copy-on-write.
    mean, std
        Per channel, of the training images scaled to [0, 1].
    source
        Origin: ``file`` and ``kind``, and for a file on disk ``size`` and ``modified``.
    """

    name: str
    label: str
    hash: str
    note: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: Mapping[str, Any]


def load_images(name: str, root: Path) -> Images:
    """Load a data set; on first use, find or download it under the root and decode it.

    Parameters
    ----------
    name
        ``"digits"`` (needs no files), ``"cifar10"``, ``"cifar100"`` or ``"mnist"``.
    root
        The data root.

    Raises
    ------
    UserError
        If it is unavailable or corrupt, or the root is not writable.
    """
    require_known(name, ("digits", *SETS), "data set")
    if name == "digits":
        return _digits()
    return _load_decoded(name, root) or _decode_once(name, root)


def stamp(images: Images) -> dict[str, Any]:
    """Return a data set's metadata, ready for JSON."""
    return {
        "name": images.name,
        "label": images.label,
        "hash": images.hash,
        "note": images.note,
        "classes": list(images.classes),
        "counts": {"train": len(images.train.labels), "test": len(images.test.labels)},
        "shape": list(images.train.images.shape[1:]),
        "mean": list(images.mean),
        "std": list(images.std),
        "source": dict(images.source),
    }


def prepare(names: Sequence[str], root: Path, stamp_file: Path | None) -> None:
    """Make data sets ready for training and print a line for each; optionally, write a stamp.

    Raises
    ------
    UserError
        As `load_images`, or if several data sets would share one stamp.
    """
    if stamp_file is not None and len(names) != 1:
        raise UserError(f"--stamp {stamp_file}: takes one data set, not {len(names)}.")
    for name in names:
        images = load_images(name, root)
        print(
            f"{images.label}: {len(images.train.labels)} training and {len(images.test.labels)} "
            f"test images from {images.source['file']} ({images.source['kind']})"
        )
        if stamp_file is not None:
            write_atomic(stamp_file, _json(stamp(images)))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


def _digits() -> Images:
    """Return scikit-learn's digits, 8x8 with values 0..16, in a fixed stratified split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    parts = train_test_split(
        images, data.target, test_size=DIGITS_TEST, random_state=0, stratify=data.target
    )
    labels = np.concatenate(parts[2:]).astype(np.int64)
    classes = tuple(str(digit) for digit in data.target_names)
    decoded = Decoded("digits", "", classes, np.concatenate(parts[:2]), labels, len(parts[0]))
    return _assemble("digits", decoded, {"file": "scikit-learn", "kind": "package"})


def _assemble(name: str, decoded: Decoded, source: Mapping[str, Any]) -> Images:
    images, labels, train = decoded.images, decoded.labels, decoded.train
    content = hashlib.sha256(images.data)
    content.update(labels.data)
    content.update(str(train).encode())
    mean, std = _moments(images[:train])
    return Images(
        name,
        decoded.label,
        content.hexdigest()[:16],
        decoded.note,
        decoded.classes,
        Split(images[:train], labels[:train]),
        Split(images[train:], labels[train:]),
        mean,
        std,
        source,
    )


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, exactly, from its histogram."""
    channels = [_histogram(images[..., channel]) for channel in range(images.shape[-1])]
    values = np.arange(256) / 255
    means = [float(np.average(values, weights=counts)) for counts in channels]
    squares = [
        float(np.average((values - mean) ** 2, weights=counts))
        for mean, counts in zip(means, channels, strict=True)
    ]
    return tuple(means), tuple(square**0.5 for square in squares)


def _histogram(channel: np.ndarray) -> np.ndarray:
    # In chunks, since bincount takes eight bytes per pixel.
    parts = (channel[start : start + 1000] for start in range(0, len(channel), 1000))
    counts: np.ndarray = np.sum([np.bincount(p.ravel(), minlength=256) for p in parts], axis=0)
    return counts


def _load_decoded(name: str, root: Path) -> Images | None:
    """Map the decoded files, unless they are missing, broken, or of an outdated source."""
    folder = root / DECODED
    try:
        source = find_source(name, root)
        text = (folder / f"{name}.json").read_text("utf-8")
        known = json.loads(text)
        if source is not None and source.stamp(root) != known["source"]:
            return None
        loaded = _map(known, folder)
        # A writer removes the stamp first: if it is unchanged, the files are of one decoding.
        replaced = (folder / f"{name}.json").read_text("utf-8") != text
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return None if replaced else loaded


def _map(known: Mapping[str, Any], folder: Path) -> Images:
    name, train = known["name"], known["counts"]["train"]
    # numpy refuses a file that is too short; "c" is copy-on-write.
    images = np.load(folder / f"{name}.npy", mmap_mode="c")
    labels = np.load(folder / f"{name}.labels.npy")
    count = train + known["counts"]["test"]
    if images.shape != (count, *known["shape"]) or labels.shape != (count,):
        raise ValueError("of another decoding")
    return Images(
        name,
        known["label"],
        known["hash"],
        known["note"],
        tuple(known["classes"]),
        Split(images[:train], labels[:train]),
        Split(images[train:], labels[train:]),
        tuple(known["mean"]),
        tuple(known["std"]),
        known["source"],
    )


def _decode_once(name: str, root: Path) -> Images:
    """Decode under a lock, so that concurrent processes wait and then load the result."""
    folder = root / DECODED
    try:
        with locked(folder / f".{name}.lock"):
            loaded = _load_decoded(name, root)
            if loaded is not None:
                return loaded
            with _workspace(folder / f".{name}") as work:
                return _decode(name, root, work)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}. The data root must be "
            f"writable, with room for the decoded images; to use another, {SET_DATA_ROOT}."
        ) from None


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """Create an empty folder, clearing what a killed process left there, and remove it after."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _decode(name: str, root: Path, work: Path) -> Images:
    source = find_source(name, root) or _downloaded(name, root, work)
    print(f"{source.path}: decoding.", flush=True)
    # Taken before reading: if the source changes meanwhile, the next load will notice.
    origin = source.stamp(root)
    decoded = read_source(name, source, root, work)
    images = _assemble(name, decoded, origin)
    _write(images, decoded, root / DECODED, work)
    return _map(stamp(images), root / DECODED)


def _downloaded(name: str, root: Path, work: Path) -> Source:
    download(name, root, work)
    source = find_source(name, root)
    assert source is not None
    return source


def _write(images: Images, decoded: Decoded, folder: Path, work: Path) -> None:
    """Replace the decoded files; the stamp is removed first and written last."""
    path = folder / f"{images.name}.json"
    path.unlink(missing_ok=True)
    files = {f"{images.name}.npy": decoded.images, f"{images.name}.labels.npy": decoded.labels}
    for file, array in files.items():
        np.save(work / file, array)
        (work / file).replace(folder / file)
    write_atomic(path, _json(stamp(images)))
