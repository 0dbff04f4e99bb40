"""Sources of image data sets: files under the data root, or else a download."""

from __future__ import annotations

import gzip
import math
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_limits.data.class_folders import SPLITS, read_class_folders
from resnet_limits.data.decoded import Origin
from resnet_limits.data.image_files import LOSSLESS
from resnet_limits.data.regular_files import open_regular
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

    def origin(self, root: Path) -> Origin:
        """Return what a stamp says of it: path, kind, and the present state of the files."""
        states = [file.stat() for file in self.files]
        return Origin(
            file=self.path.relative_to(root).as_posix(),
            kind=self.kind,
            size=sum(state.st_size for state in states),
            modified=max(state.st_mtime_ns for state in states),
        )


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
    """Return the best source in the data root: official files, then a folder, then a zip.

    Raises
    ------
    UserError
        If something is in its place that is neither a file nor a folder.
    """
    known = SETS[name]
    for kind, names in ((ARCHIVE, known.archives), (EXTRACTED, known.extracted)):
        files = tuple(root / file for file in names)
        if all(_is_present(file) for file in files):
            return Source(files[0] if len(files) == 1 else files[0].parent, kind, files)
    folder = root / name
    if any((folder / split).is_dir() for split in SPLITS):
        # A folder's time changes with added and removed files; checking every image is too slow.
        inner = (path for depth in ("*", "*/*") for path in folder.glob(depth) if path.is_dir())
        return Source(folder, FOLDER, (folder, *inner))
    for path in (root / f"{name}-images.zip", root / f"{name}.zip"):
        if _is_present(path):
            return Source(path, ZIP, (path,))
    return None


def _is_present(path: Path) -> bool:
    """Whether there is a file or a folder; a pipe in its place could be waited for forever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: neither a file nor a folder. Replace or delete it.")
    return path.exists()


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
    if source.kind in (FOLDER, ZIP):
        return _read_copy(name, source)
    if source.kind == ARCHIVE:
        _verify(name, source)
    if name == "mnist":
        return _read_mnist(source)
    if source.kind == ARCHIVE:
        return _read_cifar_archive(name, source, work)
    return _read_cifar(name, source.path, root)


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
    except Exception as error:  # of the network, the disk, or the archives
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


def _verify(name: str, source: Source) -> None:
    """Check the official archives before anything is read of them; CIFAR's are pickles."""
    from torchvision.datasets.utils import check_integrity

    loader = _loader(name)
    checksums = [md5 for _, md5 in loader.resources] if name == "mnist" else [loader.tgz_md5]
    for path, md5 in zip(source.files, checksums, strict=True):
        if not check_integrity(path, md5):
            raise UserError(
                f"{path}: corrupt or not the official archive (its MD5 is not {md5}). "
                "Copy or download it again, or delete it."
            )


def _read_cifar_archive(name: str, source: Source, work: Path) -> Decoded:
    from torchvision.datasets.utils import extract_archive

    extract_archive(source.path, work)
    return _read_cifar(name, source.path, work)


def _read_cifar(name: str, path: Path, root: Path) -> Decoded:
    """Read extracted pickles under a root by torchvision, which verifies them first."""
    loader = _loader(name)
    try:
        parts = [loader(root, train=train) for train in (True, False)]
    except (RuntimeError, OSError):
        raise _not_official(path, name) from None
    images = np.empty((sum(len(part.data) for part in parts), *SETS[name].shape), dtype=np.uint8)
    np.concatenate([part.data for part in parts], out=images)  # else in torchvision's layout
    labels = np.concatenate([np.array(part.targets, dtype=np.int64) for part in parts])
    return Decoded(name, "", tuple(parts[0].classes), images, labels, len(parts[0].data))


def _not_official(path: Path, name: str) -> UserError:
    return UserError(
        f"{path}: corrupt, or not the official {name}. Extract or download it again, or delete it."
    )


def _read_mnist(source: Source) -> Decoded:
    """Read MNIST from its four files, compressed or not."""
    known = SETS["mnist"]
    height, width, _ = known.shape
    pixels, digits = [], []
    files = zip(known.counts, source.files[::2], source.files[1::2], strict=True)
    for count, pixel_file, label_file in files:
        pixels.append(_read_idx(pixel_file, (count, height, width)))
        digits.append(_read_idx(label_file, (count,)))
        if digits[-1].max() >= known.classes:
            raise _not_official(label_file, "mnist")
    # torchvision has checksums of the archives only.
    note = "" if source.kind == ARCHIVE else f"from extracted files, {UNCHECKED}"
    images = np.concatenate(pixels)[..., np.newaxis]
    labels = np.concatenate(digits).astype(np.int64)
    classes = tuple(str(digit) for digit in range(known.classes))
    return Decoded("mnist", note, classes, images, labels, known.counts[0])


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read bytes in the IDX format; as their shape is known, nothing is believed of a header."""
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    size = len(header) + math.prod(shape)
    with open_regular(path) as raw:
        try:
            with gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw as file:
                content = file.read(size + 1)
        except (OSError, EOFError, zlib.error):
            content = b""
    if len(content) != size or not content.startswith(header):
        raise _not_official(path, "mnist")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


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
