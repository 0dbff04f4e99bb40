"""Opening files that may be anything."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from resnet_limits.errors import UserError


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Unlike `open`, it never waits for somebody to write into a pipe.

    Raises
    ------
    UserError
        If it is a folder, pipe or device, or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Make it readable, or delete it."
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: not a regular file. Replace or delete it.")
    return os.fdopen(descriptor, "rb")
