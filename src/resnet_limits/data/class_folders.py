"""Images in class folders under train/ and test/, in a directory or a zip archive.

Either may be broken or hostile, so whatever is read has a limit: see the constants. No archive
can take more than half a gigabyte of memory besides the images themselves.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from resnet_limits.data.image_files import ImageError, decode_image, strict_decoding
from resnet_limits.data.regular_files import open_regular
from resnet_limits.errors import UserError

SPLITS = ("train", "test")
LAYOUT = "wanted are train/<class>/*.png and test/<class>/*.png"
ENTRIES = 300_000  # folders and hidden files count; MNIST, the largest set, has 70,000 images
DIRECTORY_BYTES = 2**25  # of a zip's list of entries; MNIST's takes 5 MiB
IMAGE_BYTES = 2**18  # of an image's file; its pixels take 3 KiB, the rest is for metadata
NAME_LENGTH = 255  # of an entry's name, with its folders
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile expands others without a limit
IMAGE = re.compile(r"(train|test)/[^/.][^/]*/[^/.][^/]*")

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
        File formats: ``"PNG"``, ``"JPEG"``.
    """

    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    train: int
    formats: set[str]


def read_class_folders(
    path: Path, classes: int, shape: tuple[int, int, int], counts: tuple[int, int]
) -> ClassFolders:
    """Read all images of a folder or a zip, sorted by class and then by file name.

    Parameters
    ----------
    path
        The folder or zip.
    classes
        Required number of classes.
    shape
        Required height, width and channels (1 or 3); colour modes are converted.
    counts
        Largest numbers of training and test images.

    Raises
    ------
    UserError
        If it is corrupt, has another layout, exceeds a limit, or contains anything else than
        such images.
    """
    if path.is_dir():
        names = _list_folder(path)
        return _read(path, names, lambda name: _read_file(path / name), classes, shape, counts)
    with _open(path) as archive:
        names = _list_zip(path, archive)
        return _read(
            path, names, lambda name: _read_image(archive, path, name), classes, shape, counts
        )


def _list_folder(folder: Path) -> list[str]:
    """List what is in the class folders; names of folders end with a slash, as in a zip."""
    names: list[str] = []
    folders = [f"{split}/" for split in SPLITS if (folder / split).is_dir()]
    while folders:
        inside = folders.pop()
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    name = inside + entry.name + "/" * entry.is_dir()
                    names.append(name)
                    _check_number(folder, len(names))
                    if inside.count("/") == 1 and name.endswith("/"):
                        folders.append(name)
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror}). Make it readable, or "
                "delete it."
            ) from None
    _check_names(folder, names)
    return names


def _check_number(path: Path, number: int) -> None:
    if number > ENTRIES:
        raise UserError(
            f"{path}: has more than {ENTRIES} entries. It is no data set of this project; "
            "delete it."
        )


class _BoundedReader(io.BufferedReader):
    """A zip that is not read in large parts, whatever lengths it claims of itself."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of entries would take {size} bytes")
        return super().read(size)


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    with _BoundedReader(open_regular(path).detach()) as file:
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:
            raise UserError(
                f"{path}: corrupt or not a zip ({error}). Copy it again, or delete it."
            ) from None
        with archive:
            yield archive


def _list_zip(path: Path, archive: zipfile.ZipFile) -> list[str]:
    """List an archive; refuse entries outside of it, though it is never unpacked."""
    names = archive.namelist()
    _check_number(path, len(names))
    for name in names:
        if ".." in name or ":" in name or name.startswith(("/", "\\")):
            entry = PureWindowsPath(name)  # understands both slashes, and drives
            if entry.anchor or ".." in entry.parts:
                raise UserError(
                    f"{path}: the entry {name!a} points out of the archive, so nothing of it was "
                    "read. Delete the archive, and pack the images with relative names."
                )
    if len(set(names)) < len(names):
        raise UserError(f"{path}: has two entries of the same name. Pack the images again.")
    _check_names(path, names)
    for name in names:
        if not IMAGE.fullmatch(name):  # nobody else notices that the damage is in its name
            _read_entry(archive, path, name, 0)
    return names


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Refuse names that would garble messages, tables and figures."""
    for name in names:
        if len(name) > NAME_LENGTH or not name.isprintable():
            raise UserError(
                f"{path}: {name[:NAME_LENGTH]!a} is no usable name. Delete it, or rename it to "
                f"at most {NAME_LENGTH} printable characters."
            )


def _read_file(path: Path) -> bytes:
    with open_regular(path) as file:
        try:
            content = file.read(IMAGE_BYTES + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}). Replace it.") from None
    if len(content) > IMAGE_BYTES:
        raise ImageError(f"has more than {IMAGE_BYTES} bytes")
    return content


def _read_image(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.file_size > IMAGE_BYTES:
        raise ImageError(f"has {entry.file_size} bytes, and at most {IMAGE_BYTES} are allowed")
    if entry.compress_type not in METHODS:
        raise ImageError("is neither stored nor deflated")
    # Length and checksum are compared at the entry's end, which the limit includes.
    return _read_entry(archive, path, name, IMAGE_BYTES + 1)


def _read_entry(archive: zipfile.ZipFile, path: Path, name: str, size: int) -> bytes:
    try:
        with archive.open(name) as file:
            return file.read(size)
    except Exception as error:  # on garbage zipfile raises almost anything
        raise UserError(
            f"{path}: corrupt: {name} cannot be read ({error}). Copy the archive again."
        ) from None


def _read(
    path: Path,
    names: Iterable[str],
    read: Read,
    classes: int,
    shape: tuple[int, int, int],
    counts: tuple[int, int],
) -> ClassFolders:
    files = _by_class(path, names)
    found = _class_names(path, files, classes)
    numbers = _count(path, files, counts)
    chosen = [
        (file, label)
        for split in SPLITS
        for label, name in enumerate(found)
        for file in files[split][name]
    ]
    images, formats = _decode(path, [file for file, _ in chosen], read, shape)
    labels = np.array([label for _, label in chosen], dtype=np.int64)
    return ClassFolders(found, images, labels, numbers["train"], formats)


def _by_class(path: Path, names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Group file names by split and class; a class may turn out to be empty."""
    found: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        if len(parts) < 2 or parts[0] not in SPLITS or any(part[0] == "." for part in parts):
            continue  # hidden files belong to the system
        is_folder = name.endswith("/")
        if len(parts) > 3 or (len(parts) == 3 and is_folder):
            raise UserError(
                f"{path}: {name} is in a deeper folder, or is one; {LAYOUT}. Move or delete it."
            )
        if len(parts) == 3 or is_folder:
            files = found[parts[0]].setdefault(parts[1], [])
            if not is_folder:
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


def _count(
    path: Path, files: dict[str, dict[str, list[str]]], largest: tuple[int, int]
) -> dict[str, int]:
    numbers = {split: sum(map(len, by_class.values())) for split, by_class in files.items()}
    for split, limit in zip(SPLITS, largest, strict=True):
        if numbers[split] > limit:
            raise UserError(
                f"{path}: has {numbers[split]} images under {split}/, and the data set only "
                f"{limit}. Delete what does not belong to it."
            )
    return numbers


def _decode(
    path: Path, files: Sequence[str], read: Read, shape: tuple[int, int, int]
) -> tuple[np.ndarray, set[str]]:
    # One thread: for images this small the interpreter, not the decoder, is the bottleneck, and
    # threads made it slower.
    images = np.empty((len(files), *shape), dtype=np.uint8)
    formats = set()
    with strict_decoding():
        for index, file in enumerate(files):
            try:
                images[index], kind = decode_image(read(file), shape)
            except ImageError as error:
                raise UserError(f"{path}: {file} {error}. Replace or delete it.") from None
            formats.add(kind)
    return images, formats
