"""Reading YAML and JSON strictly: what is ambiguous is an error that names file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import yaml

from resnet_limits.errors import UserError


def read_yaml(path: Path) -> Any:
    """Parse a YAML file; `UserError` names the file and line of a mistake."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that does not let a key silently replace its twin."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a duplicate key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"duplicate key {key.value!r}; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises
    ------
    UserError
        If it is not a whole JSON document, or has a duplicate key or a number that is not finite.
    FileNotFoundError
        If there is no such file.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text.") from None


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text as `read_json` does; ``where`` opens the message."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"duplicate key {key!r}; keep one")
        content[key] = value
    return content


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a finite number")
