"""What a study asks for: study.yaml and a scale in, experiments and run configurations out.

Nothing here imports torch, so that Snakemake and the command line start at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from resnet_limits.errors import UserError, require_known, suggest
from resnet_limits.schemas import read_yaml, schema, validate

STUDIES = Path(__file__).parent / "studies"
TRAINED_SCALES = ("smoke", "quick", "laptop", "paper")
SCALES = (*TRAINED_SCALES, "recorded")
NOT_RUN = "not run"
RESOURCES = {"threads": 1, "mem_mb": 2000, "runtime": 60, "gpu": 0}

Config = dict[str, Any]


def digest(value: Any) -> str:
    """Return a hash of a JSON value that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def study_names() -> list[str]:
    """Return the names of all studies, that is, of all folders with a study.yaml."""
    return sorted(path.parent.name for path in STUDIES.glob("*/study.yaml"))


@cache
def load_study(name: str) -> Study:
    """Read and validate a study.

    Raises
    ------
    UserError
        If there is no such study or one of its files is wrong, naming file and key.
    """
    require_known(name, study_names(), "study")
    return Study(name, STUDIES / name)


@dataclass(frozen=True)
class Experiment:
    """One training problem and its grid at one scale.

    Attributes
    ----------
    settings
        Value of every setting; a list for a grid axis.
    grid
        Names of the grid axes, in the order of study.yaml.
    batch
        The axes that a run trains together; every other axis makes runs of its own.
    is_run
        Whether this scale runs the experiment at all; if not, it has no runs.
    """

    study: str
    name: str
    scale: str
    problem: str
    settings: Mapping[str, Any]
    grid: tuple[str, ...]
    batch: tuple[str, ...]
    resources: Mapping[str, int] = field(default_factory=dict)
    is_run: bool = True

    @property
    def run_axes(self) -> tuple[str, ...]:
        """Grid axes that tell the runs apart."""
        return tuple(axis for axis in self.grid if axis not in self.batch)

    def runs(self) -> dict[str, Config]:
        """Return the resolved configuration of every run by its id."""
        if not self.is_run:
            return {}
        points = itertools.product(*(self.settings[axis] for axis in self.run_axes))
        configs = (self._config(dict(zip(self.run_axes, point, strict=True))) for point in points)
        return {config["run"]: config for config in configs}

    def _config(self, point: Mapping[str, Any]) -> Config:
        return {
            "study": self.study,
            "experiment": self.name,
            "run": run_id(point),
            "scale": self.scale,
            "settings": {**self.settings, **point},
        }


def run_id(point: Mapping[str, Any]) -> str:
    """Return the readable id of a grid point.

    ``{"activation": "gelu", "depth": 64}`` is ``gelu_depth64``; an empty point, where the whole
    grid is one run, is ``all``.
    """
    parts = (v if isinstance(v, str) else f"{name}{v}" for name, v in point.items())
    return "_".join(parts) or "all"


class Study:
    """A study's files, validated: protocol, settings' schema and claims."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.file = folder / "study.yaml"
        self.document = read_yaml(self.file)
        validate(self.document, schema("study"), str(self.file))
        self._check()

    @property
    def title(self) -> str:
        """The study's title."""
        return self.document["title"]

    @property
    def experiments(self) -> dict[str, Any]:
        """The protocol's experiments as study.yaml has them."""
        return self.document["experiments"]

    @property
    def tables(self) -> dict[str, Any]:
        """Tables by name, with the experiments they read and a caption."""
        return self.document["tables"]

    @property
    def figures(self) -> dict[str, Any]:
        """Figures by name, with the tables they read and a caption."""
        return self.document["figures"]

    @cached_property
    def settings_schema(self) -> dict[str, dict[str, Any]]:
        """JSON Schema of every setting, by problem and name (schema.yaml).

        ``include: classification`` stands for the settings of schemas/classification.yaml.
        """
        problems = read_yaml(self.folder / "schema.yaml")
        for rules in problems.values():
            if "include" in rules:
                rules |= {**schema(rules.pop("include")), **rules}
        return problems

    @cached_property
    def claims(self) -> list[dict[str, Any]]:
        """The paper's claims (claims.yaml)."""
        path = self.folder / "claims.yaml"
        claims = read_yaml(path)
        validate(claims, schema("claims"), str(path))
        for name in (names := [claim["id"] for claim in claims]):
            if names.count(name) > 1:
                raise UserError(f"{path}: the id {name!r} stands twice; rename one.")
        for claim in claims:
            require_known(claim["table"], self.tables, f"{path}: {claim['id']}.table:")
            if "figure" in claim:
                require_known(claim["figure"], self.figures, f"{path}: {claim['id']}.figure:")
        return claims

    def experiment(self, name: str, scale: str) -> Experiment:
        """Resolve an experiment at a scale: the protocol, then what the scale overrides."""
        require_known(name, self.experiments, f"{self.name}: experiment")
        require_known(scale, TRAINED_SCALES, "scale")
        protocol = self.experiments[name]
        is_run = self._overrides(scale).get(name) != NOT_RUN
        overrides = self._overrides(scale).get(name, {}) if is_run else {}
        settings = {
            key: overrides.get(key, setting.get("grid", setting.get("value")))
            for key, setting in protocol["settings"].items()
        }
        return Experiment(
            study=self.name,
            name=name,
            scale=scale,
            problem=protocol["problem"],
            settings=settings,
            grid=tuple(key for key, setting in protocol["settings"].items() if "grid" in setting),
            batch=tuple(protocol.get("batch", ())),
            resources=RESOURCES | protocol.get("resources", {}),
            is_run=is_run,
        )

    def runs(self, scale: str, experiment: str | None = None) -> Iterator[Config]:
        """Yield the run configurations of one experiment, or of all, at a scale."""
        for name in [experiment] if experiment else self.experiments:
            yield from self.experiment(name, scale).runs().values()

    def run(self, scale: str, experiment: str, run: str) -> Config:
        """Return one run's configuration."""
        runs = self.experiment(experiment, scale).runs()
        require_known(run, runs, f"{self.name}/{experiment}: run")
        return runs[run]

    def builder(self, experiment: str) -> tuple[str, str]:
        """Return the module of the study's folder, and the function in it, that build a problem.

        ``problem: images.cifar`` is ``cifar`` of ``images.py``; without a module it is
        ``experiments.py``.
        """
        module, _, function = self.experiments[experiment]["problem"].rpartition(".")
        return module or "experiments", function

    def check_config(self, config: Config, where: str) -> None:
        """Raise `UserError` unless a configuration has exactly its problem's settings."""
        require_known(config["experiment"], self.experiments, f"{where}: experiment")
        rules = self.problem_schema(config["experiment"])
        batch = self.experiments[config["experiment"]].get("batch", ())
        properties = {
            key: {"type": "array", "minItems": 1, "items": rule} if key in batch else rule
            for key, rule in rules.items()
        }
        whole = {"properties": properties, "required": [*rules], "additionalProperties": False}
        validate(config["settings"], whole, f"{where}: settings")

    def problem_schema(self, experiment: str) -> dict[str, Any]:
        """Return the schema of an experiment's settings."""
        problem = self.experiments[experiment]["problem"]
        require_known(problem, self.settings_schema, f"{self.file}: {experiment}.problem:")
        return self.settings_schema[problem]

    def _overrides(self, scale: str) -> dict[str, Any]:
        return (self.document.get("scales") or {}).get(scale) or {}

    def _check(self) -> None:
        for name in self.experiments:
            self._check_experiment(name)
        for scale in self.document.get("scales") or {}:
            self._check_overrides(scale)
        for name, table in self.tables.items():
            for experiment in table["experiments"]:
                require_known(experiment, self.experiments, f"{self.file}: tables.{name}:")
        for name, figure in self.figures.items():
            for table in figure["tables"]:
                require_known(table, self.tables, f"{self.file}: figures.{name}:")

    def _check_experiment(self, name: str) -> None:
        protocol, rules = self.experiments[name], self.problem_schema(name)
        where = f"{self.file}: experiments.{name}"
        for key, setting in protocol["settings"].items():
            self._check_setting(
                key, setting.get("grid", setting.get("value")), name, f"{where}.settings"
            )
        for key in rules:
            if key not in protocol["settings"]:
                raise UserError(f"{where}.settings: lacks the key {key!r}; add it.")
        grid = [key for key, setting in protocol["settings"].items() if "grid" in setting]
        for axis in protocol.get("batch", ()):
            require_known(axis, grid, f"{where}.batch: grid axis")

    def _check_overrides(self, scale: str) -> None:
        for name, overrides in self._overrides(scale).items():
            require_known(name, self.experiments, f"{self.file}: scales.{scale}:")
            where = f"{self.file}: scales.{scale}.{name}"
            if overrides == NOT_RUN:
                continue
            for key, value in overrides.items():
                self._check_setting(key, value, name, where)

    def _check_setting(self, key: str, value: Any, experiment: str, where: str) -> None:
        rules = self.problem_schema(experiment)
        if key not in rules:
            raise UserError(f"{where}: unknown key {key!r}; {suggest(key, rules)}")
        protocol = self.experiments[experiment]["settings"].get(key, {})
        if "grid" not in protocol:
            validate(value, rules[key], f"{where}.{key}")
            return
        if not isinstance(value, list) or not value:
            raise UserError(f"{where}.{key}: is a grid axis; give a list with at least one value.")
        for place, point in enumerate(value):
            validate(point, rules[key], f"{where}.{key}")
            if point in value[:place]:
                raise UserError(f"{where}.{key}: {point!r} stands twice; leave one out.")
