"""Two Spirals in the setting of the paper's theory: particles, gradient flow, scaled inputs."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.data.spirals import TURN
from resnet_limits.models.particle_ode import (
    ParticleODE,
    draw_particles,
    gaussian_divergence,
    largest_step,
    limit_gram,
)
from resnet_limits.models.two_layer_ode import (
    SquaredLoss,
    TrainingSet,
    TwoLayerODE,
    homogeneous,
    particle_distances,
)
from resnet_limits.probes import log_spaced, member_rows
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.random import generator
from resnet_limits.studies.two_spirals.problems import draw_samples, loss_and_error
from resnet_limits.studies.two_spirals.settings import ParticleSettings

DIFFERENCE = 0.003  # of a step: for finite differences along the flow


class ParticleProblem(Problem):
    """All sizes, scales and seeds at one number of particles, trained as one batch.

    Members are ordered by size, then scale, then seed. A seed has the same particles at every size
    and scale, and the same data at every scale. Everything is in float64, since smallest
    eigenvalues are down to 1e-9 of the largest.

    The optimizer is plain gradient descent with learning rate 1; what `loss_and_grad` leaves in
    ``.grad`` is the step of the particle gradient flow.
    """

    def __init__(self, settings: ParticleSettings, context: Context) -> None:
        self.settings = settings
        self.device = context.device
        self.members = [
            {"n_train": size, "beta": beta, "seed": seed}
            for size, beta, seed in itertools.product(
                settings.n_train, settings.beta, settings.seed
            )
        ]
        self.steps = settings.steps
        self.model = self._draw_network()
        self.network = self.model.network
        self.sets = [self._training_set(index, n) for index, n in enumerate(settings.n_train)]
        self.data = Data.of(
            "two_spirals", [part for data in self.sets for part in (data.x, data.y)]
        )
        self.loss = SquaredLoss(self.network, self.sets)
        self.limit = torch.cat([smallest_eigenvalue(limit_gram(data.x)) for data in self.sets])
        self.step_size = self._choose_step_size()
        self.start = self.model.particles()
        self.optimizer = torch.optim.SGD(self.network.parameters.values(), lr=1.0)
        steps = log_spaced(self.steps, settings.probes) if self.steps else [0]
        self.probes = [Probe("metrics", steps, self.measure)]

    def loss_and_grad(self) -> Tensor:
        """Compute all losses and, as gradients, the flow's velocities times the step size."""
        losses = self.loss()
        mobility = self.model.mobility()
        for name, weights in self.network.parameters.items():
            step_size = self.step_size.reshape(-1, *[1] * (weights.ndim - 1))
            assert weights.grad is not None
            weights.grad *= mobility[name] * step_size
        return losses

    def measure(self) -> pd.DataFrame:
        """Loss and error, smallest eigenvalues, and how far the particles have moved.

        ``predicted_rate`` is minus the loss's derivative in time by Proposition 4.2,
        ``measured_rate`` the same by central differences along the flow.
        """
        outputs = self._outputs(self.network)
        grams = [self.model.gram_matrices(data.members, data.x) for data in self.sets]
        whole = [
            g2 + self.model.alpha[data.members, None, None] ** 2 * g1
            for data, (g1, g2) in zip(self.sets, grams, strict=True)
        ]
        loss, error = zip(
            *(loss_and_error(f, data.y) for f, data in zip(outputs, self.sets, strict=True)),
            strict=True,
        )
        field, head = self.model.particles()
        return member_rows(
            self.members,
            loss=torch.cat(loss),
            train_error=torch.cat(error),
            g2_min=torch.cat([smallest_eigenvalue(g2) for _, g2 in grams]),
            g_min=torch.cat([smallest_eigenvalue(gram) for gram in whole]),
            g_max=torch.cat([-smallest_eigenvalue(-gram) for gram in whole]),
            limit_min=self.limit,
            step_size=self.step_size,
            predicted_rate=self._predicted_rate(outputs, whole),
            measured_rate=self._measured_rate(),
            field_distance=particle_distances(field, self.start[0]),
            head_distance=particle_distances(head, self.start[1]),
            field_divergence=gaussian_divergence(field, self.start[0]),
            head_divergence=gaussian_divergence(head, self.start[1]),
        )

    def _draw_network(self) -> ParticleODE:
        settings = self.settings
        d, count = settings.dimension, settings.particles
        field_shape = (settings.depth, count // 4)
        field, head = (
            torch.stack(
                [draw_particles(shape, d + 1, o, generator(s, purpose)) for s in settings.seed]
            )
            for shape, o, purpose in ((field_shape, d, "field"), ((count,), 1, "head"))
        )
        copies = len(settings.n_train) * len(settings.beta)
        beta = torch.tensor([member["beta"] for member in self.members], dtype=torch.float64)
        return ParticleODE(
            field.repeat(copies, 1, 1, 1).to(self.device),
            head.repeat(copies, 1, 1).to(self.device),
            torch.full_like(beta, settings.alpha).to(self.device),
            beta.to(self.device),
        )

    def _training_set(self, index: int, size: int) -> TrainingSet:
        settings = self.settings
        x, y = draw_samples(size, settings.seed, settings.noise, "train", size, dtype=torch.float64)
        x = homogeneous(x * settings.input_norm / math.radians(TURN))
        count = len(settings.beta) * len(settings.seed)
        return TrainingSet(
            slice(index * count, (index + 1) * count),
            x.repeat(len(settings.beta), 1, 1).to(self.device),
            y.repeat(len(settings.beta), 1).to(self.device),
        )

    def _choose_step_size(self) -> Tensor:
        """Return the steps of pseudo-time, ``(members,)``."""
        sizes = []
        for data in self.sets:
            g1, g2 = self.model.gram_matrices(data.members, data.x)
            alpha, beta = self.model.alpha[data.members], self.model.beta[data.members]
            gram = g2 + alpha[:, None, None] ** 2 * g1
            sizes.append(largest_step(gram, data.y.shape[1], beta))
        return self.settings.step_size * torch.cat(sizes)

    def _outputs(self, network: TwoLayerODE) -> list[Tensor]:
        form = network.logistic_form()
        return [form[data.members](data.x) for data in self.sets]

    def _predicted_rate(self, outputs: list[Tensor], grams: list[Tensor]) -> Tensor:
        forms = []
        for output, data, gram in zip(outputs, self.sets, grams, strict=True):
            residual = (output - data.y)[:, :, None]
            form = residual.mT @ gram @ residual / output.shape[1] ** 2
            forms.append(form.flatten())
        return 4 * self.model.beta**2 * torch.cat(forms)

    def _measured_rate(self) -> Tensor:
        self.loss_and_grad()
        losses = [self._loss_after(sign * DIFFERENCE) for sign in (1, -1)]
        return (losses[1] - losses[0]) / (2 * DIFFERENCE * self.step_size)

    def _loss_after(self, fraction: float) -> Tensor:
        """Return the losses after a fraction of a step."""
        network = self.network
        moved = []
        for weights in network.parameters.values():
            assert weights.grad is not None
            moved.append(weights - fraction * weights.grad)
        shifted = TwoLayerODE(moved[0], moved[1], moved[2], moved[3], network.depth, network.field)
        outputs = zip(self._outputs(shifted), self.sets, strict=True)
        return torch.cat([loss_and_error(output, data.y)[0] for output, data in outputs])


def smallest_eigenvalue(gram: Tensor) -> Tensor:
    """Return the smallest eigenvalues of symmetric matrices; NaN for those that are not finite."""
    finite = torch.isfinite(gram).all(dim=(-2, -1))
    found: Tensor = torch.linalg.eigvalsh(gram.where(finite[:, None, None], 0.0))[:, 0]
    return found.where(finite, math.nan)
