"""Typed settings: what a problem is told, checked before anything is trained.

Every kind of problem has a subclass of `Settings`; other documents, such as study.yaml and
records, have a `Model`. Nothing here imports numpy or torch, so that
Snakemake and the command line start at once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from resnet_limits.errors import UserError, suggest

T = TypeVar("T")
M = TypeVar("M", bound="Model")


class Mistake(ValueError):
    """What a validator that sees several settings finds wrong with one of them.

    Parameters
    ----------
    key
        The setting to change.
    text
        What is wrong, and the remedy.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class Model(BaseModel):
    """Base of all documents: immutable, strictly typed, unknown keys refused.

    An int given for a float becomes a float, so that 1 and 1.0 are one configuration;
    nothing else is converted. Numbers are finite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                raise Mistake(str(key), f"unknown key; {suggest(key, cls.model_fields)}")
        return values


LARGEST = 2**53  # up to here, floats count without gaps


class Settings(Model):
    """Base of all settings of problems."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_larger_than_any_count(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, Mapping) else ():
            for number in value if isinstance(value, list | tuple) else (value,):
                if isinstance(number, int) and abs(number) > LARGEST:
                    raise Mistake(str(key), f"too large a number; give at most {LARGEST}.")
        return values

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds of the bytes that training holds at once, by what they grow with.

        Rough ones will do, such as ``{"n_train, seed": 8 * self.n_train * len(self.seed)}``: they
        are there to refuse what can never fit, before anything is allocated.
        """
        return {}


def spaced_bytes(count: int) -> int:
    """Return the bytes that so many log-spaced steps take while they are chosen."""
    return 24 * count


class _TrainedTogether:
    """Marks the fields of type `Axis`."""


class Truncates:
    """Marks a setting that only ends training earlier, and changes nothing up to there."""


class Incidental:
    """Marks a setting that changes no result that a claim is about, such as a number of probes.

    A seed is one: any seed is as good as another.
    """


def _refuse_repeats(values: tuple[T, ...]) -> tuple[T, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{_shown(value)} is given twice; leave one out.")
    return values


def _as_points(value: object) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


TwoOrMore = Annotated[int, Field(ge=2)]

_AS_LISTS = Strict(False)  # lists, as YAML and JSON have them, are tuples here
_UNIQUE = Field(json_schema_extra={"uniqueItems": True})

Distinct = Annotated[tuple[T, ...], _AS_LISTS, AfterValidator(_refuse_repeats), _UNIQUE]
"""Any number of distinct values."""

NonEmpty = Annotated[
    tuple[T, ...], _AS_LISTS, Field(min_length=1), AfterValidator(_refuse_repeats), _UNIQUE
]
"""Distinct values, at least one."""

Axis = Annotated[NonEmpty[T], BeforeValidator(_as_points), _TrainedTogether()]
"""Distinct values that one run trains together, as a tensor axis; a plain value is one of them."""


def axes(settings_class: type[Settings]) -> tuple[str, ...]:
    """Return the names of the settings whose values one run trains together."""
    return marked(settings_class, _TrainedTogether)


def marked(settings_class: type[Settings], mark: type) -> tuple[str, ...]:
    """Return the names of the settings that carry a mark, such as `Truncates`."""
    return tuple(
        name
        for name, field in settings_class.model_fields.items()
        if any(isinstance(found, mark) for found in field.metadata)
    )


def description(model: type[Model], name: str) -> str:
    """Return what a setting is, in a few words."""
    return model.model_fields[name].description or ""


def json_schema(settings_class: type[Settings]) -> dict[str, Any]:
    """Return the JSON Schema of the settings; it lacks what validators check across them."""
    return settings_class.model_json_schema()


def build(model: type[M], values: Any, where: str) -> M:
    """Return the document, such as settings, that plain values stand for.

    Parameters
    ----------
    model
        Its type.
    values
        A mapping of every key, as YAML or JSON has it.
    where
        Opens the message: a file, or ``file: key``.

    Raises
    ------
    UserError
        In one line: where, key, what is wrong and what to write instead.
    """
    try:
        return model.model_validate(values)
    except ValidationError as invalid:
        raise UserError(_message(model, invalid.errors()[0], values, where)) from None


def to_json(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain JSON values, the same for every way to write them."""
    return settings.model_dump(mode="json")


_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "greater_than": "a value above {gt:g}",
    "greater_than_equal": "a value of at least {ge:g}",
    "less_than": "a value below {lt:g}",
    "less_than_equal": "a value of at most {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "string_type": "text",
    "string_too_short": "text",
    "string_pattern_mismatch": "a word of the form {pattern}",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "a list with at least one value",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}


def _message(model: type[Model], error: ErrorDetails, values: Any, where: str) -> str:
    """Return an error of pydantic's in our words."""
    kind, context, location = error["type"], error.get("ctx", {}), error["loc"]
    if kind == "missing":
        path, text = _path(location[:-1], values), f"lacks the key {location[-1]!r}; add it."
    elif kind == "union_tag_not_found":
        path, text = _path(location, values), f"lacks the key {context['discriminator']}; add it."
    elif kind == "union_tag_invalid":
        path = [*_path(location, values), context["discriminator"].strip("'")]
        text = _unknown_word(context["tag"], context["expected_tags"])
    elif kind == "value_error":
        found = context["error"]
        path = [*_path(location, values), *([found.key] if isinstance(found, Mistake) else [])]
        text = str(found).rstrip(".") + "."
    else:
        path, text = _path(location, values), _wrong_value(error)
        if len(path) == 1:
            text += _explanation(model, path[0])
    return " ".join(f"{_joined(where, path)}: {text}".split())  # keys may have line breaks


def _explanation(model: type[Model], key: str) -> str:
    text = description(model, key) if key in model.model_fields else ""
    return f" It is: {text}." if text else ""


def _joined(where: str, path: list[str]) -> str:
    """Return ``file: key.of.setting``, whether ``where`` ends in a file or in a key of it."""
    dotted = ".".join(path)
    return where + (("." if ": " in where else ": ") + dotted if dotted else "")


def _path(location: tuple[int | str, ...], values: Any) -> list[str]:
    """Return the keys of a location, without the kinds of a union.

    What is in a list has no key, but may have an id.
    """
    path = []
    for part in location:
        if isinstance(values, Mapping) and part in values:
            path.append(str(part))
            values = values[part]
        elif isinstance(values, list | tuple) and isinstance(part, int):
            values = values[part]
            if isinstance(values, Mapping) and "id" in values:
                path.append(str(values["id"]))
    return path


def _wrong_value(error: ErrorDetails) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "literal_error":
        return _unknown_word(value, context["expected"])
    wanted = _WANTED.get(kind, error["msg"]).format_map(context)
    return f"{_shown(value)} is not allowed; give {wanted}{_as_number(value, kind)}."


def _unknown_word(word: object, expected: str) -> str:
    """Name what may be written; ``expected`` lists it as pydantic does: ``'a', 'b' or 'c'``."""
    known = [name.strip("'") for name in re.split(", | or ", expected)]
    remedy = suggest(str(word), known) if len(known) > 1 else f"give {known[0]}."
    return f"{_shown(word)} is not allowed; {remedy}"


def _as_number(value: object, kind: str) -> str:
    """Tell how YAML wants a number, such as 1e-3, which it takes for text, or 10.0 for a count."""
    if not isinstance(value, str | float):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    if kind == "int_type" and number.is_integer():
        return f"; write {int(number)}"
    if kind == "float_type" and math.isfinite(number):
        return f"; write {_yaml_number(number)} without quotes, or with a point, as in 1.0e-3"
    return ""


def _yaml_number(number: float) -> str:
    text = repr(number)
    return text if "." in text else text.replace("e", ".0e")


def _shown(value: object) -> str:
    return json.dumps(value, default=str, skipkeys=True, ensure_ascii=False)
