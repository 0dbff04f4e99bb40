"""Chains trained on arrays of one's own, by a function and by the example's command line."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_limits.models.activations import LayerRule
from resnet_limits.models.descent import train_chain
from tests.reference import chains as reference

EXAMPLE = Path(__file__).parents[1] / "docs/examples/chain_trajectory.py"
main = runpy.run_path(str(EXAMPLE))["main"]


@pytest.fixture
def arrays():
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    x, y = torch.randn(2, 9, 4, **options)
    return x, y, torch.randn(6, 5, 4, **options), 0.1 * torch.randn(6, 4, 5, **options)


def test_trajectory_is_that_of_the_naive_loop(arrays):
    before = [array.clone() for array in arrays]
    losses, W, _ = train_chain(*arrays, learning_rate=0.05, steps=20, backend="torch")
    assert losses.tolist() == pytest.approx(
        reference.losses(*arrays, LayerRule(1 / 6), 0.05, 20), rel=1e-10
    )
    assert losses[-1] < losses[0]
    assert not torch.equal(W, arrays[2])
    assert all(torch.equal(a, b) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("scaling", ["code", "paper"])
def test_trajectory_from_the_command_line(arrays, tmp_path, capsys, scaling):
    x, y, W, V = arrays
    file = tmp_path / "data.npz"
    np.savez(file, x=x, y=y, W=W[0])
    options = ["--depth", "6", "--learning-rate", "0.05", "--steps", "5", "--backend", "torch"]
    assert main([str(file), *options, "--scaling", scaling]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step,loss"
    _, width, dimension = W.shape
    outer, inner = (width**-0.5, dimension**-0.5) if scaling == "paper" else (1, 1)
    rule = LayerRule(outer / 6, "gelu", inner)
    expected = reference.losses(x, y, W[:1].repeat(6, 1, 1), 0 * V, rule, 0.05, 5)
    assert [float(line.split(",")[1]) for line in lines[1:]] == pytest.approx(expected, rel=1e-10)


def test_trajectory_says_what_is_missing(arrays, tmp_path, capsys):
    x, y, W, V = arrays
    for content, words in (
        ({"x": x, "W": W}, "lacks the array 'y'"),
        ({"x": x, "y": y, "W": W[0]}, "give --depth"),
        ({"x": x, "y": y, "W": W, "V": V[:3]}, "3 layers where 6 are wanted"),
        ({"x": x[:, :2], "y": y, "W": W}, "need x"),
    ):
        np.savez(tmp_path / "data.npz", **content)
        assert main([str(tmp_path / "data.npz"), "--backend", "torch"]) == 2
        assert words in capsys.readouterr().err
