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
NEVER = sys.maxsize
# What changes a disk, besides writing to an open file.
OPERATIONS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")


class _Faults:
    """Counts what changes a disk, and ends this process before one of these operations."""

    def __init__(self, operation: int) -> None:
        self.operation, self.count = operation, 0

    def is_due(self) -> bool:
        self.count += 1
        return self.count > self.operation

    def killable(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if self.is_due():
                os._exit(KILLED)
            return function(*arguments, **options)

        return run

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        opened = Path.open

        def open_torn(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = opened(path, mode, *arguments, **options)
            return file if mode in ("r", "rb") else _Torn(file, self)

        with contextlib.ExitStack() as patches:
            for name in OPERATIONS:
                killable = self.killable(getattr(os, name))
                patches.enter_context(mock.patch.object(os, name, killable))
            patches.enter_context(mock.patch.object(Path, "open", open_torn))
            yield


class _Torn:
    """An open file that can be killed halfway through a write."""

    def __init__(self, file: IO[Any], faults: _Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, content: Any) -> int:
        if self._faults.is_due():
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


def forked(action: Callable[[], object]) -> int:
    """Run an action in a forked process; return its exit status, 1 with a traceback if it fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        status = 0
        try:
            action()
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed(action: Callable[[], object], operation: int) -> bool:
    """Run an action in a forked process and kill it before an operation, counted from 0.

    Returns
    -------
    bool
        Whether it was killed; False if it had ended before.

    Raises
    ------
    RuntimeError
        If it failed.
    """

    def run() -> None:
        with _Faults(operation).injected():
            action()

    status = forked(run)
    if status not in (0, KILLED):
        raise RuntimeError(f"failed with exit status {status}")
    return status == KILLED


def operations(action: Callable[[], object]) -> int:
    """Run an action in a forked process; return how often it changes the disk."""
    reader, writer = os.pipe()

    def run() -> None:
        faults = _Faults(NEVER)
        with faults.injected():
            action()
        os.write(writer, str(faults.count).encode())

    status = forked(run)
    os.close(writer)
    with os.fdopen(reader) as counted:
        text = counted.read()
    if status != 0:
        raise RuntimeError(f"failed with exit status {status}")
    return int(text)
