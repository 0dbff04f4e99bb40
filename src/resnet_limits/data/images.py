"""Image data sets: found or downloaded, decoded once, then memory-mapped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_limits.data.decoded import (
    Counts,
    Origin,
    Stamp,
    content_hash,
    read_decoded,
    read_stamp,
    write_decoded,
)
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
        Where they come from.
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
    source: Origin


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
    try:
        return _load_decoded(name, root)
    except (_NotDecoded, OSError):
        return _decode_once(name, root)


def stamp(images: Images) -> Stamp:
    """Return what is known of a data set without its images."""
    return Stamp(
        name=images.name,
        label=images.label,
        hash=images.hash,
        note=images.note,
        classes=images.classes,
        counts=Counts(train=len(images.train.labels), test=len(images.test.labels)),
        shape=images.train.images.shape[1:],
        mean=images.mean,
        std=images.std,
        source=images.source,
    )


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
            f"test images from {images.source.file} ({images.source.kind})"
        )
        if stamp_file is not None:
            write_atomic(stamp_file, stamp(images).to_json())


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
    return _assemble("digits", decoded, Origin(file="scikit-learn", kind="package"))


def _assemble(name: str, decoded: Decoded, source: Origin) -> Images:
    images, labels, train = decoded.images, decoded.labels, decoded.train
    mean, std = _moments(images[:train])
    return Images(
        name,
        decoded.label,
        content_hash(images, labels, train),
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


class _NotDecoded(Exception):
    """Why there are no decoded images to load; empty if there never were."""


def _load_decoded(name: str, root: Path) -> Images:
    """Map the decoded files, unless they are missing, damaged, or of an outdated source."""
    source, path = find_source(name, root), root / DECODED / f"{name}.json"
    if not path.exists():
        raise _NotDecoded("")
    try:
        known = read_stamp(path)
        if (known.name, known.shape) != (name, SETS[name].shape):
            raise UserError(f"{path}: of another data set.")
        if source is not None and source.origin(root) != known.source:
            raise _NotDecoded(" again, since it has changed")
        return _map(known, root / DECODED)
    except UserError as error:
        raise _NotDecoded(f" again, since its decoded images are damaged ({error})") from None


def _map(known: Stamp, folder: Path) -> Images:
    images, labels = read_decoded(folder, known)
    train = known.counts.train
    return Images(
        known.name,
        known.label,
        known.hash,
        known.note,
        known.classes,
        Split(images[:train], labels[:train]),
        Split(images[train:], labels[train:]),
        known.mean,
        known.std,
        known.source,
    )


def _decode_once(name: str, root: Path) -> Images:
    """Decode under a lock, so that concurrent processes wait and then load the result."""
    folder = root / DECODED
    try:
        with locked(folder / f".{name}.lock"):
            try:
                return _load_decoded(name, root)
            except _NotDecoded as reason:
                with _workspace(folder / f".{name}") as work:
                    return _decode(name, root, work, str(reason))
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


def _decode(name: str, root: Path, work: Path, reason: str) -> Images:
    source = find_source(name, root)
    if source is None:
        print(f"{name}: downloading{reason}.", flush=True)
        source, reason = _downloaded(name, root, work), ""
    print(f"{source.path}: decoding{reason}.", flush=True)
    # Taken before reading: if the source changes meanwhile, the next load will notice.
    origin = source.origin(root)
    decoded = read_source(name, source, root, work)
    known = stamp(_assemble(name, decoded, origin))
    write_decoded(root / DECODED, known, decoded.images, decoded.labels, work)
    return _map(known, root / DECODED)


def _downloaded(name: str, root: Path, work: Path) -> Source:
    download(name, root, work)
    source = find_source(name, root)
    assert source is not None
    return source
