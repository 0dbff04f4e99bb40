"""Files: written atomically, and known by their hash."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the workflow needs hashes at once, and no tables
    import pandas as pd

TEMPORARY = re.compile(r"\..+\.\d+")  # ".<name>.<process>"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, even if we are killed.

    It is on the disk before it takes its name, so a power cut leaves the old file or the new. What
    killed processes have left of earlier attempts is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if TEMPORARY.fullmatch(left.name) and not _is_alive(int(left.suffix[1:])):
            remove(left)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with named(path), temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # of another user
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an `OSError` name the file: that of a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes have left; the caller holds the folder's lock."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name):
            remove(path)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a tidy CSV with every digit of every float."""
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    return hash_bytes(path.read_bytes())
