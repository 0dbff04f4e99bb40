"""ResNets of random features and of infinite width: what is trained and measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.data.synthetic import jittered_grid, separation, standard_normal
from resnet_limits.models.embeddings import lifting_maps, scaling_maps
from resnet_limits.models.kernels import (
    KERNELS,
    Kernel,
    feature_kappa,
    gram,
    smallest_eigenvalue,
)
from resnet_limits.models.rkhs import FeatureResNet, KernelResNet, RKHSResNet, pl_quotient
from resnet_limits.probes import evenly_spaced, log_spaced, member_rows
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.random import generator
from resnet_limits.studies.rff_width.settings import WidthSettings

INFINITE = math.inf  # the width of the kernel's own residuals


@dataclass(frozen=True)
class Ensemble:
    """Networks of one width and one embedding, with features of their own, trained as one batch.

    Attributes
    ----------
    model
        The networks.
    members
        Their size of embedding, width and draw.
    step_sizes
        eta of gradient descent, shape ``(members,)``.
    smallest, largest
        Extreme eigenvalues of each member's kernel matrix at the start, shape ``(members,)``.
    kappa, speed
        Constants of each member's space V, shape ``(members,)``: kappa of Assumption 1, and the
        largest ||phi(z) - phi(z')|| / ||z - z'||.
    output_norm
        Both extreme singular values of B^T; they are equal.
    input_min
        Smallest singular value of A.
    """

    model: RKHSResNet
    members: list[dict[str, Any]]
    step_sizes: Tensor
    smallest: Tensor
    largest: Tensor
    kappa: Tensor
    speed: Tensor
    output_norm: float
    input_min: float

    def loss_and_grad(self) -> Tensor:
        """Compute the members' losses, and their gradients times their step sizes."""
        losses = self.model.loss_and_grad()
        gradient = self.model.gradient
        gradient.mul_(self.step_sizes.to(gradient).view(-1, *[1] * (gradient.ndim - 1)))
        return losses


class WidthProblem(Problem):
    """All widths, draws and sizes of the embedding of one kernel on one data set.

    An ensemble is trained until each of its members has converged or diverged, or to the last
    step; it stops at measurements only, so its numbers do not depend on other ensembles.

    Near v = 0 gradient descent is stable if eta times the largest eigenvalue of the tangent kernel
    is below 2. Few features put the same trace on few eigenvalues, so a common step size would
    make them diverge; each member's goes by its own kernel matrix.
    """

    def __init__(self, settings: WidthSettings, context: Context) -> None:
        self.settings = settings
        self.device = context.device
        self.kernel = KERNELS[settings.kernel]
        self.inputs, self.targets = draw_data(settings)
        self.data = Data.of(settings.points, [self.inputs, self.targets])
        self.ensembles = list(self._draw_ensembles())
        self.members = [m for ensemble in self.ensembles for m in ensemble.members]
        self.steps = settings.steps
        # Gradients come multiplied by the step sizes, which differ by member.
        self.optimizer = torch.optim.SGD([e.model.weights for e in self.ensembles], lr=1.0)
        count = len(self.members)
        self.losses = torch.zeros(count, dtype=torch.float64, device=self.device)
        self.start = torch.cat([e.model.evaluate().to(self.losses) for e in self.ensembles])
        self.converged_at = torch.full((count,), -1, device=self.device)
        self.stopped = torch.zeros(len(self.ensembles), dtype=torch.bool)
        self.updates = torch.zeros((), dtype=torch.int64)
        self.state = self._state()
        self.probes = self._probes()

    def loss_and_grad(self) -> Tensor:
        """Compute the losses and gradients of all networks that are still trained."""
        for _, ensemble, members in self._running():
            losses = ensemble.loss_and_grad().to(self.losses)
            self.losses[members] = losses
            goal = self.settings.converged * self.start[members]
            reached = (self.converged_at[members] < 0) & (losses <= goal)
            self.converged_at[members].masked_fill_(reached, int(self.updates))
        self.updates += 1
        return self.losses

    def is_done(self) -> bool:
        """Whether every member has converged or diverged."""
        return bool(self.stopped.all())

    def measure(self) -> pd.DataFrame:
        """Losses of the ensembles in training; those that are done stop here."""
        frames = []
        for index, ensemble, members in self._running():
            losses = ensemble.model.evaluate()
            converged_at = self.converged_at[members]
            # By the losses that `fit` has seen, so that it has recorded who diverged.
            done = (converged_at >= 0) | ~self.losses[members].isfinite()
            if done.all():
                self.stopped[index] = True
                ensemble.model.weights.grad = None
            frames.append(member_rows(ensemble.members, loss=losses, converged_at=converged_at))
        return pd.concat(frames, ignore_index=True)

    def measure_bounds(self) -> pd.DataFrame:
        """Quantities of Property 2 and Proposition 2, on the points visited at this step.

        ``smallest`` and ``exact`` are the smallest eigenvalues, over z_0 .. z_(D-1), of V's
        kernel matrices and of those of the infinite-width kernel on the same points; ``gap`` is
        the largest difference of the two at one depth.
        """
        frames = []
        for _, ensemble, _ in self._running():
            model = ensemble.model
            losses = model.evaluate()
            own = smallest_eigenvalue(model.visited_grams())
            limit = smallest_eigenvalue(gram(self.kernel, model.states[:, :-1]))
            frames.append(
                member_rows(
                    ensemble.members,
                    loss=losses,
                    norm=model.norm(),
                    quotient=pl_quotient(model.gradient_norm(), losses),
                    smallest=own.amin(1),
                    exact=limit.amin(1),
                    gap=(own - limit).abs().amax(1),
                )
            )
        return pd.concat(frames, ignore_index=True)

    def list_constants(self) -> pd.DataFrame:
        """Constants of the theory for every member: data, embedding, V, and the start v = 0."""
        frames = []
        for index, ensemble in enumerate(self.ensembles):
            columns = {
                "kappa": ensemble.kappa,
                "speed": ensemble.speed,
                "start_smallest": ensemble.smallest,
                "start_largest": ensemble.largest,
                "start_loss": self.start[self._slice(index)],
                "step_size": ensemble.step_sizes,
            }
            frame = member_rows(ensemble.members, **columns)
            frame["output_norm"] = ensemble.output_norm
            frame["input_min"] = ensemble.input_min
            frames.append(frame.assign(separation=float(separation(self.inputs))))
        return pd.concat(frames, ignore_index=True)

    def list_kappas(self) -> pd.DataFrame:
        """Return kappa (Assumption 1) of as many features as are too many to train."""
        frames = []
        for size in embedding_sizes(self.settings):
            states = len(embedding_maps(self.settings, size)[0])
            for width in self.settings.kappa_width:
                kappas = [
                    feature_kappa(draw_frequencies(self.settings, self.kernel, width, states, draw))
                    for draw in self.settings.draw
                ]
                frames.append(member_rows(self._draws(size, width), kappa=torch.stack(kappas)))
        return pd.concat(frames, ignore_index=True)

    def _draws(self, size: float, width: int) -> list[dict[str, Any]]:
        return [{"size": size, "width": width, "draw": draw} for draw in self.settings.draw]

    def _running(self) -> Iterator[tuple[int, Ensemble, slice]]:
        for index, ensemble in enumerate(self.ensembles):
            if not self.stopped[index]:
                yield index, ensemble, self._slice(index)

    def _slice(self, index: int) -> slice:
        first = sum(len(ensemble.members) for ensemble in self.ensembles[:index])
        return slice(first, first + len(self.ensembles[index].members))

    def _probes(self) -> list[Probe]:
        settings = self.settings
        few = log_spaced(self.steps, settings.bound_probes)
        often = {*evenly_spaced(self.steps, settings.probes), *log_spaced(self.steps, 12), *few}
        # Bounds first: an ensemble that stops at this step has its last ones taken.
        probes = [
            Probe("constants", [0], self.list_constants),
            Probe("bounds", few, self.measure_bounds),
            Probe("metrics", sorted(often), self.measure),
        ]
        if settings.kappa_width:
            probes.append(Probe("kappas", [0], self.list_kappas))
        return probes

    def _state(self) -> dict[str, Tensor | torch.Generator]:
        state: dict[str, Tensor | torch.Generator] = {
            "losses": self.losses,
            "converged_at": self.converged_at,
            "stopped": self.stopped,
            "updates": self.updates,
        }
        for index, ensemble in enumerate(self.ensembles):
            model = ensemble.model
            if isinstance(model, KernelResNet):
                state[f"centres{index}"] = model.centres
                state[f"counts{index}"] = model.counts
                state[f"factors{index}"] = model.factors
        return state

    def _draw_ensembles(self) -> Iterator[Ensemble]:
        for size in embedding_sizes(self.settings):
            maps = embedding_maps(self.settings, size)
            for width in self.settings.width:
                yield self._of_features(size, maps, width)
            yield self._of_the_kernel(size, maps)

    def _of_features(self, size: float, maps: tuple[Tensor, Tensor], width: int) -> Ensemble:
        settings = self.settings
        drawn = [
            draw_frequencies(settings, self.kernel, width, len(maps[0]), draw)
            for draw in settings.draw
        ]
        frequencies = torch.stack(drawn)
        model = FeatureResNet(
            self.inputs[None].to(self.device),
            self.targets[None].to(self.device),
            maps[0].to(self.device),
            maps[1].to(self.device),
            frequencies.to(self.device),
            settings.depth,
            getattr(torch, settings.precision),
        )
        second = frequencies.mT @ frequencies / width
        speed = torch.linalg.eigvalsh(second)[:, -1].sqrt()
        # The bound needs a matrix of q^2 by q^2.
        affordable = len(maps[0]) <= settings.kappa_states_max
        kappa = feature_kappa(frequencies) if affordable else torch.full_like(speed, torch.nan)
        return self._ensemble(model, self._draws(size, width), maps, kappa, speed)

    def _of_the_kernel(self, size: float, maps: tuple[Tensor, Tensor]) -> Ensemble:
        settings = self.settings
        model = KernelResNet(
            self.inputs[None].to(self.device),
            self.targets[None].to(self.device),
            maps[0].to(self.device),
            maps[1].to(self.device),
            self.kernel,
            settings.depth,
            settings.capacity,
            settings.compression,
        )
        members = [{"size": size, "width": INFINITE, "draw": settings.draw[0]}]
        kappa, speed = self.kernel.kappa, math.sqrt(self.kernel.moments[0])
        return self._ensemble(model, members, maps, torch.tensor([kappa]), torch.tensor([speed]))

    def _ensemble(
        self,
        model: RKHSResNet,
        members: list[dict[str, Any]],
        maps: tuple[Tensor, Tensor],
        kappa: Tensor,
        speed: Tensor,
    ) -> Ensemble:
        settings, output_norm = self.settings, float(torch.linalg.matrix_norm(maps[1], 2))
        model.evaluate()
        eigenvalues = torch.linalg.eigvalsh(model.visited_grams()[:, 0])
        smallest, largest = eigenvalues[:, 0], eigenvalues[:, -1]
        relative = (settings.stability / largest).clamp_max(settings.step_size)
        return Ensemble(
            model=model,
            members=members,
            step_sizes=relative * settings.samples / output_norm**2,
            smallest=smallest,
            largest=largest,
            kappa=kappa,
            speed=speed,
            output_norm=output_norm,
            input_min=float(torch.linalg.svdvals(maps[0])[-1]),
        )


def draw_data(settings: WidthSettings) -> tuple[Tensor, Tensor]:
    """Draw inputs ``(N, d)`` and targets ``(N, d')``, d = d', in float64."""
    count, dimension = settings.samples, settings.dimension
    source = generator(settings.data_seed, "inputs", count)
    if settings.points == "jittered_grid":
        inputs = jittered_grid(count, dimension, settings.spacing, settings.jitter, source)
    else:
        inputs = standard_normal(count, dimension, source)
    targets = standard_normal(count, dimension, generator(settings.data_seed, "targets", count))
    return inputs, settings.target_scale * targets


def draw_frequencies(
    settings: WidthSettings, kernel: Kernel, width: int, states: int, draw: int
) -> Tensor:
    """Draw frequencies ``(r, q)`` of one network, the same for every size of a scaling.

    Other data sets have other features.
    """
    purpose = ("frequencies", width, states, settings.data_seed)
    return kernel.frequencies((width, states), generator(draw, *purpose))


def embedding_sizes(settings: WidthSettings) -> Sequence[float]:
    """Return alpha of a scaling, q of a lifting; whichever the run has."""
    return settings.alpha if settings.embedding == "scaling" else settings.states


def embedding_maps(settings: WidthSettings, size: float) -> tuple[Tensor, Tensor]:
    """Return A and B of Section 5.1: ``size`` is alpha of a scaling, q of a lifting."""
    dimension = settings.dimension
    if settings.embedding == "scaling":
        return scaling_maps(size, dimension, dimension)
    return lifting_maps(int(size), dimension, dimension)
