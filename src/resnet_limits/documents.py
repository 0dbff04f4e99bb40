"""Reading YAML and JSON strictly: what is ambiguous is an error that names file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from resnet_limits.errors import UserError

DEEPEST = 50  # levels of nesting


def read_yaml(path: Path) -> Any:
    """Parse a YAML file; `UserError` names the file and line of a mistake."""
    try:
        content = yaml.load(read_text(path), _StrictLoader)
        _require_shallow(content)
        return content
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def read_text(path: Path) -> str:
    """Read a text file.

    Raises
    ------
    UserError
        If it cannot be read or is not UTF-8.
    FileNotFoundError
        If there is no such file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None


# The compiled parser, which takes a sixth of the time, where PyYAML was built with it.
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_SafeLoader):  # type: ignore[misc, valid-type]
    """A safe loader that refuses duplicate keys, NaN, and numbers too large for a float.

    Infinity, written ``.inf``, is left to the types of the documents: it is a width.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a duplicate key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"duplicate key {key.value!r}; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        return content

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Refuse NaN, and 1e999, which Python takes for infinity."""
        number: float = super().construct_yaml_float(node)
        if not math.isfinite(number) and "inf" not in node.value.lower():
            problem = f"{node.value} is not a finite number"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return number


_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises
    ------
    UserError
        If it cannot be read, is not a whole JSON document, is nested too deeply, or has a
        duplicate key or a number that is not finite.
    FileNotFoundError
        If there is no such file.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text as `read_json` does; ``where`` opens the message."""
    try:
        content = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite
        )
        _require_shallow(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}.") from None
    return content


def _require_shallow(content: Any) -> None:
    """Refuse nesting at which other code would run out of stack, and what holds itself."""
    level = [content]
    for _ in range(DEEPEST):
        inner = (item for value in level for item in _items(value))
        # By identity: the aliases of YAML name one object many times.
        level = list({id(item): item for item in inner}.values())
    if level:
        raise ValueError(f"nested more than {DEEPEST} levels deep")


def _items(value: Any) -> Iterable[Any]:
    """Return what a container holds, and nothing of a plain value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"duplicate key {key!r}; keep one")
        content[key] = value
    return content


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a finite number")
