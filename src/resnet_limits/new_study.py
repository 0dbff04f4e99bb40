"""A new study: a small one that works, to be changed step by step."""

from __future__ import annotations

import re
from pathlib import Path

from resnet_limits.errors import UserError
from resnet_limits.files import write_atomic
from resnet_limits.study_files import NAME

TEMPLATES = Path(__file__).parent / "templates"
CONFIG = Path("workflow/config.yaml")


def create(name: str, root: Path) -> list[Path]:
    """Write a study with problem, table, figure, claim, README and test, and configure it.

    Parameters
    ----------
    name
        The study's name, such as ``deep_linear``.
    root
        The project's folder.

    Returns
    -------
    list of Path
        The files written, and the configuration that now names the study.

    Raises
    ------
    UserError
        If the name is no name or taken, or the folder is not the project's. Then nothing is
        written.
    """
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"study {name!r}: a name has small letters, digits and underscores, and starts with "
            "a letter; give one such as deep_linear."
        )
    folder, config = root / "src/resnet_limits/studies" / name, root / CONFIG
    if not folder.parent.is_dir() or not config.exists():
        raise UserError(f"{root.resolve()}: not the project's folder; run the command there.")
    if folder.exists():
        raise UserError(f"{folder}: exists; choose another name.")
    configured = _configured(config, name)
    sources = {path: folder / path.name for path in sorted((TEMPLATES / "study").iterdir())}
    sources[TEMPLATES / "test_study.py"] = root / "tests" / f"test_{name}.py"
    for source, target in sources.items():
        if source.is_file():
            write_atomic(target, renamed(source.read_text("utf-8"), name))
    write_atomic(config, configured)
    return [*sources.values(), config]


def renamed(text: str, name: str) -> str:
    """Return a template's text for a study of that name."""
    words = name.split("_")
    return (
        text.replace("my_study", name)
        .replace("MyStudy", "".join(word.capitalize() for word in words))
        .replace("My study", " ".join(words).capitalize())
    )


def _configured(path: Path, name: str) -> str:
    """Return the configuration with the study at the end of its list of studies."""
    text, count = re.subn(
        r"^(studies: \[.*)\]$", rf"\1, {name}]", path.read_text("utf-8"), flags=re.MULTILINE
    )
    if count != 1:
        raise UserError(f"{path}: lacks the line `studies: [...]`; write the list in one line.")
    return text
