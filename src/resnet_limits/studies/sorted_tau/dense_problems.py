"""Sorted tau, Sections 2.2 and 3: small dense networks' expansions, adjoints and gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resnet_limits.models.expansion import chain_terms, first_order, states, terms
from resnet_limits.probes import log_spaced, member_rows
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.random import generator
from resnet_limits.studies.sorted_tau.settings import (
    DenseSettings,
    ExpansionSettings,
    GradientsSettings,
)

STEEPEST = {"sigmoid": 0.25, "tanh": 1.0, "sin": 1.0, "identity": 1.0}
EXPANSIONS = {"chains": chain_terms, "complete": terms}


class DenseProblem(Problem):
    """Networks of every activation and depth; starts, scales and seeds are a tensor axis.

    E = mean over samples of (<w1, X^L(x)> - y)^2 / 2 with X^0 = w2 x (Eq. 2 and 3); w1 and w2 are
    fixed. Learning rates are proportional to depth, which makes steps those of the gradient flow
    in the space of distributions.
    """

    def __init__(self, settings: DenseSettings, context: Context) -> None:
        self.cases = list(itertools.product(settings.activation, settings.depth))
        starts = list(itertools.product(settings.start, settings.weight_scale, settings.seed))
        names = ("activation", "depth", "start", "weight_scale", "seed")
        self.members = [
            dict(zip(names, (*case, *start), strict=True))
            for case, start in itertools.product(self.cases, starts)
        ]
        drawn = zip(*(draw(settings, seed) for *_, seed in starts), strict=True)
        x, y, w1 = (torch.stack(tensors).to(context.device) for tensors in drawn)
        self.x, self.y, self.w1 = x, y, w1
        self.data = Data.of("gaussian", [x, y])
        self.theta = [
            torch.stack([weights(settings.width, depth, *start) for start in starts])
            .to(context.device)
            .requires_grad_()
            for _, depth in self.cases
        ]
        self.steps = settings.steps
        self.optimizer = self._descent(settings, self.theta)

    @staticmethod
    def _descent(settings: DenseSettings, thetas: Iterable[Tensor]) -> torch.optim.Optimizer:
        rate = settings.learning_rate
        groups = [{"params": [theta], "lr": rate * theta.shape[1]} for theta in thetas]
        return torch.optim.SGD(groups)

    def loss_and_grad(self) -> Tensor:
        """Compute every network's loss and its gradients."""
        losses = []
        for theta, loss in self._losses():
            (theta.grad,) = torch.autograd.grad(loss.sum(), [theta])
            losses.append(loss.detach())
        return torch.cat(losses)

    def _losses(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield weights and losses of all networks, in the order of the members."""
        for theta, activation in self._networks():
            yield theta, self._loss(states(self.x, theta, activation)[-1])

    def _networks(self) -> Iterator[tuple[Tensor, str]]:
        for (activation, _), theta in zip(self.cases, self.theta, strict=True):
            yield theta, activation

    def _loss(self, end: Tensor) -> Tensor:
        output = torch.einsum("nsi,ni->ns", end, self.w1)
        return (output - self.y).square().mean(1) / 2

    @staticmethod
    def _norm(values: Tensor) -> Tensor:
        """Return root mean square over samples of vectors' norms, ``(networks,)``."""
        return values.detach().square().sum(-1).mean(-1).sqrt()


class ExpansionProblem(DenseProblem):
    """Both expansions of the networks, before and after training."""

    def __init__(self, settings: ExpansionSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.order = settings.order
        self.probes = [Probe("metrics", [0, self.steps], self.measure)]

    def measure(self) -> pd.DataFrame:
        """Norms of the expansions' terms, and of what the terms up to each order leave out."""
        frames = []
        for index, (theta, activation) in enumerate(self._networks()):
            members = self.members[index * len(theta) : (index + 1) * len(theta)]
            with torch.no_grad():
                end = states(self.x, theta, activation)[-1]
                for name, expand in EXPANSIONS.items():
                    series = expand(self.x, theta, activation, self.order)
                    frame = pd.concat(self._orders(series, end, members), ignore_index=True)
                    frames.append(frame.assign(terms=name))
        return pd.concat(frames, ignore_index=True)

    def _orders(
        self, series: Sequence[Tensor], end: Tensor, members: Sequence[Mapping[str, Any]]
    ) -> Iterator[pd.DataFrame]:
        total, rest = self._norm(end - self.x), end
        for k, term in enumerate(series):
            rest = rest - term
            measured = {"norm": self._norm(term), "remainder": self._norm(rest) / total}
            yield member_rows(members, **measured).assign(order=k)


class GradientsProblem(DenseProblem):
    """The deep networks, and two-layer networks that start with the same weights, both trained.

    Attributes
    ----------
    shallow
        Weights of the two-layer networks, shaped like ``theta``.
    """

    def __init__(self, settings: GradientsSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.shallow = [theta.detach().clone().requires_grad_() for theta in self.theta]
        self.optimizer = self._descent(settings, [*self.theta, *self.shallow])
        self.deep_members = self.members
        self.members = [
            {"network": network, **member}
            for network in ("deep", "two_layer")
            for member in self.deep_members
        ]
        self.probes = [
            Probe("metrics", log_spaced(self.steps, settings.probes), self.measure),
            Probe("extremes", [0, self.steps], self.measure_extremes),
            Probe("adjoint", [0, self.steps], self.measure_adjoint),
        ]

    def _losses(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from super()._losses()
        for theta, (activation, _) in zip(self.shallow, self.cases, strict=True):
            yield theta, self._loss(first_order(self.x, theta, activation))

    def measure(self) -> pd.DataFrame:
        """Loss, and gradient in L2 over depth, sqrt(L sum_l ||dE/dtheta^l||^2), of all networks."""
        losses, gradients = [], []
        for theta, loss in self._losses():
            losses.append(loss)
            gradients.append(over_depth(torch.autograd.grad(loss.sum(), [theta])[0]))
        return member_rows(self.members, loss=torch.cat(losses), gradient=torch.cat(gradients))

    def measure_extremes(self) -> pd.DataFrame:
        """Extremes of the deep networks' adjoints, ||p(., t)|| over ||p(., 1)||, over depth.

        ``adjoint_bound`` is what the blocks' Lipschitz constants guarantee for the least.
        """
        rows: dict[str, list[Tensor]] = {"least": [], "most": [], "bound": []}
        for theta, activation in self._networks():
            ratios = self._adjoints(theta, activation)
            lipschitz = spectral_norm(theta.detach()) * STEEPEST[activation]
            rows["least"].append(ratios.amin(1))
            rows["most"].append(ratios.amax(1))
            rows["bound"].append((1 - lipschitz / theta.shape[1]).clamp_min(0).prod(1))
        columns = {f"adjoint_{name}": torch.cat(values) for name, values in rows.items()}
        return member_rows(self.deep_members, **columns)

    def measure_adjoint(self) -> pd.DataFrame:
        """||p(., t)|| over ||p(., 1)|| at every layer's time t = l / L."""
        frames, members = [], iter(self.deep_members)
        for theta, activation in self._networks():
            for ratios in self._adjoints(theta, activation):
                times = np.linspace(0, 1, len(ratios))
                frame = pd.DataFrame({"time": times, "ratio": ratios.cpu().numpy()})
                frames.append(frame.assign(**next(members)))
        return pd.concat(frames, ignore_index=True)

    def _adjoints(self, theta: Tensor, activation: str) -> Tensor:
        """Return the adjoint's norms relative to its end's, ``(networks, L + 1)``."""
        path = states(self.x.detach().requires_grad_(), theta.detach(), activation)
        adjoints = torch.autograd.grad(self._loss(path[-1]).sum(), path)
        norms = torch.stack([self._norm(adjoint) for adjoint in adjoints], dim=1)
        return norms / norms[:, -1:]


def draw(settings: DenseSettings, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw X^0 = w2 x ``(samples, width)``, targets ``(samples,)`` and w1 ``(width,)``.

    x is standard Gaussian, w2 has orthonormal columns, w1 norm 1, and the target is
    sin(pi <u, x>) of a random direction u.
    """
    n, d, width = settings.samples, settings.dimension, settings.width
    source = generator(seed, "data")
    x = torch.randn(n, d, generator=source, dtype=torch.float64)
    direction = torch.randn(d, generator=source, dtype=torch.float64)
    outer = generator(seed, "outer weights")
    w2, _ = torch.linalg.qr(torch.randn(width, d, generator=outer, dtype=torch.float64))
    w1 = torch.randn(width, generator=outer, dtype=torch.float64)
    target = torch.sin(torch.pi * x @ (direction / direction.norm()))
    return x @ w2.mT, target, w1 / w1.norm()


def weights(width: int, depth: int, start: str, scale: float, seed: int) -> Tensor:
    """Draw Gaussian weights ``(depth, width, width)`` of spectral scale ``scale``.

    Those of `tied` are the same in every layer, those of `iid` are drawn for each.
    """
    source = generator(seed, "weights", start)
    layers = 1 if start == "tied" else depth
    drawn = torch.randn(layers, width, width, generator=source, dtype=torch.float64)
    return drawn.expand(depth, -1, -1) * (scale / math.sqrt(width))


def spectral_norm(matrices: Tensor) -> Tensor:
    """Return the norms of matrices ``(..., n, n)``; NaN for those that are not finite."""
    finite = matrices.isfinite().all(-1).all(-1)
    usable = matrices.where(finite[..., None, None], 0.0)
    norms: Tensor = torch.linalg.matrix_norm(usable, ord=2)
    return norms.where(finite, torch.nan)


def over_depth(gradient: Tensor) -> Tensor:
    """Return sqrt(L sum_l ||dE/dtheta^l||^2): the norm in L2 over depth of L dE/dtheta."""
    return (gradient.shape[1] * gradient.square().sum((1, 2, 3))).sqrt()
