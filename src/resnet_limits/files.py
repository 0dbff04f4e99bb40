"""Files: written atomically, and known by their hash."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the workflow needs hashes at once, and no tables
    import pandas as pd

TEMPORARY = re.compile(r"\..+\.\d+")  # ".<name>.<process>"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, even if we are killed.

    It is on the disk before it takes its name, so a power cut leaves the old file or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a full disk names no file
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes have left; the caller holds the folder's lock."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a tidy CSV with every digit of every float."""
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    return hash_bytes(path.read_bytes())
