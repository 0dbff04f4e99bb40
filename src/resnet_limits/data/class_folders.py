"""Images in class folders under train/ and test/, in a directory or a zip archive."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from resnet_limits.errors import UserError

SPLITS = ("train", "test")
LAYOUT = "wanted are train/<class>/*.png and test/<class>/*.png"
BROKEN_ZIP = (  # what zipfile raises besides its own; RuntimeError is for encrypted entries
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)
BROKEN_IMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error)

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class ClassFolders:
    """Images ``(N, H, W, C)`` and labels ``(N,)``, training images first.

    Attributes
    ----------
    classes
        Names of the class folders, indexed by label.
    train
        Number of training images.
    formats
        File formats, as Pillow names them (``"PNG"``).
    """

    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    train: int
    formats: set[str]


def read_class_folders(path: Path, classes: int, shape: tuple[int, int, int]) -> ClassFolders:
    """Read all images of a folder or a zip, sorted by class and then by file name.

    Parameters
    ----------
    path
        The folder or zip.
    classes
        Required number of classes.
    shape
        Required height, width and channels (1 or 3); colour modes are converted.

    Raises
    ------
    UserError
        If it is corrupt, has another layout, or contains an image of another size.
    """
    if path.is_dir():
        return _read(path, _list_folder(path), lambda name: _read_file(path / name), classes, shape)
    with _open(path) as archive:
        names = _checked(path, archive.namelist())
        return _read(path, names, lambda name: _read_entry(archive, path, name), classes, shape)


def _list_folder(folder: Path) -> list[str]:
    """List entries up to three levels deep; folders end with a slash, as in a zip."""
    levels = [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth)]
    return [path.relative_to(folder).as_posix() + "/" * path.is_dir() for path in levels]


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except BROKEN_ZIP as error:
        raise UserError(
            f"{path}: corrupt or not a zip ({error}). Copy it again, or delete it."
        ) from None


def _checked(path: Path, names: Sequence[str]) -> Sequence[str]:
    """Refuse an archive with entries outside of itself, though it is never unpacked."""
    for name in names:
        entry = PureWindowsPath(name)  # understands both slashes, and drives
        if entry.anchor or ".." in entry.parts:
            raise UserError(
                f"{path}: the entry {name!r} points out of the archive, so nothing of it was "
                "read. Delete the archive, and pack the images with relative names."
            )
    return names


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _read_entry(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    try:
        return archive.read(name)
    except BROKEN_ZIP as error:
        raise UserError(
            f"{path}: corrupt: {name} cannot be read ({error}). Copy the archive again."
        ) from None


def _read(
    path: Path, names: Iterable[str], read: Read, classes: int, shape: tuple[int, int, int]
) -> ClassFolders:
    files = _by_class(path, names)
    found = _class_names(path, files, classes)
    chosen = [
        (file, label)
        for split in SPLITS
        for label, name in enumerate(found)
        for file in files[split][name]
    ]
    images, formats = _decode(path, [file for file, _ in chosen], read, shape)
    labels = np.array([label for _, label in chosen], dtype=np.int64)
    train = sum(map(len, files["train"].values()))
    return ClassFolders(found, images, labels, train, formats)


def _by_class(path: Path, names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Group file names by split and class; a class may turn out to be empty."""
    found: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for name in sorted(set(names)):
        parts = PurePosixPath(name).parts
        if len(parts) < 2 or parts[0] not in SPLITS or any(part[0] == "." for part in parts):
            continue  # hidden files belong to the system
        if len(parts) > 2 or name.endswith("/"):
            files = found[parts[0]].setdefault(parts[1], [])
            if len(parts) == 3 and not name.endswith("/"):
                files.append(name)
    for split, classes in found.items():
        if not classes:
            raise UserError(f"{path}: has no class folders under {split}/; {LAYOUT}.")
    return found


def _class_names(
    path: Path, files: dict[str, dict[str, list[str]]], classes: int
) -> tuple[str, ...]:
    train, test = (set(files[split]) for split in SPLITS)
    if len(train) != classes:
        raise UserError(
            f"{path}: has {len(train)} class folders under train/, not {classes}: "
            f"{_some(sorted(train))}. Is it another data set?"
        )
    if train != test:
        raise UserError(
            f"{path}: train/ and test/ have different class folders; only one of them has "
            f"{_some(sorted(train ^ test))}."
        )
    for split, by_class in files.items():
        for name, content in by_class.items():
            if not content:
                raise UserError(f"{path}: {split}/{name}/ holds no images; {LAYOUT}.")
    return tuple(sorted(train, key=_numbers_first))


def _numbers_first(name: str) -> tuple[bool, int, str]:
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _decode(
    path: Path, files: Sequence[str], read: Read, shape: tuple[int, int, int]
) -> tuple[np.ndarray, set[str]]:
    # One thread: for images this small the interpreter, not the decoder, is the bottleneck, and
    # threads made it slower.
    images = np.empty((len(files), *shape), dtype=np.uint8)
    formats: set[str] = set()
    sizes: dict[tuple[int, ...], str] = {}
    for index, file in enumerate(files):
        image, kind = _decode_one(path, file, read(file), shape[2])
        formats.add(kind)
        sizes.setdefault(image.shape[:2], file)
        if image.shape == shape:
            images[index] = image
        elif len(sizes) > 1:
            break
    if set(sizes) != {shape[:2]}:
        examples = " and ".join(f"{file} is {w}x{h}" for (h, w), file in sizes.items())
        raise UserError(f"{path}: {examples}; all images must be {shape[1]}x{shape[0]}.")
    return images, formats


def _decode_one(path: Path, file: str, content: bytes, channels: int) -> tuple[np.ndarray, str]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode[0] in "IF":
                raise ValueError("clipped to 8 bits it would be another image")
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
            return pixels.reshape(*pixels.shape[:2], channels), image.format or "unknown"
    except (*BROKEN_IMAGE, Image.DecompressionBombError):
        raise UserError(
            f"{path}: {file} is broken, or no image of 8 bits a channel. Replace or delete it."
        ) from None
