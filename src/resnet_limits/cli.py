"""The command line: arguments only; what they ask for is done elsewhere."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from resnet_limits.devices import settle_on_one_gpu
from resnet_limits.errors import UserError, require_known
from resnet_limits.layout import Layout, RunKey
from resnet_limits.spec import load_study, study_names
from resnet_limits.study_files import SCALES, TRAINED_SCALES

VERBATIM = argparse.RawDescriptionHelpFormatter
DESCRIPTION = """\
The steps of the pipeline by hand. Snakemake calls the same commands, each when it is due:
  config > train > table > plot, claims > report
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on standard error and exit status 2."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except UserError as error:
        return _fail(options.command, str(error), 2)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = error.filename or "output"
        return _fail(options.command, f"{where}: {error.strerror or error}", 2)
    except MemoryError as error:
        return _fail(options.command, f"not enough memory; give smaller numbers. {error}", 2)
    except KeyboardInterrupt:
        return _fail(options.command, "interrupted", 128 + signal.SIGINT)
    return 0


def _fail(command: str, message: str, status: int) -> int:
    line = " ".join(message.splitlines())  # names of files may have line breaks
    print(f"resnet-limits {command}: {line}", file=sys.stderr)
    return status


def _config(options: argparse.Namespace) -> None:
    key = RunKey(options.scale, options.study, options.experiment, options.run_id)
    print(json.dumps(load_study(options.study).run(key).to_json(), indent=1))


def _train(options: argparse.Namespace) -> None:
    from resnet_limits.archive import refuse_archive
    from resnet_limits.problem import Context
    from resnet_limits.train import choose_device, read_config, train

    refuse_archive(options.output)
    config = read_config(options.config)
    experiment = load_study(config.key.study).experiments[config.key.experiment]
    set_threads(experiment.resources.threads)
    if options.device != "cpu":
        settle_on_one_gpu()
    context = Context(choose_device(options.device), options.data_root)
    train(config, options.output, context, options.checkpoint_seconds)


def set_threads(number: int) -> None:
    """Use as many threads as the experiment asks for, unless the caller has set a number."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(number)


def _table(options: argparse.Namespace) -> None:
    from resnet_limits.analysis import make_table

    make_table(options.study, options.table, options.scale, _layout(options))


def _plot(options: argparse.Namespace) -> None:
    from resnet_limits.drawing import draw_figure

    draw_figure(options.study, options.figure, options.scale, _layout(options))


def _claims(options: argparse.Namespace) -> None:
    from resnet_limits.claims import judge_study

    judge_study(options.study, options.scale, _layout(options))


def _report(options: argparse.Namespace) -> None:
    from resnet_limits.report import write_report

    write_report(options.studies, options.scale, _layout(options))


def _record(options: argparse.Namespace) -> None:
    from resnet_limits.archive import record

    experiments = [options.experiment] if options.experiment else []
    record(options.study, experiments, options.runs, options.scale, _layout(options), options.force)


def _cost(options: argparse.Namespace) -> None:
    from resnet_limits.cost import cost_table

    studies = [load_study(name) for name in options.studies or study_names()]
    print(cost_table(studies, options.scale, _layout(options)))


def _layout(options: argparse.Namespace) -> Layout:
    return Layout(options.results, getattr(options, "figures", Path("figures")))


def _progress(options: argparse.Namespace) -> None:
    from resnet_limits.progress import follow

    follow(options.results, options.scale, options.watch)


def _data(options: argparse.Namespace) -> None:
    from resnet_limits.archive import refuse_archive
    from resnet_limits.data.images import prepare

    if options.stamp:
        refuse_archive(options.stamp)
    prepare(options.names, options.data_root, options.stamp)


def _document(options: argparse.Namespace) -> None:
    from resnet_limits.settings_table import update_readme

    for study in options.studies:
        update_readme(load_study(study))


def _front_page(options: argparse.Namespace) -> None:
    from resnet_limits.front_page import update_front_page

    update_front_page(Path("README.md"), study_names(), Layout(options.results))


def _new_study(options: argparse.Namespace) -> None:
    from resnet_limits.new_study import create

    print(*create(options.name, Path()), sep="\n")
    print(
        f"Next: resnet-limits document {options.name}, then "
        f"snakemake --cores 2 --config scale=smoke studies=[{options.name}]"
    )


def _schema(options: argparse.Namespace) -> None:
    from resnet_limits.settings import json_schema

    study = load_study(options.study)
    require_known(options.experiment, study.experiments, f"{options.study}: experiment")
    print(json.dumps(json_schema(study.settings_class(options.experiment)), indent=1))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.splitlines())
        self.exit(2, f"{self.prog}: {line} (see {self.prog} --help)\n")


def _seconds(text: str) -> float:
    """Return a number of seconds, at least 0; infinity and NaN are refused."""
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError
    return seconds


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `shtab` makes a shell's completion of it."""
    whole = _Parser(prog="resnet-limits", description=DESCRIPTION, formatter_class=VERBATIM)
    commands = _Commands(whole)

    config = commands.add(
        "config",
        "print a run's resolved configuration",
        "two_spirals rate constant --scale smoke > run.json",
        _config,
    )
    config.add_argument("study")
    config.add_argument("experiment")
    config.add_argument("run_id", metavar="run")
    config.add_argument("--scale", choices=TRAINED_SCALES, default="quick")

    train = commands.add(
        "train",
        "train one run, or continue it",
        "--config run.json --output results/smoke/two_spirals/rate/constant",
        _train,
    )
    train.add_argument("--config", required=True, help="a run's configuration: JSON, or a file")
    train.add_argument("--output", type=Path, required=True, help="the run's folder")
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    train.add_argument("--data-root", type=Path, default=Path("data"))
    train.add_argument("--checkpoint-seconds", type=_seconds, default=20.0)

    table = commands.add(
        "table",
        "turn the runs that have finished into a tidy table",
        "two_spirals final --scale smoke",
        _table,
    )
    table.add_argument("study")
    table.add_argument("table")
    _add_places(table)

    plot = commands.add(
        "plot",
        "turn tables into a figure, PNG and PDF",
        "two_spirals rate --scale smoke",
        _plot,
    )
    plot.add_argument("study")
    plot.add_argument("figure")
    _add_places(plot, figures=True)

    claims = commands.add(
        "claims", "judge a study's claims by its tables", "two_spirals --scale smoke", _claims
    )
    claims.add_argument("study")
    _add_places(claims)

    report = commands.add(
        "report",
        "write claims.csv and report.html of a scale",
        "two_spirals sorted_tau --scale smoke",
        _report,
    )
    report.add_argument("studies", nargs="+", metavar="study")
    _add_places(report, figures=True)

    record = commands.add(
        "record",
        "add finished runs to the archive",
        "sorted_tau resnet20 resnet20_vanilla_seed0 --scale paper",
        _record,
    )
    record.add_argument("study")
    record.add_argument("experiment", nargs="?", help="all experiments if none is named")
    record.add_argument("runs", nargs="*", metavar="run", help="all that have finished if none is")
    _add_places(record)
    record.add_argument(
        "--force",
        action="store_true",
        help="replace runs of another scale, and keep runs that other sources trained",
    )

    cost = commands.add(
        "cost", "tell what finished runs cost, by their records", "--scale recorded", _cost
    )
    cost.add_argument("studies", nargs="*", metavar="study", help="all if none is named")
    _add_places(cost)

    progress = commands.add(
        "progress", "show running trainings, with the time that is left", "--watch", _progress
    )
    progress.add_argument("--scale", choices=TRAINED_SCALES, help="only this one")
    progress.add_argument("--results", type=Path, default=Path("results"))
    progress.add_argument("--watch", action="store_true", help="refresh until interrupted")

    data = commands.add(
        "data",
        "find or download image data sets, and decode them",
        "cifar10 --data-root data",
        _data,
    )
    data.add_argument("names", nargs="+", metavar="name", help="cifar10, cifar100, mnist, digits")
    data.add_argument("--data-root", type=Path, default=Path("data"))
    data.add_argument("--stamp", type=Path, help="write what is known of the (one) data set here")

    document = commands.add(
        "document", "renew the settings tables of a study's README", "two_spirals", _document
    )
    document.add_argument("studies", nargs="+", metavar="study")

    front_page = commands.add(
        "front-page",
        "renew README.md's table of verdicts, from those of the archive",
        "",
        _front_page,
    )
    front_page.add_argument("--results", type=Path, default=Path("results"))

    schema = commands.add(
        "schema",
        "print the JSON Schema of an experiment's settings",
        "two_spirals rate",
        _schema,
    )
    schema.add_argument("study")
    schema.add_argument("experiment")

    new_study = commands.add(
        "new-study", "write a small study that works, to change", "deep_linear", _new_study
    )
    new_study.add_argument("name", help="such as deep_linear")
    return whole


class _Commands:
    """The commands of a parser, each with an example; the parser's help lists them all."""

    def __init__(self, whole: argparse.ArgumentParser) -> None:
        self._whole = whole
        self._whole.epilog = "examples:"
        self._parsers = whole.add_subparsers(dest="command", required=True, metavar="command")

    def add(
        self, name: str, what: str, example: str, run: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        line = f"{self._whole.prog} {name} {example}".rstrip()
        self._whole.epilog = f"{self._whole.epilog}\n  {line}"
        command: argparse.ArgumentParser = self._parsers.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=f"example:\n  {line}",
            formatter_class=VERBATIM,
        )
        command.set_defaults(run=run)
        return command


def _add_places(parser: argparse.ArgumentParser, figures: bool = False) -> None:
    parser.add_argument("--scale", choices=SCALES, default="quick")
    parser.add_argument("--results", type=Path, default=Path("results"))
    if figures:
        parser.add_argument("--figures", type=Path, default=Path("figures"))


if __name__ == "__main__":
    sys.exit(main())
