"""Two Spirals: all sizes and seeds as one batch against one torchdyn NeuralODE at a time.

A call is a step of full-batch Adam for every network of a grid: the study's, and each of its sizes.
Both paths have the same data and initial weights; the losses of the first steps are compared one
by one.

    python benchmarks/two_layer_ode.py --field per_step
"""

from __future__ import annotations

from pathlib import Path

import _timing as timing
import torch
from torch import Tensor

from resnet_limits.models.neural_ode import TorchdynNetwork
from resnet_limits.problem import Context
from resnet_limits.settings import build, to_json
from resnet_limits.spec import load_study
from resnet_limits.studies.two_spirals.problems import SpiralsProblem
from resnet_limits.studies.two_spirals.settings import SpiralsSettings

COMPARED = 3  # steps


class OneByOne:
    """The networks of a problem by torchdyn and autograd, each with its own optimizer."""

    def __init__(self, problem: SpiralsProblem) -> None:
        self.networks = [TorchdynNetwork(problem.model, m) for m in range(len(problem.members))]
        rate = problem.settings.learning_rate
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=rate) for net in self.networks]
        self.samples = [
            (x[:-1].T.contiguous(), y)
            for data in problem.sets
            for x, y in zip(data.x, data.y, strict=True)
        ]

    def step(self) -> list[Tensor]:
        """Train every network by one step; return their losses."""
        losses = []
        trained = zip(self.networks, self.optimizers, self.samples, strict=True)
        for network, optimizer, (x, y) in trained:
            optimizer.zero_grad()
            loss = (network(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses


class Together:
    """The study's problem."""

    def __init__(self, problem: SpiralsProblem) -> None:
        self.problem = problem

    def step(self) -> list[Tensor]:
        """Train all networks by one step; return their losses."""
        losses = self.problem.loss_and_grad()
        self.problem.optimizer.step()
        return list(losses.unbind())


def main() -> None:
    """Print the table."""
    parser = timing.parser(__doc__, repeats=20)
    parser.add_argument("--field", default="constant", choices=("constant", "per_step"))
    arguments = timing.parse(parser)
    runs = load_study("two_spirals").experiment("rate", "paper").runs()
    settings = to_json(runs[arguments.field].settings) | {"gram_n_max": 0, "boundary_n": []}
    table = timing.Table(arguments, baseline="one by one")
    for sizes in [*([size] for size in settings["n_train"]), settings["n_train"]]:
        grid = build(SpiralsSettings, settings | {"n_train": sizes}, "rate")
        problem = SpiralsProblem(grid, Context(torch.device("cpu"), Path()))
        paths = {"one by one": OneByOne(problem).step, "together": Together(problem).step}
        case = "whole grid" if len(sizes) > 1 else f"{sizes[0]} samples"
        table.add(case, paths, calls=COMPARED)
    table.save()


if __name__ == "__main__":
    main()
