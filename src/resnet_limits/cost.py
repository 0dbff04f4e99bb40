"""What finished runs cost, by their records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from resnet_limits.analysis import finished_runs
from resnet_limits.archive import read_manifest
from resnet_limits.layout import RECORDED, Layout
from resnet_limits.runs import Run
from resnet_limits.spec import Study

HOUR = 3600
HEADER = """\
| study | experiment | scale | runs | core-hours | GPU-hours | longest run, hours |
|---|---|---|--:|--:|--:|--:|"""


@dataclass(frozen=True)
class Cost:
    """What an experiment's finished runs cost.

    Attributes
    ----------
    study, experiment, scale
        Of which study, experiment and scale they are; those of the archive, of the scale that
        trained them.
    finished, wanted
        Numbers of runs that have finished and that the scale has.
    core_hours, gpu_hours
        Hours of training, start-up not included: times threads on a CPU, and on a GPU.
    longest
        Hours of the longest run.
    """

    study: str
    experiment: str
    scale: str
    finished: int
    wanted: int
    core_hours: float
    gpu_hours: float
    longest: float


def cost_table(studies: Iterable[Study], scale: str, layout: Layout) -> str:
    """Return what every experiment's finished runs cost, and their sum, as a Markdown table."""
    costs = [cost for study in studies for cost in study_costs(study, scale, layout)]
    total = (
        sum(cost.finished for cost in costs),
        sum(cost.wanted for cost in costs),
        sum(cost.core_hours for cost in costs),
        sum(cost.gpu_hours for cost in costs),
        max((cost.longest for cost in costs), default=0.0),
    )
    rows = [_row(*vars(cost).values()) for cost in costs]
    return "\n".join([HEADER, *rows, _row("all", "", "", *total)])


def study_costs(study: Study, scale: str, layout: Layout) -> Iterator[Cost]:
    """Yield what the finished runs of each experiment cost, if the scale runs it."""
    for name in study.experiments:
        trained_at = scale
        if scale == RECORDED:
            kept = read_manifest(study.name, layout).experiments.get(name)
            trained_at = kept.scale if kept else "paper"
        wanted = len(study.experiment(name, trained_at).runs())
        runs = finished_runs(study, name, scale, layout)
        if wanted:
            yield _cost(study.name, name, trained_at, runs, wanted)


def _cost(study: str, experiment: str, scale: str, runs: list[Run], wanted: int) -> Cost:
    records = [run.record for run in runs]
    on_gpu = {True: 0.0, False: 0.0}
    for record in records:
        cuda = record.provenance.device.startswith("cuda")
        on_gpu[cuda] += record.timing.seconds * (1 if cuda else record.provenance.threads) / HOUR
    longest = max((record.timing.seconds for record in records), default=0.0) / HOUR
    return Cost(study, experiment, scale, len(runs), wanted, on_gpu[False], on_gpu[True], longest)


def _row(
    study: str,
    experiment: str,
    scale: str,
    finished: int,
    wanted: int,
    *hours: float,
) -> str:
    known = [f"{number:.2f}" if finished else "not measured" for number in hours]
    return f"| {' | '.join([study, experiment, scale, f'{finished} of {wanted}', *known])} |"
