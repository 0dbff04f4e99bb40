"""What others may rely on: the public names, their page's examples, and the wheel."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import resnet_limits
from resnet_limits.provenance import PACKAGE

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/python.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_every_public_name_is_there_with_its_page_and_its_type():
    page = PAGE.read_text()
    for name in resnet_limits.__all__:
        assert inspect.getdoc(getattr(resnet_limits, name))
        assert f"`{name}`" in page
        assert not (PACKAGE / f"{name}.py").exists(), "importing the module would hide the name"
    (typed,) = (node for node in ast.parse(source()).body if isinstance(node, ast.If))
    imported = {
        alias.asname: f"resnet_limits.{resnet_limits._MODULES[alias.name]}" == node.module
        for node in typed.body
        for alias in node.names
    }
    assert imported == dict.fromkeys(resnet_limits.__all__, True)


def source():
    return (PACKAGE / "__init__.py").read_text()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'resnet_limits' has no attribute 'trian_chain'"):
        resnet_limits.trian_chain  # noqa: B018


def test_the_import_alone_loads_nothing_slow():
    heavy = ("torch", "numpy", "pandas", "pydantic", "yaml")
    run_python("import resnet_limits, sys", f"assert not sys.modules.keys() & {set(heavy)}")


def test_no_module_of_the_package_imports_by_way_of_the_interface():
    """Digests of sources could not follow."""
    names = set(resnet_limits.__all__)
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "resnet_limits":
                assert not names & {alias.name for alias in node.names}, path


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_pages_examples_run(example):
    result = run_python(example.replace("steps=200", "steps=2"))
    assert re.search(r"\d\.\d+", result.stdout)


def run_python(*lines, cwd=ROOT, env=None):
    command = [sys.executable, "-c", "\n".join(lines)]
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's content, from a copy of the sources: building leaves traces."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    run_python(build, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "installed")
    return folder / "installed"


def files(folder):
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in found if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_the_wheel_has_every_file(installed):
    wanted, found = (files(folder) for folder in (PACKAGE, installed / "resnet_limits"))
    assert found == wanted


OUTSIDE = """
import json
from resnet_limits import cli, load_study

config = next(load_study("two_spirals").runs("smoke", "start"))
assert not cli.main(["train", "--config", json.dumps(config.to_json()), "--output", "run"])
assert not cli.main(["table", "sorted_tau", "steps"])
assert not cli.main(["plot", "sorted_tau", "steps"])
"""


@pytest.mark.slow
def test_the_wheel_works_outside_the_project(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    said = run_python(OUTSIDE, "print(cli.__file__)", cwd=tmp_path, env=environment).stdout
    assert Path(said.splitlines()[-1]).is_relative_to(installed)
    assert (tmp_path / "run/record.json").exists()
    assert (tmp_path / "figures/quick/sorted_tau/steps.png").exists()
