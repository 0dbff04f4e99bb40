"""What a study asks for: study.yaml and a scale in, experiments and run configurations out.

Nothing here imports torch, so that Snakemake and the command line start at once.
"""

from __future__ import annotations

import importlib
import itertools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from resnet_limits.documents import read_yaml
from resnet_limits.errors import UserError, require_known, suggest
from resnet_limits.layout import RunKey
from resnet_limits.provenance import PACKAGE, analysis_digest, digest, public_names, training_digest
from resnet_limits.settings import Incidental, Settings, Truncates, axes, build, marked, to_json
from resnet_limits.study_files import (
    ARGUMENTS,
    NOT_RUN,
    PAPER,
    REDUCED,
    TRAINED_SCALES,
    TRUNCATED,
    Claim,
    ClaimsFile,
    FigureSpec,
    Protocol,
    Resources,
    StudyFile,
    TableSpec,
)

STUDIES = PACKAGE / "studies"
MEGABYTE = 10**6


def report_sources(studies: Sequence[str]) -> str:
    """Return the digest of what a report says besides tables, figures and verdicts.

    That is whatever writes the page, texts of study.yaml, and the sources of training, since the
    page says which runs they have changed since.
    """
    parts = [PACKAGE / f"report.{suffix}" for suffix in ("html.j2", "css", "js")]
    page = analysis_digest(PACKAGE / "report.py", parts)
    found = [load_study(name) for name in studies]
    texts = [study.document.model_dump(mode="json") for study in found]
    return digest([page, texts, [s.sources(name) for s in found for name in s.experiments]])


def study_names() -> list[str]:
    """Return the names of all studies, that is, of all folders with a study.yaml."""
    return sorted(path.parent.name for path in STUDIES.glob("*/study.yaml"))


def some_studies(names: Sequence[str]) -> list[str]:
    """Return what tells results of some studies from those of all: their names, or nothing."""
    return [] if set(names) == set(study_names()) else sorted(set(names))


@cache
def load_study(name: str) -> Study:
    """Read and validate a study: every run of every scale, and every claim.

    Raises
    ------
    UserError
        If there is no such study or one of its files is wrong, naming file and key.
    """
    require_known(name, study_names(), "study")
    return Study(name, STUDIES / name)


@dataclass(frozen=True)
class RunConfig:
    """A run's resolved configuration: all that training is told."""

    key: RunKey
    settings: Settings

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as plain values, as records have it."""
        return {**vars(self.key), "settings": to_json(self.settings)}

    @property
    def digest(self) -> str:
        """A hash of the configuration."""
        return digest(self.to_json())

    @property
    def largest_need(self) -> tuple[str, int]:
        """The settings that need most memory, and a lower bound of it in bytes."""
        needs = self.settings.memory_bytes()
        return max(needs.items(), key=lambda item: item[1], default=("", 0))


@dataclass(frozen=True)
class Experiment:
    """One training problem and its grid at one scale.

    Attributes
    ----------
    settings
        Value of every setting; a list for a grid axis.
    grid
        Names of the grid axes, in the order of study.yaml.
    settings_class
        The type of a run's settings; its axes are what one run trains together, and every other
        axis of the grid makes runs of its own.
    runs_here
        Whether this scale runs the experiment at all; if not, it has no runs.
    """

    study: str
    name: str
    scale: str
    settings: Mapping[str, Any]
    grid: tuple[str, ...]
    settings_class: type[Settings]
    resources: Resources
    runs_here: bool = True

    @property
    def run_axes(self) -> tuple[str, ...]:
        """Grid axes that tell the runs apart."""
        return tuple(axis for axis in self.grid if axis not in axes(self.settings_class))

    def runs(self) -> dict[str, RunConfig]:
        """Return the resolved configuration of every run by its id."""
        if not self.runs_here:
            return {}
        points = itertools.product(*(self.settings[axis] for axis in self.run_axes))
        configs = (self._config(dict(zip(self.run_axes, point, strict=True))) for point in points)
        return {config.key.run: config for config in configs}

    def _config(self, point: Mapping[str, Any]) -> RunConfig:
        key = RunKey(self.scale, self.study, self.name, run_id(point))
        where = f"{STUDIES / self.study / 'study.yaml'}: {self.name} at scale {self.scale}"
        return RunConfig(key, build(self.settings_class, {**self.settings, **point}, where))


def run_id(point: Mapping[str, Any]) -> str:
    """Return the readable id of a grid point.

    ``{"activation": "gelu", "depth": 64}`` is ``gelu_depth64``; an empty point, where the whole
    grid is one run, is ``all``.
    """
    parts = (v if isinstance(v, str) else f"{name}{v}" for name, v in point.items())
    return "_".join(parts) or "all"


class Study:
    """A study's files, validated: protocol, claims, and the modules that define its parts.

    Modules are found by role: ``[part_]problems.py``, ``[part_]tables.py``, ``[part_]plots.py``.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.file = folder / "study.yaml"
        self.document: StudyFile = build(StudyFile, read_yaml(self.file), str(self.file))
        self._check_names()
        for experiment in self.experiments:
            self._check_experiment(experiment)
        self._check_claims()

    @property
    def title(self) -> str:
        """The study's title."""
        return self.document.title

    @property
    def experiments(self) -> dict[str, Protocol]:
        """The protocol's experiments as study.yaml has them."""
        return self.document.experiments

    @property
    def tables(self) -> dict[str, TableSpec]:
        """Tables by name."""
        return self.document.tables

    @property
    def figures(self) -> dict[str, FigureSpec]:
        """Figures by name."""
        return self.document.figures

    @cached_property
    def claims(self) -> list[Claim]:
        """The paper's claims, and checks of ours (claims.yaml)."""
        path = self.folder / "claims.yaml"
        return build(ClaimsFile, {"claims": read_yaml(path)}, str(path)).claims

    def experiment(self, name: str, scale: str) -> Experiment:
        """Resolve an experiment at a scale: the protocol, then what the scale overrides."""
        require_known(name, self.experiments, f"{self.name}: experiment")
        require_known(scale, TRAINED_SCALES, "scale")
        protocol = self.experiments[name]
        overrides = self._overrides(scale).get(name, {})
        runs_here = overrides != NOT_RUN
        values = self._contents(name)
        return Experiment(
            study=self.name,
            name=name,
            scale=scale,
            settings={**values, **overrides} if isinstance(overrides, dict) else values,
            grid=tuple(key for key, source in protocol.settings.items() if source.grid is not None),
            settings_class=self.settings_class(name),
            resources=protocol.resources,
            runs_here=runs_here,
        )

    def runs(self, scale: str, experiment: str | None = None) -> Iterator[RunConfig]:
        """Yield the run configurations of one experiment, or of all, at a scale."""
        for name in [experiment] if experiment else self.experiments:
            yield from self.experiment(name, scale).runs().values()

    def run(self, key: RunKey) -> RunConfig:
        """Return one run's configuration."""
        runs = self.experiment(key.experiment, key.scale).runs()
        require_known(key.run, runs, f"{self.name}/{key.experiment}: run")
        return runs[key.run]

    def config(self, document: Mapping[str, Any], where: str) -> RunConfig:
        """Return the typed form of what `RunConfig.to_json` gave, or of what a user wrote."""
        key = RunKey(*(document[part] for part in ("scale", "study", "experiment", "run")))
        require_known(key.scale, TRAINED_SCALES, f"{where}: scale")
        require_known(key.experiment, self.experiments, f"{where}: experiment")
        settings = build(
            self.settings_class(key.experiment), document["settings"], f"{where}: settings"
        )
        return RunConfig(key, settings)

    def protocol_of(self, experiment: str, settings: Mapping[str, Any]) -> tuple[str, str]:
        """Compare a run's settings with the experiment's protocol.

        Parameters
        ----------
        experiment
            Its experiment.
        settings
            As plain values.

        Returns
        -------
        protocol
            ``paper`` if the run is a point of the paper's grid, ``truncated`` if only training
            ends earlier, else ``reduced``. Settings marked `Incidental` count for nothing.
        departures
            The settings that differ, with the run's values; empty for ``paper``.
        """
        settings_class, grid = self.settings_class(experiment), _paper_grid(self, experiment)
        ignored, together = marked(settings_class, Incidental), axes(settings_class)
        differing = {
            key: settings.get(key)
            for key in dict.fromkeys([*grid, *settings])
            if key not in ignored
            and not _is_point(settings.get(key), grid.get(key, []), key in together)
        }
        if not differing:
            return PAPER, ""
        truncated = differing.keys() <= set(marked(settings_class, Truncates))
        departures = ", ".join(f"{key} {_in_short(value)}" for key, value in differing.items())
        return TRUNCATED if truncated else REDUCED, departures

    def settings_class(self, experiment: str) -> type[Settings]:
        """Return the type of an experiment's settings: ``XSettings`` of ``XProblem``."""
        problem = self.experiments[experiment].problem
        name = problem.removesuffix("Problem") + "Settings"
        module = self._import("settings")
        known = [key for key in vars(module) if key.endswith("Settings")]
        where = f"{self.file}: experiments.{experiment}.problem: {problem}: settings class"
        require_known(name, known, where)
        found: type[Settings] = getattr(module, name)
        return found

    def problem_module(self, experiment: str) -> Path:
        """Return the file that defines an experiment's problem."""
        return self.find("problems", self.experiments[experiment].problem)

    def sources(self, experiment: str) -> str:
        """Return the digest of all sources that can change an experiment's trained numbers."""
        return training_digest(self.problem_module(experiment))

    def analysis_sources(self, role: str, name: str) -> str:
        """Return the digest of what makes a table or figure, the study's CSV files included."""
        made = analysis_digest(self.find(role, name), sorted(self.folder.glob("*.csv")))
        if role != "tables":
            return made
        # A table says which of its rows are of the paper's protocol.
        protocols = {key: self._contents(key) for key in self.tables[name].experiments}
        return digest([made, protocols])

    def claims_sources(self) -> str:
        """Return the digest of what judges the study's claims."""
        files = [self.folder / "claims.yaml", *sorted(self.folder.glob("*.csv"))]
        return analysis_digest(PACKAGE / "claims.py", files)

    def find(self, role: str, name: str) -> Path:
        """Return the module of a role, such as ``tables``, that defines a function or class.

        Raises
        ------
        UserError
            If none does, or more than one.
        """
        found = [p for p in sorted(self.folder.glob(f"*{role}.py")) if name in public_names(p)]
        if not found:
            files = f"{self.folder}/[part_]{role}.py"
            raise UserError(f"{files}: none defines {name!r}, which study.yaml names; write it.")
        if len(found) > 1:
            both = " and ".join(path.name for path in found)
            raise UserError(f"{self.folder}: {both} both define {name!r}; rename one.")
        return found[0]

    def load(self, role: str, name: str) -> Any:
        """Import and return the function or class that `find` finds."""
        return getattr(self._import(self.find(role, name).stem), name)

    def _import(self, stem: str) -> ModuleType:
        """Import one of the study's modules; `UserError` names the line that fails."""
        path = self.folder / f"{stem}.py"
        public_names(path)  # a mistake of syntax has a message of its own
        try:
            return importlib.import_module(f"resnet_limits.studies.{self.name}.{stem}")
        except Exception as error:  # whatever running the module may raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{path}: cannot be imported: {frame.filename}:{frame.lineno}: {what}. Correct it."
            ) from error

    def _contents(self, experiment: str) -> dict[str, Any]:
        """Return the protocol's settings without their sources."""
        settings = self.experiments[experiment].settings
        return {key: source.content for key, source in settings.items()}

    def _overrides(self, scale: str) -> dict[str, Any]:
        return next((found for name, found in self.document.scales.items() if name == scale), {})

    def _check_names(self) -> None:
        for name, table in self.tables.items():
            self.find("tables", name)
            for experiment in table.experiments:
                require_known(experiment, self.experiments, f"{self.file}: tables.{name}:")
        for name, figure in self.figures.items():
            self.find("plots", name)
            for table_name in figure.tables:
                require_known(table_name, self.tables, f"{self.file}: figures.{name}:")
        headline = f"{self.file}: headline_figure:"
        require_known(self.document.headline_figure, self.figures, headline)
        for scale in self.document.scales:
            for name, overrides in self._overrides(scale).items():
                where = f"{self.file}: scales.{scale}"
                require_known(name, self.experiments, f"{where}:")
                if overrides != NOT_RUN and not isinstance(overrides, dict):
                    raise UserError(
                        f"{where}.{name}: {overrides!r} is not allowed; give settings, or write "
                        f"{NOT_RUN!r}."
                    )

    def _check_experiment(self, name: str) -> None:
        self.problem_module(name)
        protocol = self.experiments[name]
        for key, source in protocol.settings.items():
            where = f"{self.file}: experiments.{name}.settings.{key}"
            self._check_grid(name, key, source.content, where)
        for scale in TRAINED_SCALES:
            overrides = self._overrides(scale).get(name, {})
            for key, value in overrides.items() if isinstance(overrides, dict) else ():
                where = f"{self.file}: scales.{scale}.{name}.{key}"
                if key not in protocol.settings:
                    raise UserError(f"{where}: unknown key; {suggest(key, protocol.settings)}")
                self._check_grid(name, key, value, where)
        # Building a run's configuration checks its settings, one by one and together.
        for scale in reversed(TRAINED_SCALES):  # the protocol first
            for config in self.experiment(name, scale).runs().values():
                self._check_memory(config)

    def _check_memory(self, config: RunConfig) -> None:
        """Refuse a run that can never fit into the memory that it asks for."""
        asked = self.experiments[config.key.experiment].resources.mem_mb
        names, needed = config.largest_need
        if needed > asked * MEGABYTE:
            raise UserError(
                f"{self.file}: {config.key}: {names}: needs at least {needed / MEGABYTE:.0f} MB of "
                f"memory, but resources.mem_mb is {asked}; raise it, or give smaller numbers."
            )

    def _check_grid(self, experiment: str, key: str, value: Any, where: str) -> None:
        source = self.experiments[experiment].settings[key]
        if source.grid is None:
            return
        if not isinstance(value, list) or not value:
            raise UserError(f"{where}: is a grid axis; give a list with at least one value.")
        for index, point in enumerate(value):
            if point in value[:index]:
                raise UserError(f"{where}: duplicate value {point!r}; keep one.")

    def _check_claims(self) -> None:
        path = self.folder / "claims.yaml"
        names = [claim.id for claim in self.claims]
        for claim in self.claims:
            where = f"{path}: {claim.id}"
            if names.count(claim.id) > 1:
                raise UserError(f"{path}: duplicate id {claim.id!r}; rename one.")
            require_known(claim.table, self.tables, f"{where}.table:")
            if claim.figure:
                require_known(claim.figure, self.figures, f"{where}.figure:")
            require_known(claim.test, ARGUMENTS, f"{where}.test:")
            for argument in claim.arguments:
                require_known(argument, ARGUMENTS[claim.test], f"{where}.arguments:")
            if claim.reference and not (self.folder / claim.reference.file).is_file():
                raise UserError(
                    f"{where}.reference.file: {claim.reference.file} is not in {self.folder}; "
                    "put it there."
                )


@cache
def _paper_grid(study: Study, experiment: str) -> dict[str, list[Any]]:
    """Return the values that each setting has in the runs of scale paper.

    Those of a setting whose values one run trains together are lists.
    """
    runs = [to_json(run.settings) for run in study.runs(PAPER, experiment)]
    return {key: [run[key] for run in runs] for key in runs[0]}


def _is_point(value: Any, grid: Sequence[Any], trained_together: bool) -> bool:
    """Tell whether a run's value, or values that it trains together, are the paper's."""
    if trained_together and isinstance(value, list):
        return any(set(value) <= set(point) for point in grid)
    return value in grid


def _in_short(value: Any) -> str:
    return str(value) if isinstance(value, int | float | str) else "other"
