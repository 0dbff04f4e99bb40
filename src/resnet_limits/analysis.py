"""Runs to tidy tables."""

from __future__ import annotations

import io

import pandas as pd

from resnet_limits.archive import archived_runs
from resnet_limits.errors import UserError, require_known
from resnet_limits.files import hash_bytes, hash_file, write_atomic, write_table
from resnet_limits.layout import RECORDED, Layout
from resnet_limits.runs import Run, read_run, with_protocol
from resnet_limits.spec import Study, load_study


def make_table(study: str, table: str, scale: str, layout: Layout) -> None:
    """Write one of a study's tables from the runs that have finished.

    A table none of whose experiments has a run is empty. One all of whose runs diverged says so in
    a column ``diverged``, and has a row for that if nothing else is left of them.

    Raises
    ------
    UserError
        If a record is damaged or of another configuration than study.yaml asks for.
    """
    spec = load_study(study)
    require_known(table, spec.tables, f"{study}: table")
    runs = {
        experiment: finished_runs(spec, experiment, scale, layout)
        for experiment in spec.tables[table].experiments
    }
    frame = pd.DataFrame(columns=["dataset"])
    if any(runs.values()):
        frame = with_protocol(spec.load("tables", table)(runs), runs)
        read = [run.record for found in runs.values() for run in found]
        if all(record.outcome.state == "diverged" for record in read):
            frame = _diverged(frame, read[0].data.name)
    path = layout.table(scale, study, table)
    write_table(path, frame)
    write_atomic(layout.table_digest(scale, study, table), f"{hash_file(path)}  {path.name}\n")
    print(path)


def _diverged(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return a table that says that every run diverged."""
    if frame.empty:
        frame = frame.reindex([0]).assign(dataset=dataset)
    return frame.assign(diverged=True)


def finished_runs(spec: Study, experiment: str, scale: str, layout: Layout) -> list[Run]:
    """Read the runs of an experiment that have finished, or that the archive holds."""
    if scale == RECORDED:
        return archived_runs(spec.name, experiment, layout)
    configs = spec.experiment(experiment, scale).runs().values()
    return [
        read_run(layout.run(config.key), config)
        for config in configs
        if layout.record(config.key).exists()
    ]


def read_table(study: str, table: str, scale: str, layout: Layout) -> pd.DataFrame:
    """Read a table; `UserError` if it is missing or was changed after it was made."""
    path = layout.table(scale, study, table)
    try:
        content = path.read_bytes()
        wanted = layout.table_digest(scale, study, table).read_text("utf-8").split()
    except (FileNotFoundError, UnicodeDecodeError):
        raise UserError(f"{path}: missing, or its .sha256 is; run Snakemake to make it.") from None
    if wanted != [hash_bytes(content), path.name]:
        raise UserError(
            f"{path}: was changed after it was made. To make it again: "
            f"snakemake --cores 1 --force {path}"
        )
    return pd.read_csv(io.BytesIO(content))
