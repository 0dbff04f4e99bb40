"""The command line: arguments only; what they ask for is done elsewhere."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from resnet_limits.errors import UserError, require_known
from resnet_limits.layout import Layout, RunKey
from resnet_limits.spec import load_study, study_names
from resnet_limits.study_files import SCALES, TRAINED_SCALES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on standard error and exit status 2."""
    options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="resnet-limits", description="The steps of the pipeline by hand.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    config = commands.add_parser("config", help="print a run's resolved configuration")
    config.add_argument("study")
    config.add_argument("experiment")
    config.add_argument("run_id", metavar="run")
    config.add_argument("--scale", choices=TRAINED_SCALES, default="quick")
    config.set_defaults(run=_config)

    train = commands.add_parser("train", help="train one run, or continue it")
    train.add_argument("--config", required=True, help="a run's configuration: JSON, or a file")
    train.add_argument("--output", type=Path, required=True, help="the run's folder")
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    train.add_argument("--data-root", type=Path, default=Path("data"))
    train.add_argument("--checkpoint-seconds", type=_seconds, default=20.0)
    train.set_defaults(run=_train)

    for name, what, run in (
        ("table", "turn run records into a tidy table", _table),
        ("plot", "turn tables into a figure, PNG and PDF", _plot),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("study")
        command.add_argument("table" if name == "table" else "figure")
        _add_places(command, figures=name == "plot")
        command.set_defaults(run=run)

    claims = commands.add_parser("claims", help="judge a study's claims by its tables")
    claims.add_argument("study")
    _add_places(claims)
    claims.set_defaults(run=_claims)

    report = commands.add_parser("report", help="write claims.csv and report.html of a scale")
    report.add_argument("studies", nargs="+", metavar="study")
    _add_places(report, figures=True)
    report.set_defaults(run=_report)

    record = commands.add_parser("record", help="add finished runs to the archive")
    record.add_argument("study")
    record.add_argument("experiment", nargs="?", help="all experiments if none is named")
    record.add_argument("runs", nargs="*", metavar="run", help="all that have finished if none is")
    _add_places(record)
    record.add_argument(
        "--force",
        action="store_true",
        help="replace runs of another scale, and keep runs that other sources trained",
    )
    record.set_defaults(run=_record)

    progress = commands.add_parser("progress", help="show running trainings")
    progress.add_argument("--scale", choices=TRAINED_SCALES, help="only this one")
    progress.add_argument("--results", type=Path, default=Path("results"))
    progress.add_argument("--watch", action="store_true", help="refresh until interrupted")
    progress.set_defaults(run=_progress)

    data = commands.add_parser("data", help="find or download image data sets, and decode them")
    data.add_argument("names", nargs="+", metavar="name", help="cifar10, cifar100, mnist, digits")
    data.add_argument("--data-root", type=Path, default=Path("data"))
    data.add_argument("--stamp", type=Path, help="write what is known of the (one) data set here")
    data.set_defaults(run=_data)

    document = commands.add_parser("document", help="renew the settings tables of a study's README")
    document.add_argument("studies", nargs="+", metavar="study")
    document.set_defaults(run=_document)

    front_page = commands.add_parser(
        "front-page", help="renew README.md's table of verdicts, from those of the archive"
    )
    front_page.add_argument("--results", type=Path, default=Path("results"))
    front_page.set_defaults(run=_front_page)

    schema = commands.add_parser("schema", help="print the JSON Schema of an experiment's settings")
    schema.add_argument("study")
    schema.add_argument("experiment")
    schema.set_defaults(run=_schema)

    new_study = commands.add_parser("new-study", help="write a small study that works, to change")
    new_study.add_argument("name", help="such as deep_linear")
    new_study.set_defaults(run=_new_study)
    return parser


def _add_places(parser: argparse.ArgumentParser, figures: bool = False) -> None:
    parser.add_argument("--scale", choices=SCALES, default="quick")
    parser.add_argument("--results", type=Path, default=Path("results"))
    if figures:
        parser.add_argument("--figures", type=Path, default=Path("figures"))


if __name__ == "__main__":
    sys.exit(main())
