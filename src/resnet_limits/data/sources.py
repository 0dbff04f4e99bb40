"""Sources of image data sets: files under the data root, or else a download."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_limits.data.class_folders import SPLITS, read_class_folders
from resnet_limits.data.image_files import LOSSLESS
from resnet_limits.errors import UserError

NETWORK_SECONDS = 10.0  # timeout
UNCHECKED = "not checked against the original's checksums"

ARCHIVE, EXTRACTED, FOLDER, ZIP = "official archive", "official files", "class folders", "zip"
SET_DATA_ROOT = "set data_root in workflow/config.yaml (by hand: --data-root)"


@dataclass(frozen=True)
class ImageSet:
    """A data set's shape, and its files as torchvision names them.

    Attributes
    ----------
    loader
        Name of its class in ``torchvision.datasets``.
    classes
        Number of classes.
    shape
        Height, width and channels of an image.
    counts
        Numbers of training and test images of the complete set.
    archives, extracted
        Paths under the data root of the official archives, in torchvision's order, and of their
        contents.
    """

    loader: str
    classes: int
    shape: tuple[int, int, int]
    counts: tuple[int, int]
    archives: tuple[str, ...]
    extracted: tuple[str, ...]


def _cifar(classes: int, archive: str, folder: str) -> ImageSet:
    counts = (50_000, 10_000)
    return ImageSet(f"CIFAR{classes}", classes, (32, 32, 3), counts, (archive,), (folder,))


MNIST_FILES = (
    "MNIST/raw/train-images-idx3-ubyte",
    "MNIST/raw/train-labels-idx1-ubyte",
    "MNIST/raw/t10k-images-idx3-ubyte",
    "MNIST/raw/t10k-labels-idx1-ubyte",
)
MNIST_ARCHIVES = tuple(f"{file}.gz" for file in MNIST_FILES)
SETS = {
    "cifar10": _cifar(10, "cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "cifar100": _cifar(100, "cifar-100-python.tar.gz", "cifar-100-python"),
    "mnist": ImageSet("MNIST", 10, (28, 28, 1), (60_000, 10_000), MNIST_ARCHIVES, MNIST_FILES),
}


@dataclass(frozen=True)
class Source:
    """Where a data set was found: path, kind, and the files that are watched for changes."""

    path: Path
    kind: str
    files: tuple[Path, ...]

    def stamp(self, root: Path) -> dict[str, Any]:
        """Return path and kind, with the files' total size and latest modification time (ns)."""
        states = [file.stat() for file in self.files]
        return {
            "file": self.path.relative_to(root).as_posix(),
            "kind": self.kind,
            "size": sum(state.st_size for state in states),
            "modified": max(state.st_mtime_ns for state in states),
        }


@dataclass(frozen=True)
class Decoded:
    """All images ``(N, H, W, C)`` and labels ``(N,)`` of a data set, training images first.

    Attributes
    ----------
    label
        Name in tables and figures; that of a copy says so.
    note
        A caveat for readers, or empty.
    classes
        Names of the classes, indexed by label.
    train
        Number of training images.
    """

    label: str
    note: str
    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    train: int


def find_source(name: str, root: Path) -> Source | None:
    """Return the best source in the data root: official files, then a folder, then a zip."""
    known = SETS[name]
    for kind, names in ((ARCHIVE, known.archives), (EXTRACTED, known.extracted)):
        files = tuple(root / file for file in names)
        if all(file.exists() for file in files):
            return Source(files[0] if len(files) == 1 else files[0].parent, kind, files)
    folder = root / name
    if any((folder / split).is_dir() for split in SPLITS):
        # A folder's time changes with added and removed files; checking every image is too slow.
        inner = (path for depth in ("*", "*/*") for path in folder.glob(depth) if path.is_dir())
        return Source(folder, FOLDER, (folder, *inner))
    for path in (root / f"{name}-images.zip", root / f"{name}.zip"):
        if path.is_file():
            return Source(path, ZIP, (path,))
    return None


def read_source(name: str, source: Source, root: Path, work: Path) -> Decoded:
    """Read a data set from its source.

    Parameters
    ----------
    name
        Name of the data set.
    source
        From `find_source`.
    root
        The data root.
    work
        Empty folder for temporary files.

    Raises
    ------
    UserError
        If it is corrupt, incomplete or not that data set.
    """
    if source.kind == ARCHIVE:
        _extract(name, source, work)
        return _read_official(name, work)
    if source.kind == EXTRACTED:
        return _read_extracted(name, source, root)
    return _read_copy(name, source)


def download(name: str, root: Path, work: Path) -> None:
    """Download the official archives, verified by torchvision, and move them to the root.

    Raises
    ------
    UserError
        If that fails; it says what to put where instead. Nothing is left behind.
    """
    archives = SETS[name].archives
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_SECONDS)
    try:
        _loader(name)(work, download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{root}: holds no {name}, and the download failed ({reason}). Put there "
            f"{' and '.join(archives)} (official); or a folder {name} or a zip "
            f"{name}-images.zip with train/<class>/*.png and test/<class>/*.png. "
            f"If you have it elsewhere, {SET_DATA_ROOT}."
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    for file in archives:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (work / file).replace(root / file)


def _loader(name: str) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, SETS[name].loader)


def _extract(name: str, source: Source, work: Path) -> None:
    from torchvision.datasets.utils import check_integrity, extract_archive

    loader = _loader(name)
    checksums = [md5 for _, md5 in loader.resources] if name == "mnist" else [loader.tgz_md5]
    for file, path, md5 in zip(SETS[name].archives, source.files, checksums, strict=True):
        if not check_integrity(path, md5):
            raise UserError(
                f"{path}: corrupt or not the official archive (its MD5 is not {md5}). "
                "Copy or download it again, or delete it."
            )
        target = (work / file).parent
        target.mkdir(parents=True, exist_ok=True)
        extract_archive(path, target)


def _read_official(name: str, root: Path, note: str = "") -> Decoded:
    loader = _loader(name)
    parts = [loader(root, train=train) for train in (True, False)]
    images = np.concatenate([np.asarray(part.data) for part in parts])
    labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in parts])
    classes = tuple(text.split(" - ")[0] for text in parts[0].classes)  # MNIST: "0 - zero"
    shaped = images.reshape(-1, *SETS[name].shape)
    return Decoded(name, note, classes, np.ascontiguousarray(shaped), labels, len(parts[0].data))


def _read_extracted(name: str, source: Source, root: Path) -> Decoded:
    # torchvision verifies CIFAR's extracted files, but only the archives of MNIST.
    note = f"from extracted files, {UNCHECKED}" if name == "mnist" else ""
    try:
        decoded = _read_official(name, root, note)
        whole = (decoded.train, len(decoded.images) - decoded.train) == SETS[name].counts
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError):
        whole = False  # torchvision raises each of them on some garbage
    if not whole:
        raise UserError(
            f"{source.path}: corrupt, or not the official {name}. "
            "Extract or download it again, or delete it."
        )
    return decoded


def _read_copy(name: str, source: Source) -> Decoded:
    known = SETS[name]
    found = read_class_folders(source.path, known.classes, known.shape, known.counts)
    formats = " and ".join(sorted(found.formats))
    marks = []
    note = f"from a folder of {formats} images, {UNCHECKED}"
    if not found.formats <= LOSSLESS:
        marks.append(f"{formats} copy")
        note = f"decoded from {formats}, not bit-identical to the original"
    counts = (found.train, len(found.images) - found.train)
    if counts != known.counts:
        marks.append(f"{counts[0]} + {counts[1]} images")
    label = f"{name} ({', '.join(marks)})" if marks else name
    return Decoded(label, note, found.classes, found.images, found.labels, found.train)
