"""Two Spirals: what is trained and measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.data.spirals import two_spirals
from resnet_limits.models.two_layer_ode import (
    SquaredLoss,
    TrainingSet,
    TwoLayerODE,
    draw_affine,
    gram_matrices,
    homogeneous,
    particle_distances,
    particles,
)
from resnet_limits.probes import evenly_spaced, log_spaced, member_rows
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.random import generator
from resnet_limits.studies.two_spirals.settings import SolversSettings, SpiralsSettings

BOUNDARY_EXTENT = 16.0  # the arms' largest coordinate is below 14.1


class SpiralsProblem(Problem):
    """All sizes and seeds of one field variant and depth, trained as one batch.

    Members are ordered by size, then seed. A seed's initial weights and test points are the
    same at every size, depth and variant, so differences between variants are paired.
    """

    def __init__(self, settings: SpiralsSettings, context: Context) -> None:
        self.settings = settings
        self.device = context.device
        self.members = [
            {"n_train": size, "seed": seed}
            for size, seed in itertools.product(settings.n_train, settings.seed)
        ]
        self.steps = settings.steps
        self.model = draw_networks(
            settings, settings.depth, settings.field, len(settings.n_train), self.device
        )
        self.sets = [self._training_set(index, n) for index, n in enumerate(settings.n_train)]
        self.loss = SquaredLoss(self.model, self.sets)
        self.test_x, self.test_y = self._test_set()
        self.data = Data.of(
            "two_spirals", [part for data in self.sets for part in (data.x, data.y)] + [self.test_x]
        )
        self.optimizer = torch.optim.Adam(
            self.model.parameters.values(), lr=settings.learning_rate, fused=True
        )
        self.start = self._particles()
        self.probes = self._probes()

    def loss_and_grad(self) -> Tensor:
        """Compute all losses and gradients."""
        return self.loss()

    def _training_set(self, index: int, size: int) -> TrainingSet:
        seeds = self.settings.seed
        x, y = draw_samples(size, seeds, self.settings.noise, "train", size)
        members = slice(index * len(seeds), (index + 1) * len(seeds))
        return TrainingSet(members, homogeneous(x).to(self.device), y.to(self.device))

    def _test_set(self) -> tuple[Tensor, Tensor]:
        settings = self.settings
        x, y = draw_samples(settings.n_test, settings.seed, settings.noise, "test")
        repeats = len(settings.n_train)
        return (
            homogeneous(x).repeat(repeats, 1, 1).to(self.device),
            y.repeat(repeats, 1).to(self.device),
        )

    def _probes(self) -> list[Probe]:
        settings = self.settings
        # Even steps for fits over time, log-spaced ones for the beginning.
        even, log = (spaced(self.steps, settings.probes) for spaced in (evenly_spaced, log_spaced))
        probes = [Probe("metrics", sorted({*even, *log}), self.measure)]
        if self.model.trains_field and self._gram_sets():
            steps = log_spaced(self.steps, settings.gram_probes)
            probes.append(Probe("gram", steps, self.measure_gram))
        if settings.boundary_n:
            probes.append(Probe("boundary", [self.steps], self.measure_boundary))
            probes.append(Probe("samples", [0], self.list_samples))
        return probes

    def measure(self) -> pd.DataFrame:
        """Loss and 0-1 error on training and test points, and how far particles have moved."""
        form = self.model.logistic_form()
        train = [loss_and_error(form[data.members](data.x), data.y) for data in self.sets]
        test_loss, test_error = loss_and_error(form(self.test_x), self.test_y)
        now = self._particles()
        return member_rows(
            self.members,
            train_loss=torch.cat([loss for loss, _ in train]),
            train_error=torch.cat([error for _, error in train]),
            test_loss=test_loss,
            test_error=test_error,
            field_distance=particle_distances(now[0], self.start[0]),
            head_distance=particle_distances(now[1], self.start[1]),
        )

    def measure_gram(self) -> pd.DataFrame:
        """Smallest eigenvalues of G1, G2 and G1 + G2 at the sizes small enough for it."""
        frames = []
        for data in self._gram_sets():
            g1, g2 = gram_matrices(self.model, data.members, data.x[:, :-1].mT)
            smallest = {
                name: torch.linalg.eigvalsh(gram)[:, 0].clamp_min(0)
                for name, gram in {"g1_min": g1, "g2_min": g2, "g_min": g1 + g2}.items()
            }
            frames.append(member_rows(self.members[data.members], **smallest))
        return pd.concat(frames, ignore_index=True)

    def measure_boundary(self) -> pd.DataFrame:
        """Output on a square grid, for the first seed at some sizes."""
        settings = self.settings
        axis = torch.linspace(-BOUNDARY_EXTENT, BOUNDARY_EXTENT, settings.boundary_grid)
        grid = torch.cartesian_prod(axis, axis).T.to(self.device)
        frames = []
        for member in self._boundary_members():
            x = homogeneous(grid)[None]
            output = self.model.logistic_form()[member : member + 1](x)[0]
            frame = pd.DataFrame({"x1": grid[0].cpu().numpy(), "x2": grid[1].cpu().numpy()})
            frame["output"] = output.double().cpu().numpy().round(3)
            frames.append(frame.assign(**self.members[member]))
        return pd.concat(frames, ignore_index=True)

    def list_samples(self) -> pd.DataFrame:
        """Training points of the members whose decision boundary is drawn."""
        frames = []
        for member in self._boundary_members():
            data = self.sets[member // len(self.settings.seed)]
            x, y = data.x[0].double().cpu().numpy(), data.y[0].double().cpu().numpy()
            frame = pd.DataFrame({"x1": x[0].round(4), "x2": x[1].round(4), "label": y})
            frames.append(frame.assign(**self.members[member]))
        return pd.concat(frames, ignore_index=True)

    def _gram_sets(self) -> list[TrainingSet]:
        return [data for data in self.sets if data.y.shape[1] <= self.settings.gram_n_max]

    def _boundary_members(self) -> list[int]:
        wanted, first = self.settings.boundary_n, self.settings.seed[0]
        return [
            index
            for index, member in enumerate(self.members)
            if member["n_train"] in wanted and member["seed"] == first
        ]

    def _particles(self) -> tuple[Tensor, Tensor]:
        model = self.model
        return (
            particles(model.field_inner, model.field_outer),
            particles(model.head_inner, model.head_outer),
        )


def draw_networks(
    settings: SpiralsSettings | SolversSettings,
    depth: int,
    field: str,
    copies: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> TwoLayerODE:
    """Draw initial weights for every seed, repeated ``copies`` times along the members."""
    fields = depth if field == "per_step" else 1
    d, m, k = settings.dimension, settings.field_width, settings.head_width
    drawn: list[list[Tensor]] = []
    for seed in settings.seed:
        for_field, for_head = generator(seed, "field"), generator(seed, "head")
        drawn.append(
            [
                draw_affine([fields], m, d, for_field, dtype),
                draw_affine([fields], d, m, for_field, dtype),
                draw_affine([], k, d, for_head, dtype),
                draw_affine([], 1, k, for_head, dtype),
            ]
        )
    stacked = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    parts = [part.repeat(copies, *[1] * (part.ndim - 1)).to(device) for part in stacked]
    return TwoLayerODE(parts[0], parts[1], parts[2], parts[3], depth, field)


def draw_samples(
    count: int,
    seeds: Sequence[int],
    noise: float,
    *purpose: object,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Draw points ``(seeds, 2, count)`` and labels ``(seeds, count)``, a data set per seed."""
    pairs = [two_spirals(count, noise, generator(seed, *purpose), dtype) for seed in seeds]
    x, y = zip(*pairs, strict=True)
    return torch.stack(x), torch.stack(y)


def loss_and_error(output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error and 0-1 error per member; a non-finite output is an error."""
    loss = (output - labels).square().mean(dim=1)
    wrong = ~(output * labels > 0)
    return loss, wrong.double().mean(dim=1)
