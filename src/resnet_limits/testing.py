"""For the tests of a study: a resumed run must end with the same bits as an undisturbed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from resnet_limits.contract import Stateful, training_state
from resnet_limits.layout import RECORD, RunKey
from resnet_limits.problem import Context, Problem
from resnet_limits.runs import Run, read_record
from resnet_limits.settings import Settings
from resnet_limits.spec import RunConfig, load_study
from resnet_limits.train import fit

REMEDY = (
    "Whatever changes while training must be a module, optimizer, scheduler or generator among the "
    "problem's attributes, or be listed in `state`; random numbers come from `random.generator`."
)
NO_RUN = RunConfig(RunKey("none", "none", "none", "none"), Settings())


class Interruption(BaseException):
    """Stands for the kill of a process."""


def assert_run_resumes(
    config: RunConfig, folder: Path, data_root: Path = Path("data"), after: Sequence[int] = ()
) -> None:
    """Assert that a run of a study can be resumed.

    ``assert_run_resumes(next(load_study("two_spirals").runs("smoke", "rate")), tmp_path)``

    Parameters
    ----------
    config
        The run, of scale smoke, say: it is trained twice, on the CPU.
    data_root
        The folder that holds the data sets.
    folder, after
        As for `assert_resumes`.
    """
    study = load_study(config.key.study)
    problem = study.load("problems", study.experiments[config.key.experiment].problem)
    context = Context(torch.device("cpu"), data_root)
    assert_resumes(lambda: problem(config.settings, context), folder, after)


def assert_resumes(make: Callable[[], Problem], folder: Path, after: Sequence[int] = ()) -> None:
    """Assert that interrupted and resumed training ends with the same bits as undisturbed one.

    The problem is trained twice, once in one go, and once with a checkpoint before every step
    and with interruptions, after each of which a problem made anew is continued. Compared are all
    measurements, how the run ended, and the final parameters and other state.

    Parameters
    ----------
    make
        Makes the problem, the same one every time.
    folder
        An empty folder for what the runs write.
    after
        Numbers of steps after which training is interrupted; if none is given, after the first
        one, halfway, and before the last one.

    Raises
    ------
    AssertionError
        If the ends differ, naming the first difference.
    """
    whole, resumed = make(), make()
    fit(whole, NO_RUN, "", folder / "whole", checkpoint_seconds=float("inf"))
    steps = read_record(folder / "whole" / RECORD).outcome.steps
    after = sorted(after or {1, steps // 2, steps - 1} & set(range(steps)))
    for before, step in pairwise([0, *after]):
        _interrupt(resumed, step - before, folder / "resumed")
        resumed = make()
    fit(resumed, NO_RUN, "", folder / "resumed", checkpoint_seconds=-1)
    difference = _difference(folder, whole, resumed)
    if difference:
        interrupted = f"{type(whole).__name__}, interrupted after steps {after} of {steps}"
        raise AssertionError(f"{interrupted}: {difference}. {REMEDY}")


def _interrupt(problem: Problem, count: int, folder: Path) -> None:
    """Train so many steps from the folder's checkpoint on, or from the start."""
    step = iter([*[problem.loss_and_grad] * count, _killed])
    try:
        with mock.patch.object(problem, "loss_and_grad", lambda: next(step)()):
            fit(problem, NO_RUN, "", folder, checkpoint_seconds=-1)
    except Interruption:
        return
    raise AssertionError("training ended before it was interrupted: give earlier steps in `after`")


def _killed() -> Tensor:
    raise Interruption


def _difference(folder: Path, whole: Problem, resumed: Problem) -> str:
    """Say where two runs differ first; empty if they do not."""
    one, other = (read_record(folder / name / RECORD) for name in ("whole", "resumed"))
    if other.timing.resumed == 0:
        return "was not continued but started over"
    if one.outcome != other.outcome:
        return f"ended with {other.outcome}, undisturbed with {one.outcome}"
    for file in sorted(one.files.keys() | other.files.keys()):
        if one.files.get(file) != other.files.get(file):
            runs = (Run(folder / "whole", one), Run(folder / "resumed", other))
            return f"{file} differs: {_first_row(*runs, file.removesuffix('.csv'))}"
    states = training_state(whole), training_state(resumed)
    for name in states[0]:
        if not torch.equal(*(_bytes(state[name]) for state in states)):
            return f"{name} has another value at the end"
    return ""


def _first_row(whole: Run, resumed: Run, probe: str) -> str:
    one, other = whole.measurements(probe), resumed.measurements(probe)
    if one.shape != other.shape:
        return f"{len(other)} rows, undisturbed {len(one)}"
    same = (one == other) | (one.isna() & other.isna())
    row = int((~same).any(axis=1).argmax())
    column = same.columns[int((~same.iloc[row]).argmax())]
    found, wanted = other.at[row, column], one.at[row, column]
    return f"at step {one.at[row, 'step']} {column} is {found}, undisturbed {wanted}"


def _bytes(value: Stateful) -> Tensor:
    tensor = value.get_state() if isinstance(value, torch.Generator) else value.detach()
    return tensor.cpu().contiguous().flatten().view(torch.uint8)
