"""Kills at a chosen write: a forked process ends there and, as by ``kill -9``, tidies nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from unittest import mock

KILLED = 128 + signal.SIGKILL
# What changes a disk, besides writing to an open file.
OPERATIONS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")


class _Torn:
    """An open file that can be killed halfway through a write."""

    def __init__(self, file: IO[Any], before: Callable[[], bool]) -> None:
        self._file, self._before = file, before

    def write(self, content: Any) -> int:
        if self._before():
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            os._exit(KILLED)
        return self._file.write(content)

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def _killed_before(operation: int) -> Iterator[None]:
    """End this process before its so-many-th operation, counted from 0."""
    left = iter(range(operation))

    def is_due() -> bool:
        return next(left, None) is None

    def killable(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if is_due():
                os._exit(KILLED)
            return function(*arguments, **options)

        return run

    opened = Path.open

    def open_torn(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = opened(path, mode, *arguments, **options)
        return file if mode in ("r", "rb") else _Torn(file, is_due)

    with contextlib.ExitStack() as patches:
        for name in OPERATIONS:
            patches.enter_context(mock.patch.object(os, name, killable(getattr(os, name))))
        patches.enter_context(mock.patch.object(Path, "open", open_torn))
        yield


def killed(action: Callable[[], object], operation: int) -> bool:
    """Run an action in a forked process and kill it before an operation.

    Returns
    -------
    bool
        Whether it was killed; False if it had ended before.

    Raises
    ------
    RuntimeError
        If it failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        status = 0
        try:
            with _killed_before(operation):
                action()
        except BaseException:
            traceback.print_exc()
            status = 1
        os._exit(status)
    _, found = os.waitpid(process, 0)
    status = os.waitstatus_to_exitcode(found)
    if status not in (0, KILLED):
        raise RuntimeError(f"failed with exit status {status}")
    return status == KILLED
