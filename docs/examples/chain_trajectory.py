"""Losses of a dense chain trained on arrays of one's own, as CSV on standard output.

The file holds arrays ``x`` and ``y`` of shape (n, d), the inner weights ``W`` at the start, of
shape (L, m, d) or, for layers that start alike, (m, d), and if these are not zero the outer ones
``V``, of shape (L, d, m) or (d, m). The arithmetic is in the type of ``x``, float32 or float64.

    python docs/examples/chain_trajectory.py data.npz --depth 64 --steps 500 > losses.csv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnet_limits.errors import UserError
from resnet_limits.models.activations import ACTIVATIONS, LayerRule
from resnet_limits.models.descent import train_chain
from resnet_limits.models.engines import BACKENDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and print; a mistake in the arrays is one line on standard error and status 2."""
    options = _parser().parse_args(arguments)
    try:
        x, y, W, V = read_arrays(options.arrays, options.depth)
        depth, width, dimension = W.shape
        factors = options.scaling == "paper"
        losses, _, _ = train_chain(
            x,
            y,
            W,
            V,
            learning_rate=options.learning_rate,
            steps=options.steps,
            rule=LayerRule(
                step_size=1 / (depth * (width**0.5 if factors else 1)),
                activation=options.activation,
                inner_scale=dimension**-0.5 if factors else 1.0,
            ),
            backend=options.backend,
        )
    except (UserError, ValueError, OSError) as error:
        print(f"{Path(__file__).name}: {options.arrays}: {error}", file=sys.stderr)
        return 2
    print("step,loss")
    for step, loss in enumerate(losses.tolist()):
        print(f"{step},{loss!r}")
    return 0


def read_arrays(path: Path, depth: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read x, y, W and V from an .npz file; weights come back with a layer axis.

    Raises
    ------
    UserError
        If an array or the depth is missing.
    """
    with np.load(path) as file:
        arrays = {
            name: torch.from_numpy(file[name]) for name in ("x", "y", "W", "V") if name in file
        }
    for name in ("x", "y", "W"):
        if name not in arrays:
            raise UserError(f"lacks the array {name!r}; it has {', '.join(arrays) or 'none'}.")
    x, y, W = (arrays[name].to(arrays["x"].dtype) for name in ("x", "y", "W"))
    V = arrays.get("V", torch.zeros_like(W.mT)).to(x.dtype)
    if W.dim() == 2 and depth is None:
        raise UserError("W has no axis of layers: give --depth.")
    layers = len(W) if depth is None else depth
    return x, y, _with_layers(W, layers), _with_layers(V, layers)


def _with_layers(weights: Tensor, depth: int) -> Tensor:
    if weights.dim() == 2:
        return weights.expand(depth, -1, -1).contiguous()
    if len(weights) != depth:
        raise UserError(f"weights have {len(weights)} layers where {depth} are wanted.")
    return weights.contiguous()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arrays", type=Path, help="an .npz file with x, y, W and perhaps V")
    parser.add_argument("--depth", type=int, help="number of layers, if W has no axis of layers")
    parser.add_argument(
        "--learning-rate", type=float, default=0.01, help="without its factor L (default 0.01)"
    )
    parser.add_argument("--steps", type=int, default=500, help="iterations (default 500)")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="gelu")
    parser.add_argument("--scaling", choices=("code", "paper"), default="code")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(main())
