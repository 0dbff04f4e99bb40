"""The digest of sources follows what can change a number, and nothing else."""

from __future__ import annotations

import subprocess

import pytest

from resnet_limits import provenance
from resnet_limits.provenance import (
    analysis_digest,
    closure,
    digest,
    git_commit,
    public_names,
    syntax_digest,
    training_digest,
    versions,
)
from resnet_limits.spec import load_study, study_names

pytestmark = pytest.mark.filterwarnings("error")

SOURCE = '''"""A module."""

import math

RATE = 1e-3


class Model:
    """A model."""

    width: int = 4

    def step(self, x, *, scale=1.0, **others):
        """Take a step."""
        if x is None or not others:
            return f"{x!r:>10} and {scale:.3f}"
        return [math.sin(x) * scale for y in (1, 2.0, True, None, -0.0) if y]


async def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read() or b"\\x00"
'''
# Of SOURCE, on every version of Python; another value would unmark every recorded run.
GOLDEN = "f2ad9edbc431b324"

NOTHING = {
    "comment": lambda s: s.replace("RATE = 1e-3", "RATE = 1e-3  # the rate"),
    "docstring of the module": lambda s: s.replace('"""A module."""', '"""Another."""'),
    "docstring of a class": lambda s: s.replace('"""A model."""\n', "\n"),
    "docstring of a method": lambda s: s.replace("Take a step.", "Go.\n\n        Well."),
    "new docstring": lambda s: s.replace("bytes:\n", 'bytes:\n    """Read."""\n'),
    "blank lines": lambda s: s.replace("\n\n\n", "\n\n\n\n"),
    "quotes": lambda s: s.replace('"rb"', "'rb'"),
    "parentheses": lambda s: s.replace("math.sin(x) * scale", "(math.sin(x)) * scale"),
    "line breaks": lambda s: s.replace("(1, 2.0,", "(\n            1,\n            2.0,"),
    "spelling of a number": lambda s: s.replace("1e-3", "0.001"),
    "indentation": lambda s: s.replace("    ", "  "),
}
SOMETHING = {
    "number": lambda s: s.replace("1e-3", "2e-3"),
    "default": lambda s: s.replace("scale=1.0", "scale=1.5"),
    "float for an int": lambda s: s.replace("(1, 2.0", "(1.0, 2.0"),
    "int for a bool": lambda s: s.replace("True", "1"),
    "no number": lambda s: s.replace("True, None", "True, ..."),
    "sign of zero": lambda s: s.replace("-0.0", "0.0"),
    "operator": lambda s: s.replace("* scale", "/ scale"),
    "comparison": lambda s: s.replace("x is None", "x is not None"),
    "boolean": lambda s: s.replace("or not others", "and not others"),
    "negation": lambda s: s.replace("not others", "others"),
    "name": lambda s: s.replace("math.sin", "math.cos"),
    "variable": lambda s: s.replace("* scale", "* x"),
    "format": lambda s: s.replace(".3f", ".4f"),
    "conversion": lambda s: s.replace("!r", "!s"),
    "text": lambda s: s.replace(" and ", " or "),
    "bytes": lambda s: s.replace("x00", "x01"),
    "keyword-only": lambda s: s.replace("*, scale", "scale"),
    "condition left out": lambda s: s.replace(" if y]", "]"),
    "list for a generator": lambda s: s.replace("[math", "(math").replace("if y]", "if y)"),
    "await left out": lambda s: s.replace("async def", "def"),
    "order of statements": lambda s: s.replace("import math", "").replace("-3", "-3\nimport math"),
    "indented into the branch": lambda s: s.replace("        return [", "            return ["),
    "text that is no docstring": lambda s: s.replace("import math", 'import math\n\n"""Text."""'),
    "annotation": lambda s: s.replace("int = 4", "float = 4"),
    "base class": lambda s: s.replace("class Model:", "class Model(dict):"),
    "decorator": lambda s: s.replace("async def", "@print\nasync def"),
}  # fmt: skip


def digest_of(folder, text, name="module.py"):
    path = folder / name
    path.write_text(text)
    return syntax_digest(path)


@pytest.mark.parametrize("edit", NOTHING)
def test_what_cannot_change_a_number_does_not_count(tmp_path, edit):
    edited = NOTHING[edit](SOURCE)
    assert edited != SOURCE
    assert digest_of(tmp_path, edited, "edited.py") == digest_of(tmp_path, SOURCE)


@pytest.mark.parametrize("edit", SOMETHING)
def test_what_can_change_a_number_counts(tmp_path, edit):
    edited = SOMETHING[edit](SOURCE)
    assert edited != SOURCE
    assert digest_of(tmp_path, edited, "edited.py") != digest_of(tmp_path, SOURCE)


def test_the_digest_is_the_same_on_every_python(tmp_path):
    assert digest_of(tmp_path, SOURCE) == GOLDEN


def test_the_digest_of_a_value_knows_no_order_of_keys():
    assert digest({"a": 1, "b": [1.0, None]}) == digest({"b": [1.0, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0})
    assert digest({"a": 1, "b": [1.0, None]}) == "5b6d30e2363ce3f5"


PACKAGE = {
    "train.py": "from resnet_limits.random import generator",
    "random.py": "generator = 0",
    "files.py": "",
    "style.py": "",
    "models/__init__.py": "from resnet_limits.models import common",
    "models/common.py": "",
    "models/used.py": "from resnet_limits.models.inner import f\nimport resnet_limits.files",
    "models/inner.py": "def f():\n    def g():\n        from resnet_limits.data import hidden",
    "models/unused.py": "",
    "data/hidden.py": "from . import near\nfrom .. import files\nfrom ..models import through",
    "data/near.py": "from .nearer import x",
    "data/nearer.py": "",
    "models/through.py": "import resnet_limits.data.hidden",  # and back again
    "studies/s/problems.py": "import torch\nimport resnet_limits.style\n"
    "import resnet_limits.models.used as used\nfrom resnet_limits.studies.s import settings",
    "studies/s/settings.py": "",
    "studies/s/tables.py": "from resnet_limits.files import write\nfrom .values import read",
    "studies/s/values.py": "",
    "studies/s/plots.py": "",
}
TRAINS = {
    "train.py", "random.py", "models/__init__.py", "models/common.py", "models/used.py",
    "models/inner.py", "data/hidden.py", "data/near.py", "data/nearer.py", "models/through.py",
    "studies/s/problems.py",
}  # fmt: skip


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in the place of ours."""
    root = tmp_path / "resnet_limits"
    for name, text in PACKAGE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(provenance, "PACKAGE", root)
    return root


def forget():
    """Forget what files held; a process reads them once."""
    provenance._imports.cache_clear()
    provenance.syntax_digest.cache_clear()


@pytest.mark.parametrize("name", PACKAGE)
def test_the_digest_covers_what_trains_and_not_what_draws(package, name):
    before = training_digest(package / "studies/s/problems.py")
    (package / name).write_text(PACKAGE[name] + "\nchanged = True")
    forget()
    assert (training_digest(package / "studies/s/problems.py") != before) == (name in TRAINS)


def test_a_table_depends_on_its_imports_and_on_the_study_s_files(package):
    tables, values = package / "studies/s/tables.py", package / "values.csv"
    values.write_text("a\n")
    names = {path.relative_to(package).as_posix() for path in closure([tables])}
    assert names == {"studies/s/tables.py", "files.py", "studies/s/values.py"}
    before = analysis_digest(tables, [values])
    assert analysis_digest(tables) != before
    values.write_text("b\n")
    assert analysis_digest(tables, [values]) != before


def test_a_moved_module_counts(package):
    one = provenance.digest_modules([package / "models/common.py"])
    assert one != provenance.digest_modules([package / "models/unused.py"])


@pytest.mark.parametrize("name", study_names())
def test_every_experiment_has_sources_that_train_and_none_that_draw(name):
    study = load_study(name)
    for experiment in study.experiments:
        problem = study.problem_module(experiment)
        files = closure([provenance.PACKAGE / "train.py", problem], provenance._trains)
        names = {path.relative_to(provenance.PACKAGE).as_posix() for path in files}
        assert {"train.py", "checkpoint.py", "problem.py", "random.py"} <= names
        assert any(name.startswith("models/") for name in names)
        assert not any(name.endswith(("tables.py", "plots.py", "/settings.py")) for name in names)
        assert not {"spec.py", "files.py", "classification_settings.py"} & names


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def commit_of(package, monkeypatch):
    """Return the commit that a copy of the package says it is of."""
    package.mkdir(parents=True, exist_ok=True)
    (package / "train.py").touch()
    monkeypatch.setattr(provenance, "PACKAGE", package)
    git_commit.cache_clear()
    try:
        return git_commit()
    finally:
        git_commit.cache_clear()


@pytest.mark.slow
def test_the_commit_is_that_of_the_project_s_own_checkout(tmp_path, monkeypatch):
    project = tmp_path / "project"
    package = project / "src" / "resnet_limits"
    package.mkdir(parents=True)
    assert commit_of(package, monkeypatch) == "unknown"  # no repository yet
    git(project, "init", "-q")
    assert commit_of(package, monkeypatch) == "unknown"  # no commit yet
    git(project, "add", ".")
    git(project, "commit", "-qm", "One")
    commit = commit_of(package, monkeypatch)
    assert len(commit) == 12
    git(project, "tag", "v1")
    assert commit_of(package, monkeypatch) == commit
    (package / "train.py").write_text("changed = True")
    assert commit_of(package, monkeypatch) == f"{commit}-dirty"
    inside = project / "third_party" / "src" / "resnet_limits"
    assert commit_of(inside, monkeypatch) == "unknown"  # a copy in another's repository
    installed = project / ".venv/lib/python3.11/site-packages/resnet_limits"
    assert commit_of(installed, monkeypatch) == "unknown"


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path / "src" / "resnet_limits", monkeypatch) == "unknown"


def test_versions_are_those_of_what_computes(monkeypatch):
    found = versions()
    assert {"python", "platform", "numpy", "scipy", "torch"} <= found.keys()
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert versions() == {key: found[key] for key in ("python", "platform", "numpy")}


def test_public_names_are_functions_and_classes(tmp_path):
    path = tmp_path / "tables.py"
    path.write_text("RATE = 1\ndef table(): ...\nclass XProblem: ...\ndef _helper(): ...\n")
    assert public_names(path) == {"table", "XProblem"}
