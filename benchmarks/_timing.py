"""What all benchmarks share: paths that do the same work, timed in turn and compared.

A path is a callable without arguments that does the work once, such as a training step, and returns
tensors: losses, gradients, outputs. All paths of a case start from the same numbers and run in one
process, in turn, so that each round yields a ratio of times under the same load. A benchmark reads

    parser = timing.parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[64, 256])
    arguments = timing.parse(parser)
    table = timing.Table(arguments, baseline="plain")
    for depth in arguments.depths:
        table.add(f"depth {depth}", {"plain": plain(depth).step, "chain": chain(depth).step})
    table.save()

and prints, a row for each path, the median milliseconds, the speedup (the baseline's seconds over
the path's, the median over rounds and its quartiles) and the largest relative difference of what
the path returned. Run benchmarks on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnet_limits.problem import Problem

Run = Callable[[], Sequence[Tensor]]


def parser(description: str | None, repeats: int = 7, threads: int = 1) -> argparse.ArgumentParser:
    """Return a parser of the shared arguments: ``--repeats``, ``--threads`` and ``--json``."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--repeats", type=int, default=repeats, help="rounds in which paths are timed"
    )
    made.add_argument("--threads", type=int, default=threads)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows to a file too")
    return made


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line and set the number of threads."""
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


class Ratio(NamedTuple):
    """A ratio of times: its median over rounds, and its quartiles."""

    median: float
    low: float
    high: float


class Timing:
    """Seconds of every path, one per round, ``(rounds,)`` each."""

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self.seconds = {name: np.array(values) for name, values in seconds.items()}

    def median(self, name: str) -> float:
        """Return a path's median seconds."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, other: str) -> Ratio:
        """Return one path's seconds over another's, taken round by round."""
        ratios = self.seconds[name] / self.seconds[other]
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        return Ratio(float(median), float(low), float(high))


def measure(paths: Mapping[str, Callable[[], object]], repeats: int) -> Timing:
    """Time all paths in turn; every other round runs them backwards.

    They should have run before, since first calls compile and allocate.
    """
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for repeat in range(repeats):
        for name in list(paths)[:: -1 if repeat % 2 else 1]:
            start = time.perf_counter()
            paths[name]()
            seconds[name].append(time.perf_counter() - start)
    return Timing(seconds)


def difference(result: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return the largest difference, of each tensor relative to the reference's largest entry.

    To compare losses one by one, ``unbind`` them.
    """
    pairs = zip(result, reference, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def call(run: Run, times: int) -> list[list[Tensor]]:
    """Run a path so many times; return copies, since it may reuse its memory."""
    return [[tensor.detach().clone() for tensor in run()] for _ in range(times)]


def training_step(problem: Problem) -> list[Tensor]:
    """Train a problem by one step as `resnet_limits.train.fit` does; return its losses."""
    problem.optimizer.zero_grad(set_to_none=True)
    losses = problem.loss_and_grad()
    problem.optimizer.step()
    if problem.scheduler is not None:
        problem.scheduler.step()
    return list(losses.unbind())


class Table:
    """Rows of times: printed as they are measured, and kept for ``--json``.

    Parameters
    ----------
    arguments
        From `parse`.
    baseline
        The path that speedups are relative to.
    """

    def __init__(self, arguments: argparse.Namespace, baseline: str) -> None:
        self.arguments, self.baseline = arguments, baseline
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        case: str,
        paths: Mapping[str, Run],
        reference: Run | None = None,
        calls: int = 1,
        extra: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Timing:
        """Compare and time the paths of a case, and print a row for each; return their times.

        Parameters
        ----------
        case
            Its name.
        paths
            The paths; the baseline must be among them.
        reference
            What their results are compared to, such as a path in float64; the baseline if None.
        calls
            Number of first calls whose results are compared; training drifts apart with more.
        extra
            Further columns, the same in every case: values by column and path.
        """
        returned = {name: call(run, calls) for name, run in paths.items()}
        expected = call(reference, calls) if reference else returned[self.baseline]
        timing = measure(paths, self.arguments.repeats)
        for name in paths:
            speedup = timing.ratio(self.baseline, name)
            row = {
                "case": case,
                "path": name,
                "milliseconds": 1e3 * timing.median(name),
                "speedup": speedup.median,
                "speedup_low": speedup.low,
                "speedup_high": speedup.high,
                "difference": max(map(difference, returned[name], expected)),
            }
            more = {column: values[name] for column, values in (extra or {}).items()}
            self._print(row, more)
            self.rows.append(row | more)
        return timing

    def save(self) -> None:
        """Write rows, arguments and versions to the file that ``--json`` names."""
        if self.arguments.json is None:
            return
        content = {
            "arguments": vars(self.arguments),
            "machine": f"{platform.system()} {platform.machine()}",
            "torch": torch.__version__,
            "rows": self.rows,
        }
        self.arguments.json.write_text(json.dumps(content, indent=1, default=str) + "\n")

    def _print(self, row: Mapping[str, Any], extra: Mapping[str, float]) -> None:
        if not self.rows:
            titles = f"{'case':20} {'path':20} {'ms':>9} {'speedup':>8} {'(quartiles)':>15}"
            print(f"{titles} {'difference':>10}", *(f"{name:>10}" for name in extra))
        spread = f"({row['speedup_low']:.2f} - {row['speedup_high']:.2f})"
        print(
            f"{row['case']:20} {row['path']:20} {row['milliseconds']:9.2f}",
            f"{row['speedup']:8.2f} {spread:>15} {row['difference']:10.1e}",
            *(f"{value:10.4g}" for value in extra.values()),
            flush=True,
        )
