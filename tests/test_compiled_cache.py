"""The cache of compiled kernels, seen from fresh processes on a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import resnet_limits
from resnet_limits.models.engines import has_numba

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_numba(), reason="no numba")]

# A product of matrices, whose arithmetic is in another file, simd.py.
PRODUCT = """
import json
import numpy as np
from resnet_limits.models.compiled import jit, matrices
{before}
out = np.zeros((4, 8))
matrices.product(np.ones((4, 8)), np.full((8, 8), 2.0), out)
stats = matrices.product.stats
counts = [sum(counter.values()) for counter in (stats.cache_hits, stats.cache_misses)]
print(json.dumps([out[0, 0], *counts, str(jit.CACHE)]))
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package that other tests do not share."""
    target = tmp_path / "resnet_limits"
    source = Path(resnet_limits.__file__).parent
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def product(package, before="", **environment):
    """Return the product, its hits and misses in the cache, the cache's folder, and warnings."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    # Python's own cache overlooks edits within a second.
    inherited |= {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PRODUCT.format(before=before)],
        env=inherited | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return *json.loads(result.stdout), result.stderr


def test_edit_of_an_inner_function_takes_effect(package):
    file = package / "models" / "compiled" / "simd.py"
    original = file.read_text()
    assert product(package)[:3] == (16, 0, 1)
    assert product(package)[:3] == (16, 1, 0)
    file.write_text(original.replace("builder.fadd(total, product", "builder.fsub(total, product"))
    assert product(package)[:3] == (-16, 0, 1)
    assert product(package)[:3] == (-16, 1, 0)
    file.write_text(original)
    assert product(package)[:3] == (16, 1, 0)


def test_cache_folders_do_not_pile_up(package):
    *_, folder, _ = product(package)
    parent = Path(folder).parent
    assert parent == package / "models" / "compiled" / "__pycache__"
    for age in range(20):
        other = parent / f"resnet-limits-{age}"
        other.mkdir()
        os.utime(other, (10**9 - age, 10**9 - age))
    (parent / "unrelated").mkdir()
    assert product(package)[1:3] == (1, 0)
    newest = {f"resnet-limits-{age}" for age in range(7)}
    assert {path.name for path in parent.iterdir()} == newest | {"unrelated", Path(folder).name}


def test_folder_may_vanish_while_in_use(package):
    assert product(package, "import shutil; shutil.rmtree(jit.CACHE)")[:3] == (16, 0, 1)
    assert product(package)[:3] == (16, 1, 0)
    no_room = "import shutil; shutil.rmtree(jit.CACHE); jit.CACHE.touch()"
    assert product(package, no_room)[:3] == (16, 0, 1)


def test_first_folder_that_can_be_written_is_used(package, tmp_path):
    value, *_, folder, warnings = product(package, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert (value, warnings) == (16, "")
    assert Path(folder).parent == tmp_path / "cache"

    (package / "models" / "compiled" / "__pycache__").touch()  # no folder here, even for root
    value, *_, folder, warnings = product(package, XDG_CACHE_HOME=str(tmp_path / "home"))
    assert (value, warnings) == (16, "")
    assert Path(folder).parent == tmp_path / "home" / "numba"

    value, *_, folder, warnings = product(package, XDG_CACHE_HOME="/dev/null")
    assert (value, folder) == (16, "None")
    assert warnings.count("Set NUMBA_CACHE_DIR") == warnings.count("Warning") == 1
