"""Two Spirals by torchdyn's solvers, beside the batched engine."""

from __future__ import annotations

import itertools

import pandas as pd
import torch
from torch import Tensor, nn

from resnet_limits.models.neural_ode import EULER, TorchdynNetwork
from resnet_limits.models.two_layer_ode import (
    SquaredLoss,
    TrainingSet,
    homogeneous,
)
from resnet_limits.probes import log_spaced, member_rows
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.studies.two_spirals.problems import draw_networks, draw_samples
from resnet_limits.studies.two_spirals.settings import SolversSettings

SOLVERS = ("batched", "euler", "adaptive")


class SolversProblem(Problem):
    """Networks trained three times, from the same weights and with the same data.

    By the batched engine, by torchdyn's Euler solver on the same L + 1 points, and by an adaptive
    solver of torchdyn's, that is with L = infinity. Members are ordered by solver, then depth, then
    seed. Everything is in float64, so that equal arithmetic gives equal losses.
    """

    def __init__(self, settings: SolversSettings, context: Context) -> None:
        self.settings = settings
        self.device = context.device
        self.cells = list(itertools.product(settings.depth, settings.seed))
        self.members = [
            {"solver": solver, "depth": depth, "seed": seed}
            for solver, (depth, seed) in itertools.product(SOLVERS, self.cells)
        ]
        self.steps = settings.steps
        x, self.y = self._samples(settings.n_train, "train", settings.n_train)
        self.x = homogeneous(x)
        self.test_x = homogeneous(self._samples(settings.n_test, "test")[0])
        self.data = Data.of("two_spirals", [self.x, self.y, self.test_x])
        self.models = [
            draw_networks(settings, depth, "constant", 1, self.device, torch.float64)
            for depth in settings.depth
        ]
        members = slice(0, len(settings.seed))
        self.losses = [
            SquaredLoss(model, [TrainingSet(members, self.x, self.y)]) for model in self.models
        ]
        self.networks = nn.ModuleList(
            TorchdynNetwork(self.models[settings.depth.index(depth)], self._member(seed), solver)
            for solver in (EULER, settings.adaptive)
            for depth, seed in self.cells
        )
        batched = [weights for model in self.models for weights in model.parameters.values()]
        # Adam works on each weight by itself, so one optimizer trains all networks.
        self.optimizer = torch.optim.Adam(
            [*batched, *self.networks.parameters()], lr=settings.learning_rate
        )
        self.probes = [Probe("metrics", log_spaced(self.steps, settings.probes), self.measure)]

    def loss_and_grad(self) -> Tensor:
        """Compute all losses and gradients, one torchdyn network after the other."""
        losses = [loss() for loss in self.losses]
        for network, (_, seed) in zip(self.networks, self._torchdyn_cells(), strict=True):
            member = self._member(seed)
            loss = (network(self._points(self.x, member)) - self.y[member]).square().mean()
            loss.backward()
            losses.append(loss.detach().reshape(1))
        return torch.cat(losses)

    def measure(self) -> pd.DataFrame:
        """Losses, and root mean square distances of test outputs from the adaptive solver's."""
        outputs, losses = self._outputs(self.test_x), self._outputs(self.x)
        targets = self.y.repeat(len(self.settings.depth), 1)
        gaps = [(outputs[s] - outputs["adaptive"]).square().mean(1).sqrt() for s in SOLVERS]
        return member_rows(
            self.members,
            loss=torch.cat([(losses[s] - targets).square().mean(1) for s in SOLVERS]),
            to_adaptive=torch.cat(gaps),
        )

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return outputs ``(depths * seeds, n)`` by solver."""
        found = [model(x) for model in self.models]
        with torch.no_grad():
            rows = [
                network(self._points(x, self._member(seed)))
                for network, (_, seed) in zip(self.networks, self._torchdyn_cells(), strict=True)
            ]
        euler, adaptive = torch.stack(rows).chunk(2)
        return dict(zip(SOLVERS, (torch.cat(found), euler, adaptive), strict=True))

    def _torchdyn_cells(self) -> list[tuple[int, int]]:
        return [*self.cells, *self.cells]

    def _member(self, seed: int) -> int:
        return self.settings.seed.index(seed)

    def _points(self, x: Tensor, member: int) -> Tensor:
        return x[member, :-1].T

    def _samples(self, count: int, *purpose: object) -> tuple[Tensor, Tensor]:
        settings = self.settings
        x, y = draw_samples(count, settings.seed, settings.noise, *purpose, dtype=torch.float64)
        return x.to(self.device), y.to(self.device)
