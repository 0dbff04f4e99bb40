"""Sorted tau, Sections 2.2 and 3: a small dense network's expansion, adjoint and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resnet_limits.models.expansion import first_order, states, terms
from resnet_limits.probes import log_spaced, member_rows
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.random import generator
from resnet_limits.studies.sorted_tau.settings import ExpansionSettings

STEEPEST = {"sigmoid": 0.25, "tanh": 1.0, "identity": 1.0}


class ExpansionProblem(Problem):
    """Networks of every activation and depth, fitted by gradient descent.

    Starts and seeds are a tensor axis.

    E = mean over samples of (<w1, X^L(x)> - y)^2 / 2 with X^0 = w2 x (Eq. 2 and 3); w1 and w2 are
    fixed. Learning rates are proportional to depth, which makes steps those of the gradient flow
    in the space of distributions.
    """

    def __init__(self, settings: ExpansionSettings, context: Context) -> None:
        self.settings = settings
        self.cases = list(itertools.product(settings.activation, settings.depth))
        starts = list(itertools.product(settings.start, settings.seed))
        self.members = [
            {"activation": activation, "depth": depth, "start": start, "seed": seed}
            for (activation, depth), (start, seed) in itertools.product(self.cases, starts)
        ]
        drawn = zip(*(draw(settings, seed) for _, seed in starts), strict=True)
        x, y, w1 = (torch.stack(tensors).to(context.device) for tensors in drawn)
        self.x, self.y, self.w1 = x, y, w1
        self.data = Data.of("gaussian", [x, y])
        self.theta = [
            torch.stack([weights(settings, start, depth, seed) for start, seed in starts])
            .to(context.device)
            .requires_grad_()
            for _, depth in self.cases
        ]
        self.steps = settings.steps
        self.optimizer = torch.optim.SGD(
            [
                {"params": [theta], "lr": settings.learning_rate * theta.shape[1]}
                for theta in self.theta
            ]
        )
        ends = [0, self.steps]
        self.probes = [
            Probe("metrics", log_spaced(self.steps, settings.probes), self.measure),
            Probe("adjoint", ends, self.measure_adjoint),
            Probe("terms", ends, self.measure_terms),
        ]

    def loss_and_grad(self) -> Tensor:
        """Compute every network's loss and its gradients."""
        losses = [self._loss(states(self.x, *network)[-1]) for network in self._networks()]
        for theta, loss in zip(self.theta, losses, strict=True):
            (theta.grad,) = torch.autograd.grad(loss.sum(), [theta])
        return torch.cat(losses).detach()

    def measure(self) -> pd.DataFrame:
        """Loss, extremes of the adjoint over depth, and both networks' gradients.

        ``adjoint_least`` and ``adjoint_most`` are of ||p(., t)|| over ||p(., 1)||, and
        ``adjoint_bound`` is what the blocks' Lipschitz constants guarantee for the least.
        Gradients are in L2 over depth, sqrt(L sum_l ||dE/dtheta^l||^2), relative to the square
        root of the loss.
        """
        rows = []
        for theta, activation in self._networks():
            loss, gradient, adjoints = self._backward(theta, activation)
            shallow_loss, shallow = self._shallow(theta, activation)
            ratios = adjoints / adjoints[:, -1:]
            lipschitz = spectral_norm(theta.detach()) * STEEPEST[activation]
            rows.append(
                {
                    "loss": loss,
                    "shallow_loss": shallow_loss,
                    "gradient": gradient / loss.sqrt(),
                    "shallow_gradient": shallow / shallow_loss.sqrt(),
                    "adjoint_least": ratios.amin(1),
                    "adjoint_most": ratios.amax(1),
                    "adjoint_bound": (1 - lipschitz / theta.shape[1]).clamp_min(0).prod(1),
                }
            )
        return member_rows(
            self.members, **{name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        )

    def measure_adjoint(self) -> pd.DataFrame:
        """||p(., t)|| over ||p(., 1)|| at every layer's time t = l / L."""
        frames, members = [], iter(self.members)
        for theta, activation in self._networks():
            _, _, adjoints = self._backward(theta, activation)
            times = np.linspace(0, 1, adjoints.shape[1])
            for values in adjoints / adjoints[:, -1:]:
                frame = pd.DataFrame({"time": times, "ratio": values.cpu().numpy()})
                frames.append(frame.assign(**next(members)))
        return pd.concat(frames, ignore_index=True)

    def measure_terms(self) -> pd.DataFrame:
        """Norms of the expansion's terms, and of what the terms up to each order leave out."""
        frames = []
        for index, (theta, activation) in enumerate(self._networks()):
            members = self.members[index * len(theta) : (index + 1) * len(theta)]
            with torch.no_grad():
                series = terms(self.x, theta, activation, self.settings.order)
                end = states(self.x, theta, activation)[-1]
            total = self._norm(end - self.x)
            rest = end
            for k, term in enumerate(series):
                rest = rest - term
                measured = {"norm": self._norm(term), "remainder": self._norm(rest) / total}
                frames.append(member_rows(members, **measured).assign(order=k))
        return pd.concat(frames, ignore_index=True)

    def _networks(self) -> Iterator[tuple[Tensor, str]]:
        for (activation, _), theta in zip(self.cases, self.theta, strict=True):
            yield theta, activation

    def _loss(self, end: Tensor) -> Tensor:
        output = torch.einsum("nsi,ni->ns", end, self.w1)
        return (output - self.y).square().mean(1) / 2

    def _backward(self, theta: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, gradient norms, and the adjoint's norms ``(networks, L + 1)``."""
        x = self.x.detach().requires_grad_()
        path = states(x, theta, activation)
        loss = self._loss(path[-1])
        gradient, *adjoints = torch.autograd.grad(loss.sum(), [theta, *path])
        # The loss is a mean over samples, the adjoint a sample's own derivative.
        norms = [self._norm(adjoint * x.shape[1]) for adjoint in adjoints]
        return loss.detach(), over_depth(gradient), torch.stack(norms, dim=1)

    def _shallow(self, theta: Tensor, activation: str) -> tuple[Tensor, Tensor]:
        """Return loss and gradient norm of the two-layer network with the same weights."""
        loss = self._loss(first_order(self.x, theta, activation))
        (gradient,) = torch.autograd.grad(loss.sum(), [theta])
        return loss.detach(), over_depth(gradient)

    @staticmethod
    def _norm(values: Tensor) -> Tensor:
        """Return root mean square over samples of vectors' norms, ``(networks,)``."""
        return values.detach().square().sum(-1).mean(-1).sqrt()


def draw(settings: ExpansionSettings, seed: int) -> tuple[Tensor, Tensor, Tensor]:
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


def weights(settings: ExpansionSettings, start: str, depth: int, seed: int) -> Tensor:
    """Draw Gaussian weights ``(depth, width, width)`` of spectral scale ``weight_scale``.

    Those of `tied` are the same in every layer, those of `iid` are drawn for each.
    """
    width = settings.width
    source = generator(seed, "weights", start)
    layers = 1 if start == "tied" else depth
    drawn = torch.randn(layers, width, width, generator=source, dtype=torch.float64)
    spread: float = settings.weight_scale * width**-0.5
    return spread * drawn.expand(depth, -1, -1).clone()


def spectral_norm(matrices: Tensor) -> Tensor:
    """Return the norms of matrices ``(..., n, n)``; NaN for those that are not finite."""
    finite = matrices.isfinite().all(-1).all(-1)
    usable = matrices.where(finite[..., None, None], 0.0)
    return torch.linalg.matrix_norm(usable, ord=2).where(finite, torch.nan)


def over_depth(gradient: Tensor) -> Tensor:
    """Return sqrt(L sum_l ||dE/dtheta^l||^2): the norm in L2 over depth of L dE/dtheta."""
    return (gradient.shape[1] * gradient.square().sum((1, 2, 3))).sqrt()
