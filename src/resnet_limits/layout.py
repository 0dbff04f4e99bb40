"""Every path under ``results/`` and ``figures/``, from one typed key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECORDED = "recorded"  # the scale that is an archive: its runs are kept, not trained

# Files of a run's folder.
RECORD = "record.json"
KEPT_RECORD = ".record.json"  # the same once more, since Snakemake deletes outputs it is unsure of
CHECKPOINT = "checkpoint.pt"
PROGRESS = "progress.jsonl"
LOCK = ".lock"

MANIFEST = "manifest.json"  # of a study's archive

# Folders beside the experiments' in a study's folder.
TABLES, LOGS = "tables", "logs"


@dataclass(frozen=True)
class RunKey:
    """What tells one run from all others."""

    scale: str
    study: str
    experiment: str
    run: str

    def __str__(self) -> str:
        return f"{self.scale}/{self.study}/{self.experiment}/{self.run}"


@dataclass(frozen=True)
class Layout:
    """The folders of results and figures, and the path of everything in them.

    The workflow passes wildcards such as ``"{scale}"`` for names, and gets patterns.
    """

    results: Path = Path("results")
    figures: Path = Path("figures")

    def study(self, scale: str, study: str) -> Path:
        """Return the folder of a study's results at a scale."""
        return self.results / scale / study

    def run(self, key: RunKey) -> Path:
        """Return a run's folder: record, measurements, log."""
        return self.study(key.scale, key.study) / key.experiment / key.run

    def record(self, key: RunKey) -> Path:
        """Return the file of a run's record."""
        return self.run(key) / RECORD

    def archived(self, key: RunKey) -> Path:
        """Return the folder that the archive keeps a run in, whatever scale it came from."""
        return self.study(RECORDED, key.study) / key.experiment / key.run

    def manifest(self, study: str) -> Path:
        """Return the file that says what the archive holds of a study."""
        return self.study(RECORDED, study) / MANIFEST

    def table(self, scale: str, study: str, table: str) -> Path:
        """Return the file of a tidy table."""
        return self.study(scale, study) / TABLES / f"{table}.csv"

    def table_digest(self, scale: str, study: str, table: str) -> Path:
        """Return the file with the hash of a table, in the form of ``sha256sum``."""
        return self.table(scale, study, table).with_suffix(".csv.sha256")

    def claims(self, scale: str, study: str) -> Path:
        """Return the file of a study's verdicts."""
        return self.study(scale, study) / "claims.json"

    def log(self, scale: str, study: str, name: str) -> Path:
        """Return the log of a study's table, figure or verdicts."""
        return self.study(scale, study) / LOGS / f"{name}.log"

    def figure(self, scale: str, study: str, figure: str, suffix: str = "png") -> Path:
        """Return the file of a figure; ``suffix`` is png or pdf."""
        return self.figures / scale / study / f"{figure}.{suffix}"

    def all_claims(self, scale: str, some: Sequence[str] = ()) -> Path:
        """Return the table of all studies' verdicts, or of some studies', by their names."""
        return self.results / scale / f"{'-'.join(['claims', *some])}.csv"

    def report(self, scale: str, some: Sequence[str] = ()) -> Path:
        """Return the report page about all studies, or about some, by their names."""
        return self.results / scale / f"{'-'.join(['report', *some])}.html"

    def stamp(self, dataset: str) -> Path:
        """Return the file that says that a data set is at hand."""
        return self.results / "data" / f"{dataset}.json"
