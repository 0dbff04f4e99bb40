"""What all campaigns share: cases, small runs of every kind, and comparisons of folders."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resnet_limits import cli
from resnet_limits.spec import RunConfig, load_study, study_names
from resnet_limits.train import train
from tests.faults import forked
from tests.studies import CPU, configuration

# Not the numbers of a run, or never the same.
PASSING = {"record.json", ".record.json", "progress.jsonl", "train.log", ".lock"}
TIMED = ("CostProblem",)  # measures seconds, which no two runs have in common


@dataclass
class Campaign:
    """Cases of one kind: how many there were, and what went wrong.

    Attributes
    ----------
    name, seed
        What is done, and the seed of what is drawn.
    folder
        Where cases leave their files.
    count
        Number of cases asked for.
    """

    name: str
    count: int
    seed: int
    folder: Path
    cases: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    def __post_init__(self) -> None:
        self.draw = random.Random(f"{self.name} {self.seed}")

    @contextlib.contextmanager
    def case(self, what: str) -> Iterator[None]:
        """Count a case; whatever is raised in it is its failure."""
        self.cases += 1
        try:
            yield
        except Exception as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")

    def fresh(self, name: str) -> Path:
        """Return an empty folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name}: skipped: {self.skipped}"
        told = f"{self.name}: {self.cases} cases, {len(self.failures)} failures, seed {self.seed}"
        return "\n  ".join([told, *self.failures])


def require(condition: object, what: str) -> None:
    """Fail a case."""
    if not condition:
        raise AssertionError(what)


def runs() -> Iterator[RunConfig]:
    """Yield a small run of every kind of problem, computed by torch.

    Numba's threads do not survive a fork.
    """
    seen = set(TIMED)
    for study in study_names():
        for experiment, protocol in load_study(study).experiments.items():
            if (
                protocol.problem not in seen
                and load_study(study).experiment(experiment, "smoke").runs()
            ):
                seen.add(protocol.problem)
                backend = {"backend": "torch"} if "backend" in protocol.settings else {}
                yield configuration(study, experiment, **backend)


def quietly(action: Callable[[], object]) -> Callable[[], object]:
    """Return an action that says nothing on standard output."""

    def run() -> object:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
            return action()

    return run


def training(config: RunConfig, folder: Path) -> Callable[[], object]:
    """Return the training of a run, with a checkpoint before every step."""
    return quietly(lambda: train(config, folder, CPU, -1))


def run_forked(action: Callable[[], object]) -> None:
    """Run what must succeed in a process of its own."""
    require(forked(action) == 0, "failed undisturbed")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder whose bytes must repeat."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.name not in PASSING
    }


def require_same(found: Path, wanted: Path) -> None:
    """Fail a case if a file is stray, lost or differs."""
    one, other = contents(found), contents(wanted)
    require(one.keys() <= other.keys(), f"stray files {sorted(one.keys() - other.keys())}")
    require(one.keys() >= other.keys(), f"lost files {sorted(other.keys() - one.keys())}")
    differing = [name for name in one if one[name] != other[name]]
    require(not differing, f"differing results {differing}")


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    said: str


def command(arguments: Sequence[object], log: Path) -> Answer:
    """Run a command in a forked process, as a user would; what it says goes to a file."""

    def run() -> None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os._exit(cli.main([str(argument) for argument in arguments]))

    return Answer(forked(run), log.read_text(errors="replace"))


def require_one_line(answer: Answer) -> None:
    """Fail a case unless a command ended as by a user's mistake."""
    require("Traceback" not in answer.said, answer.said)
    errors = [line for line in answer.said.splitlines() if line.startswith("resnet-limits ")]
    require(answer.status == 2 and len(errors) == 1, f"status {answer.status}: {answer.said}")
