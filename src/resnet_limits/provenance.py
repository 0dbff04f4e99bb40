"""What computed a number: sources, versions, commit.

Digests are of syntax trees without docstrings, so that comments, prose and formatting count for
nothing, and everything that can change a number does.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from resnet_limits.documents import read_text
from resnet_limits.errors import UserError

PACKAGE = Path(__file__).parent
# Packages whose arithmetic a training run may use.
PACKAGES = ("numpy", "scipy", "torch", "numba", "resnet-limits")
# Modules that can change a trained number. Settings cannot: their values are the configuration.
TRAINING = (
    "data/", "models/", "studies/",
    "checkpoint.py", "classification.py", "probes.py", "problem.py", "random.py", "train.py",
)  # fmt: skip
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def digest(value: Any) -> str:
    """Return a hash of a JSON value that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_digest(problem_module: Path) -> str:
    """Return a digest of all sources that can change the numbers of a problem's runs.

    These are the training loop, the module that defines the problem, and whatever of the
    package's data and models they import, directly or not.
    """
    return digest_modules(closure([PACKAGE / "train.py", problem_module], _trains))


def analysis_digest(module: Path, extra: Iterable[Path] = ()) -> str:
    """Return a digest of a module, of all that it imports of the package, and of ``extra`` files.

    It follows everything that makes a table, a figure or a verdict.
    """
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in extra}
    return digest([digest_modules(closure([module])), files])


def closure(paths: Iterable[Path], follow: Callable[[Path], bool] = lambda _: True) -> set[Path]:
    """Return some modules and whatever they import of the package, directly or not.

    Parameters
    ----------
    paths
        The modules' files.
    follow
        Which imported modules belong.
    """
    found: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [imported for imported in _imports(path) if follow(imported)]
    return found


def digest_modules(paths: Iterable[Path]) -> str:
    """Return a digest of the syntax of some of the package's modules."""
    return digest({str(path.relative_to(PACKAGE)): syntax_digest(path) for path in paths})


@cache
def syntax_digest(path: Path) -> str:
    """Return a digest of a module's syntax tree without docstrings."""
    tree = _parse(path)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return digest(_plain(tree))


def _plain(node: Any) -> Any:
    """Return a tree as lists. Unlike `ast.dump`, it is the same for every version of Python."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return [type(node).__name__, *([name, _plain(value)] for name, value in fields)]


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(read_text(path), str(path))
    except SyntaxError as error:
        where = f"{path}:{error.lineno}" if error.lineno else str(path)
        raise UserError(f"{where}: not valid Python: {error.msg}; correct it.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid Python: {error}; correct it.") from None


def _trains(path: Path) -> bool:
    relative = path.relative_to(PACKAGE).as_posix()
    return relative.startswith(TRAINING) and path.name != "settings.py"


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    """Return the package's modules that a file imports, inside functions too."""
    package = ".".join([PACKAGE.name, *path.parent.relative_to(PACKAGE).parts])
    names = (name for node in ast.walk(_parse(path)) for name in _imported_names(node, package))
    return tuple(sorted({file for name in names for file in _module_files(name)}))


def _imported_names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        relative = "." * node.level + (node.module or "")
        module = importlib.util.resolve_name(relative, package)
        yield from (f"{module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)


def _module_files(name: str) -> Iterator[Path]:
    """Yield the files that importing a name of the package runs, its parents' included."""
    package, *parts = name.split(".")
    for end in range(1, len(parts) + 1) if package == PACKAGE.name else ():
        module = PACKAGE.joinpath(*parts[:end])
        candidates = (module.with_suffix(".py"), module / "__init__.py")
        yield from (file for file in candidates if file.exists())


@cache
def public_names(path: Path) -> frozenset[str]:
    """Return the names of the public functions and classes that a module defines."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = {node.name for node in _parse(path).body if isinstance(node, kinds)}
    return frozenset(name for name in names if not name.startswith("_"))


@cache
def git_commit() -> str:
    """Return the commit of the project's own checkout, ``-dirty`` if changed, or ``unknown``.

    A copy inside another project's repository is not of that repository's commit.
    """
    try:
        top = _git("rev-parse", "--show-toplevel")
        if Path(top).resolve() != PACKAGE.parents[1].resolve():
            return "unknown"
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages that compute."""
    found = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # numba is optional
            continue
    return found
