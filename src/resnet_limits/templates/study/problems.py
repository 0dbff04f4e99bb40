"""What is trained and measured."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.probes import evenly_spaced, member_rows
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.random import generator
from resnet_limits.studies.my_study.settings import MyStudySettings


class MyStudyProblem(Problem):
    """Minimizes sum_i curvature_i x_i^2 / 2 from a random start; seeds are a tensor axis."""

    def __init__(self, settings: MyStudySettings, context: Context) -> None:
        starts = [
            torch.randn(settings.dimension, generator=generator(s, "start")) for s in settings.seed
        ]
        self.x = torch.stack(starts).to(context.device)
        self.curvature = torch.linspace(
            settings.curvature, 1.0, settings.dimension, device=context.device
        )
        self.members = [{"seed": seed} for seed in settings.seed]
        self.steps = settings.steps
        self.data = Data.of("none", [self.curvature])
        self.optimizer = torch.optim.SGD([self.x], lr=settings.learning_rate)
        self.probes = [Probe("metrics", evenly_spaced(self.steps, settings.probes), self.measure)]

    def loss_and_grad(self) -> Tensor:
        """Compute every seed's loss, ``(seeds,)``, and its gradient, ``(seeds, dimension)``."""
        self.x.grad = self.curvature * self.x
        return self.loss()

    def measure(self) -> pd.DataFrame:
        """Measure the loss of every seed."""
        return member_rows(self.members, loss=self.loss())

    def loss(self) -> Tensor:
        """Return the loss of every seed, ``(seeds,)``."""
        return (self.curvature * self.x.square()).sum(1) / 2
