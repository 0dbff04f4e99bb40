"""What study.yaml, claims.yaml and workflow/config.yaml may hold."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from resnet_limits.settings import Mistake, Model

NOT_RUN = "not run"
TRAINED_SCALES = ("smoke", "quick", "laptop", "paper")
SCALES = (*TRAINED_SCALES, "recorded")
# How a run compares with its experiment's protocol, from nearest to farthest.
PROTOCOLS = PAPER, TRUNCATED, REDUCED = "paper", "truncated", "reduced"
NAME = r"^[a-z][a-z0-9_]*$"
# Names of folders and files beside those of experiments.
RESERVED = ("tables", "logs", "data")
# The arguments of each test besides the rows and what keys of a claim say; stats.py defines the
# tests, and a test holds both together, so that a claim is checked without waiting for statistics
# to load.
ARGUMENTS = {
    "binomial_slope": ("x", "failures", "trials"),
    "equivalence": ("value", "unit"),
    "mean": ("value",),
    "paired_difference": (
        "value", "by", "treatment", "baseline", "pair", "in_standard_deviations",
    ),
    "proportion": ("holds", "by"),
    "slope": ("x", "y", "log", "mean_over", "per"),
    "trend": ("x", "y"),
    "value": ("column", "reduce"),
}  # fmt: skip
# Those that name columns of the table.
COLUMN_ARGUMENTS = (
    "x", "y", "mean_over", "failures", "trials", "value", "by", "pair", "holds", "column",
)  # fmt: skip
# Tests that average the rows of a replicate first.
REPLICATED = ("equivalence", "mean", "paired_difference", "proportion", "slope")

Name = Annotated[str, Field(pattern=NAME)]
Text = Annotated[str, Field(min_length=1)]


class Paper(Model):
    """The paper that a study replicates."""

    authors: Text
    title: Text
    venue: Text


class Source(Model):
    """A setting of the protocol: one value, or a grid of them, and where it comes from."""

    value: Any = Field(None, description="the setting's value")
    grid: list[Any] | None = Field(
        None, min_length=1, description="a list with at least one value; each is a grid point"
    )
    source: Literal["paper", "authors-code", "assumed", "derived"]
    where: str = Field("", description="section, page or equation")
    note: str = ""

    @model_validator(mode="after")
    def _one_of_both(self) -> Source:
        if len(self.model_fields_set & {"value", "grid"}) != 1:
            raise ValueError("needs exactly one of the keys value, grid")
        return self

    @property
    def content(self) -> Any:
        """The value, or the list of the grid's values."""
        return self.value if self.grid is None else self.grid


class Resources(Model):
    """What a run asks the scheduler for."""

    threads: int = Field(1, ge=1)
    mem_mb: int = Field(2000, ge=1)
    runtime: int = Field(60, ge=1, description="minutes")
    gpu: int = Field(0, ge=0)


class Protocol(Model):
    """An experiment as the paper has it: one training problem and its grid."""

    problem: str = Field(
        pattern=r"^[A-Z]\w*Problem$",
        description="a class of the study's *problems.py, such as SpiralsProblem",
    )
    about: Text
    resources: Resources = Resources()
    settings: dict[str, Source] = Field(min_length=1)


class TableSpec(Model):
    """A tidy table: the experiments whose runs it reads, and its caption."""

    experiments: list[str] = Field(min_length=1, description="whose records the table reads")
    caption: Text
    shown: bool = Field(False, description="whether the report page shows the table itself")


class FigureSpec(Model):
    """A figure: the tables that it reads, its caption, and the paper's figure it stands for."""

    tables: list[str] = Field(min_length=1)
    caption: Text
    paper: str = Field("", description="the paper's figure or statement that it stands for")


class StudyFile(Model):
    """study.yaml."""

    title: Text
    paper: Paper
    experiments: dict[Name, Protocol] = Field(min_length=1)
    deviations: list[str] = Field([], description="where we depart from the paper, and why")
    scales: dict[Literal["smoke", "quick", "laptop"], dict[str, str | dict[str, Any]]] = Field(
        {}, description="what a scale overrides; `paper` is the protocol itself"
    )
    tables: dict[Name, TableSpec]
    figures: dict[Name, FigureSpec]

    @model_validator(mode="after")
    def _no_reserved_names(self) -> StudyFile:
        for name in self.experiments:
            if name in RESERVED:
                raise ValueError(f"an experiment cannot be called {name}; rename it")
        return self


class Bound(Model):
    """Where an estimate must lie for a claim to hold."""

    above: float | None = None
    below: float | None = None
    source: str = Field(
        "ours",
        pattern=r"^(paper|ours)(: .+)?$",
        description="paper or ours, and after a colon where it comes from",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Bound:
        if self.above is None and self.below is None:
            raise ValueError("needs the key above or below")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError(f"above {self.above:g} is not less than below {self.below:g}")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The bound as an open interval."""
        return (
            -math.inf if self.above is None else self.above,
            math.inf if self.below is None else self.below,
        )

    @property
    def one_sided(self) -> bool:
        """Whether only one side is bounded."""
        return None in (self.above, self.below)

    @property
    def is_ours(self) -> bool:
        """Whether the paper does not give the bound."""
        return self.source.startswith("ours")

    def has(self, low: float, high: float) -> bool:
        """Tell whether a whole interval is inside."""
        lowest, highest = self.ends
        return lowest < low and high < highest


class Reference(Model):
    """Published runs that ours are compared with: a row of a CSV file in the study's folder."""

    file: str = Field(pattern=r"^\w+\.csv$", description="a CSV file in the study's folder")
    select: dict[str, Any] = Field(description="what tells the row: values by column")
    mean: Text
    sd: Text
    n: Text
    least: str = Field("", description="column of the smallest of the runs, where there is one")
    largest: str = Field("", description="column of the largest")


class Claim(Model):
    """A sentence of the paper with a number to test, and the test."""

    id: Name
    statement: Text
    kind: Literal["claim", "check"] = Field(
        "claim", description="a claim of the paper, or a check of ours that it does not make"
    )
    where: str = Field(description="page, section, figure or theorem of the paper")
    paper: str = Field("", description="the paper's own number, where it is legible")
    figure: str = Field("", description="the figure that shows it")
    table: str
    select: dict[str, Any] = Field(
        {}, description="rows of the table to use: a value or a list of values by column"
    )
    test: str
    arguments: dict[str, Any] = Field({}, description="what the test is told besides the rows")
    bound: Bound
    exact: bool = Field(False, description="whether the quantity is deterministic: no interval")
    replicate: str | list[str] = Field(
        [], description="the column or columns that tell independent replicates apart, as seed"
    )
    effect: float | None = Field(
        None, description="the estimate if the claim were exactly true as the paper has it"
    )
    effect_source: str = Field("", description="where the effect comes from")
    reference: Reference | None = Field(None, description="published runs, for equivalence")
    truncated: bool = Field(
        False, description="whether runs that only end earlier may decide the claim"
    )
    least_n: int = Field(1, ge=1, description="fewer observations are inconclusive")
    not_tested_on: dict[str, str] = Field(
        {}, description="data sets, by their name in tables, that cannot test the claim, and why"
    )
    note: str = ""

    @property
    def replicates(self) -> list[str]:
        """The columns that tell replicates apart."""
        return [self.replicate] if isinstance(self.replicate, str) else self.replicate

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns that the test reads, by the key that names them."""
        named: dict[str, Any] = {
            f"arguments.{key}": self.arguments.get(key) for key in COLUMN_ARGUMENTS
        }
        named["replicate"] = self.replicates
        lists = {key: value if isinstance(value, list) else [value] for key, value in named.items()}
        return {key: value for key, value in lists.items() if value != [None]}

    @model_validator(mode="after")
    def _is_exact_or_replicated(self) -> Claim:
        if self.exact != (self.test == "value"):
            raise Mistake("exact", "is for the test value, and the test value for it; give both.")
        if self.replicates and self.test not in REPLICATED:
            raise Mistake("replicate", f"is for {', '.join(REPLICATED)}; leave it out.")
        if self.test == "slope" and bool(self.replicates) != ("per" in self.arguments):
            raise Mistake(
                "replicate",
                "a slope of each replicate needs replicate, and the argument "
                "per: replicate; give both or neither.",
            )
        return self

    @model_validator(mode="after")
    def _has_what_its_test_compares_with(self) -> Claim:
        if (self.reference is not None) != (self.test == "equivalence"):
            raise Mistake("reference", "is for the test equivalence, and it needs one.")
        return self

    @model_validator(mode="after")
    def _has_an_effect_that_its_bound_allows(self) -> Claim:
        if self.effect is None:
            return self
        if not self.effect_source:
            raise Mistake("effect_source", "is missing; say where the effect comes from.")
        if self.exact or not self.bound.has(self.effect, self.effect):
            raise Mistake("effect", "must lie within the bound, and is not for exact claims.")
        return self


class ClaimsFile(Model):
    """claims.yaml, under the one key that a list needs."""

    claims: list[Claim]


def _as_bool(value: object) -> object:
    """Take the word for the value: Snakemake's command line knows no YAML."""
    return {"true": True, "false": False}.get(str(value).lower(), value)


class Configuration(Model):
    """workflow/config.yaml and what the command line overrides in it."""

    scale: Literal["smoke", "quick", "laptop", "paper", "recorded"] = Field(
        description="how much of the protocol is run"
    )
    studies: list[str] = Field(
        min_length=1, description="a list of studies, as in studies=[two_spirals]"
    )
    data_root: str = Field(min_length=1, description="the folder that holds the data sets")
    device: Literal["auto", "cpu", "cuda"] = Field(description="where training runs")
    finished_only: Annotated[bool, BeforeValidator(_as_bool)] = Field(
        description="whether tables, figures and verdicts take the runs that have finished, and "
        "nothing is trained"
    )
