"""Run records to tidy tables, tidy tables to figures."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from resnet_limits.errors import UserError, require_known
from resnet_limits.files import write_table
from resnet_limits.record import Run, read_run
from resnet_limits.spec import load_study


def make_table(study: str, table: str, scale: str, results: Path) -> None:
    """Write one of a study's tables from its run records.

    Raises
    ------
    UserError
        If a record is missing, damaged, or of another configuration than study.yaml asks for.
    """
    spec = load_study(study)
    require_known(table, spec.tables, f"{study}: table")
    runs = {
        experiment: [
            read_run(run_folder(results, config), config) for config in spec.runs(scale, experiment)
        ]
        for experiment in spec.tables[table]["experiments"]
    }
    frame = _function(study, "tables", table)(runs)
    path = table_path(results, scale, study, table)
    write_table(path, frame)
    print(path)


def draw_figure(study: str, figure: str, scale: str, results: Path, figures: Path) -> None:
    """Draw one of a study's figures from its tables, as PNG and PDF."""
    from resnet_limits import style

    spec = load_study(study)
    require_known(figure, spec.figures, f"{study}: figure")
    names = spec.figures[figure]["tables"]
    tables = {name: read_table(results, scale, study, name) for name in names}
    paths = [table_path(results, scale, study, name) for name in names]
    with style.applied():
        drawn = _function(study, "plots", figure)(tables)
        label = _scale_label(results, scale, study)
        style.save(drawn, figures / scale / study / figure, tables, paths, label)


def _scale_label(results: Path, scale: str, study: str) -> str:
    if scale != "recorded":
        return scale
    from resnet_limits.recorded import manifest

    return f"{manifest(results, study)['scale']} (recorded)"


def run_folder(results: Path, config: dict) -> Path:
    """Return the folder of a run."""
    return results / config["scale"] / config["study"] / config["experiment"] / config["run"]


def table_path(results: Path, scale: str, study: str, table: str) -> Path:
    """Return the file of a table."""
    return results / scale / study / "tables" / f"{table}.csv"


def read_table(results: Path, scale: str, study: str, table: str) -> pd.DataFrame:
    """Read a table; `UserError` if it is missing or empty."""
    path = table_path(results, scale, study, table)
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such table; run Snakemake to make it.") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a table ({error}); delete it and run Snakemake.") from None


def _function(study: str, module: str, name: str) -> Callable[..., Any]:
    loaded: ModuleType = importlib.import_module(f"resnet_limits.studies.{study}.{module}")
    if not hasattr(loaded, name):
        raise UserError(f"{loaded.__file__}: lacks the function {name!r} that study.yaml names.")
    return getattr(loaded, name)


Runs = dict[str, list[Run]]
