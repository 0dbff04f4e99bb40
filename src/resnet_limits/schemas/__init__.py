"""Validation of every YAML file by a JSON Schema, with messages for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from resnet_limits.errors import UserError, suggest


def read_yaml(path: Path) -> Any:
    """Parse a YAML file; `UserError` names the file and line of a mistake."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that does not let a key silently replace its twin."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice in one mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


@cache
def schema(name: str) -> dict[str, Any]:
    """Return the packaged schema ``<name>.yaml``."""
    return yaml.safe_load(resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8"))


def validate(document: Any, rules: Mapping[str, Any], where: str) -> None:
    """Check ``document`` against a JSON Schema.

    Parameters
    ----------
    document
        Parsed YAML or JSON.
    rules
        The schema.
    where
        File name that opens the message.

    Raises
    ------
    UserError
        With file, key, what is wrong and what to write instead.
    """
    validator = jsonschema.Draft202012Validator(rules)
    error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if error is not None:
        raise UserError(f"{where}: {_message(error)}")


def _message(error: jsonschema.ValidationError) -> str:
    path = [str(part) for part in error.absolute_path]
    if error.validator == "additionalProperties":
        return _unknown_key(error, path)
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{_key(path)}lacks the key {missing[0]!r}; add it."
    if error.validator == "enum":
        choices = [value for value in error.validator_value if value is not None]
        return f"{_key(path)}{error.instance!r} is not allowed; {suggest(error.instance, choices)}"
    if error.validator == "oneOf":
        choices = [key for option in error.validator_value for key in option["required"]]
        return f"{_key(path)}needs exactly one of the keys {', '.join(choices)}."
    hint = (error.schema or {}).get("description")
    number = _as_number(error.instance) if error.validator == "type" else ""
    return f"{_key(path)}{error.message}{number}." + (f" It is: {hint}" if hint else "")


def _as_number(value: object) -> str:
    """Tell how YAML wants a number that it has taken for text, such as 1e-3."""
    if not isinstance(value, str):
        return ""
    try:
        return f"; write {float(value):g} without quotes, or with a point, as in 1.0e-3"
    except ValueError:
        return ""


def _unknown_key(error: jsonschema.ValidationError, path: list[str]) -> str:
    known = error.schema.get("properties", {})
    unknown = next(key for key in error.instance if key not in known)
    return f"{_key([*path, unknown])}unknown key; {suggest(unknown, known)}"


def _key(path: Iterable[str]) -> str:
    dotted = ".".join(path)
    return f"{dotted}: " if dotted else ""
