"""One training step of random-feature ResNets: the engine against a naive autograd loop.

The engine advances all draws of the features together, the reference implementation draw after
draw. Both have the same data, features and precision; the losses of the first steps are compared
one by one.

    python benchmarks/rkhs.py --samples 32 --widths 16 64 256 1024
"""

from __future__ import annotations

import sys
from pathlib import Path

import _timing as timing
import torch
from torch import Tensor

from resnet_limits.data.synthetic import jittered_grid, standard_normal
from resnet_limits.models.embeddings import scaling_maps
from resnet_limits.models.kernels import Gaussian
from resnet_limits.models.rkhs import FeatureResNet

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference import rkhs as reference

COMPARED = 20  # steps


class Together:
    """All draws in one batch."""

    def __init__(
        self, x: Tensor, y: Tensor, A: Tensor, B: Tensor, frequencies: Tensor, depth: int
    ) -> None:
        self.model = FeatureResNet(x[None], y[None], A, B, frequencies, depth)
        self.optimizer = torch.optim.SGD([self.model.weights], lr=1.0)

    def step(self) -> list[Tensor]:
        """Train every draw by one step; return their losses."""
        losses = self.model.loss_and_grad()
        self.optimizer.step()
        return list(losses.unbind())


class OneByOne:
    """The same by autograd, draw after draw."""

    def __init__(
        self, x: Tensor, y: Tensor, A: Tensor, B: Tensor, frequencies: Tensor, depth: int
    ) -> None:
        self.data, self.depth = (x, y, A, B), depth
        self.trainings = [self._start(draw) for draw in frequencies]

    def _start(self, draw: Tensor) -> tuple[Tensor, list[Tensor], torch.optim.SGD]:
        states, features = draw.shape[1], 2 * len(draw)
        weights = [torch.zeros(states, features, requires_grad=True) for _ in range(self.depth)]
        # The gradient in L2([0, 1]) is depth times the plain one.
        return draw, weights, torch.optim.SGD(weights, lr=float(self.depth))

    def step(self) -> list[Tensor]:
        """Train every draw by one step; return their losses."""
        losses = []
        for draw, weights, optimizer in self.trainings:
            optimizer.zero_grad()
            loss = reference.losses(*self.data, draw, weights, self.depth)
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        return losses


def main() -> None:
    """Print the table."""
    parser = timing.parser(__doc__, repeats=100)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--depth", type=int, default=10)
    arguments = timing.parse(parser)
    generator = torch.Generator().manual_seed(0)
    x = jittered_grid(arguments.samples, 2, 2.5, 0.1, generator).float()
    y = standard_normal(arguments.samples, 2, generator).float()
    A, B = (linear.float() for linear in scaling_maps(1.0, 2, 2))
    table = timing.Table(arguments, baseline="one by one")
    for width in arguments.widths:
        frequencies = Gaussian().frequencies((arguments.draws, width, 4), generator).float()
        given = (x, y, A, B, frequencies, arguments.depth)
        paths = {"one by one": OneByOne(*given).step, "together": Together(*given).step}
        table.add(f"width {width}", paths, calls=COMPARED)
    table.save()


if __name__ == "__main__":
    main()
