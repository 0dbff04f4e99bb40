"""A small problem that keeps its contract, for the tests of what trains any problem."""

from __future__ import annotations

import torch

from resnet_limits.layout import RunKey
from resnet_limits.probes import evenly_spaced, member_rows
from resnet_limits.problem import Data, Probe, Problem
from resnet_limits.settings import Settings
from resnet_limits.spec import RunConfig

SOURCES = "sources"
CONFIG = RunConfig(RunKey("smoke", "toy", "quadratic", "all"), Settings())


class Quadratic(Problem):
    """Minimize ``curvature x^2 / 2`` by noisy gradient descent, three members at once."""

    def __init__(self, curvatures=(1.0, 1.0, 1.0), steps=40):
        self.members = [{"seed": seed} for seed in range(len(curvatures))]
        self.steps = steps
        self.curvatures = torch.tensor(curvatures, dtype=torch.float64)
        self.data = Data.of("quadratic", [self.curvatures])
        self.x = torch.ones(len(curvatures), dtype=torch.float64)
        self.noise = torch.Generator().manual_seed(0)
        self.taken = torch.zeros((), dtype=torch.int64)
        self.state = {"taken": self.taken}
        self.optimizer = torch.optim.SGD([self.x], lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.probes = [Probe("metrics", evenly_spaced(steps, 10), self.measure)]

    def loss_and_grad(self):
        self.taken += 1
        noise = torch.randn(3, generator=self.noise, dtype=torch.float64)
        self.x.grad = self.curvatures * self.x + 0.01 * noise[: len(self.x)]
        return self.curvatures * self.x.square() / 2

    def measure(self):
        taken = self.taken.expand(len(self.members))
        return member_rows(self.members, x=self.x, taken=taken).assign(word="a,b")
