"""Files: written whole or not at all, and known by their hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the workflow needs hashes at once, and no tables
    import pandas as pd


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, even if we are killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a tidy CSV with every digit of every float."""
    write_whole(path, frame.to_csv(index=False, lineterminator="\n"))


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
