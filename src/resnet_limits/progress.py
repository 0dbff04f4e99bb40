"""Live status of running training jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from pydantic import Field

from resnet_limits.documents import parse_json
from resnet_limits.errors import UserError
from resnet_limits.layout import LOCK, PROGRESS, RECORD
from resnet_limits.locks import is_locked
from resnet_limits.settings import Model, build

REFRESH_SECONDS = 2.0
CLEAR = "\033[2J\033[H"


class Line(Model):
    """A line of progress.jsonl: where training stands, and what was measured last."""

    step: int = Field(ge=0)
    steps: int = Field(ge=1)
    seconds: float = Field(ge=0, description="of training so far")
    pid: int
    median: dict[str, float | str] = Field(
        description="of the members' measurements, in words where it is not finite"
    )


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
        if not (path.parent / RECORD).exists():
            last = _last_line(path)
            if last is not None:
                line, said = last
                alive = is_locked(path.with_name(LOCK))
                yield describe(path.parent.relative_to(results), line, time.time() - said, alive)


def describe(run: Path, line: Line, age: float, alive: bool) -> str:
    """Return a run's step, share done, time left, age of the last line and measurements.

    Lines are as far apart as measurements, so time left counts down between them.
    """
    done = line.step / line.steps
    left = _duration(max(0.0, line.seconds / done - line.seconds - age)) if done else "?"
    state = f"{left} left" if alive else "interrupted: run Snakemake to continue"
    numbers = "  ".join(
        f"{name} {value if isinstance(value, str) else format(value, 'g')}"
        for name, value in line.median.items()
    )
    return (
        f"{run}  step {line.step}/{line.steps} ({done:.0%})  "
        f"{state}  said {_duration(age)} ago  {numbers}"
    )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _last_line(path: Path) -> tuple[Line, float] | None:
    """Return the last whole line and when it was written; None where training has just begun."""
    try:
        lines, said = path.read_bytes().splitlines(), path.stat().st_mtime
    except OSError:  # gone by now, or not ours to read
        return None
    for line in reversed(lines):  # the last may be half written
        try:
            text = line.decode(errors="replace")
            return build(Line, parse_json(text, str(path)), str(path)), said
        except UserError:
            continue
    return None
