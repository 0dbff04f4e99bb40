"""Live status of running training jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from resnet_limits.layout import LOCK, PROGRESS
from resnet_limits.locks import is_locked

REFRESH_SECONDS = 2.0
CLEAR = "\033[2J\033[H"


def follow(results: Path, scale: str | None, watch: bool) -> None:
    """Print one line per unfinished training; with ``watch``, again and again."""
    while True:
        lines = list(status(results, scale)) or ["No training is under way."]
        print((CLEAR if watch else "") + "\n".join(lines), flush=True)
        if not watch:
            return
        try:
            time.sleep(REFRESH_SECONDS)
        except KeyboardInterrupt:
            return


def status(results: Path, scale: str | None = None) -> Iterator[str]:
    """Yield a line for each training that has begun and has no record yet."""
    for path in sorted(results.glob(f"{scale or '*'}/*/*/*/{PROGRESS}")):
        if not (path.parent / "record.json").exists():
            last = _last_line(path)
            if last is not None:
                age = time.time() - path.stat().st_mtime
                alive = is_locked(path.with_name(LOCK))
                yield describe(path.parent.relative_to(results), last, age, alive)


def describe(run: Path, line: dict[str, Any], age: float, alive: bool) -> str:
    """Return a run's step, share done, time left, age of the last line and measurements."""
    done = line["step"] / line["steps"]
    left = _duration(line["seconds"] / done - line["seconds"]) if done else "?"
    state = f"{left} left" if alive else "interrupted: run Snakemake to continue"
    numbers = "  ".join(f"{name} {value:g}" for name, value in line["median"].items())
    return (
        f"{run}  step {line['step']}/{line['steps']} ({done:.0%})  "
        f"{state}  said {_duration(age)} ago  {numbers}"
    )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _last_line(path: Path) -> dict[str, Any] | None:
    try:
        line: dict[str, Any] = json.loads(path.read_text("utf-8").splitlines()[-1])
        return line
    except (IndexError, json.JSONDecodeError):
        return None  # just begun, or a line half written
