"""Weight smoothness: what is trained and measured of dense chains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.data.synthetic import standard_normal
from resnet_limits.models.activations import ACTIVATIONS, LayerRule
from resnet_limits.models.descent import DescendingChain
from resnet_limits.probes import evenly_spaced, log_spaced, member_rows
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.random import generator
from resnet_limits.studies.weight_smoothness.settings import (
    KinkSettings,
    LargeDepthSettings,
    LongTimeSettings,
    RegressionSettings,
)

DTYPES = {"float32": torch.float32, "float64": torch.float64}
NODES = 64  # depths at which hidden states are compared; fewer where a chain has fewer layers


class LargeDepthProblem(Problem):
    """One seed's chains of every depth, and of the depth that stands for the limit, in lockstep.

    All train on the same data from the same weights. Distances to the limit are taken while
    training, so no trajectory of weights is kept. Without a limit, they are not taken.
    """

    def __init__(self, settings: LargeDepthSettings, context: Context) -> None:
        x, y, W, V = draw(settings, context.device)
        self.has_limit = settings.limit_depth > 0
        depths = [*settings.depth, *[settings.limit_depth] * self.has_limit]
        self.chains = [start_chain(settings, depth, x, y, W, V) for depth in depths]
        self.members = [{"depth": depth} for depth in depths]
        self.steps = settings.steps
        self.data = Data.of("gaussian", [x, y])
        self.optimizer = gradient_descent(self.chains, settings.learning_rate)
        # Largest distances so far, one row for V and one for W.
        self.largest = torch.zeros(2, len(depths), dtype=x.dtype, device=x.device)
        self.state = {"largest": self.largest}
        self.engine = self.chains[0].engine
        self.probes = [Probe("metrics", sorted({0, *settings.times}), self.measure)]

    def loss_and_grad(self) -> Tensor:
        """Compute all losses and gradients; the largest distances see every iteration."""
        self._update_largest()
        return torch.stack([chain.loss() for chain in self.chains])

    def measure(self) -> pd.DataFrame:
        """Loss, successive distances, and distances to the limit.

        ``V_largest`` and ``W_largest`` are max over k and iterations t <= T of
        ||Z_{k+1}(t) - Z_k(t)||_F (Proposition 3, Figure 1 left), ``V_present`` and ``W_present``
        that at t = T. To the limit: ``l2`` and ``sup`` of the piecewise-constant V^L(., T) and
        W^L(., T), in L2 over depth and in sup norm (Theorem 4 (ii), Figure 1 right); ``states``,
        of the hidden states, the largest over samples and depths s = j / `NODES`; ``output``, of
        the output, the largest over samples (Theorem 4 (iii), (iv)); ``ode``, that of the output
        of L layers with the limit's own weights (Proposition 2).
        """
        present = torch.tensor(
            [[float(w.successive_distance()) for w in (c.V, c.W)] for c in self.chains]
        )
        columns = {
            "loss": self.loss_and_grad(),
            "V_largest": self.largest[0],
            "W_largest": self.largest[1],
            "V_present": present[:, 0],
            "W_present": present[:, 1],
        }
        if self.has_limit:
            weights = torch.stack([self._to_limit(chain) for chain in self.chains], dim=1)
            states = torch.stack(self._states_to_limit(), dim=1)
            names = ("V_l2", "V_sup", "W_l2", "W_sup", "states", "output", "ode")
            columns |= dict(zip(names, torch.cat([weights.double(), states]), strict=True))
        return member_rows(self.members, **columns)

    def _update_largest(self) -> None:
        for index, chain in enumerate(self.chains):
            for row, weights in zip(self.largest, (chain.V, chain.W), strict=True):
                torch.maximum(row[index], weights.successive_distance(), out=row[index])

    def _to_limit(self, chain: DescendingChain) -> Tensor:
        limit = self.chains[-1]
        return torch.stack([*chain.V.distances(limit.V), *chain.W.distances(limit.W)])

    def _states_to_limit(self) -> list[Tensor]:
        """Return each chain's distances of hidden states, output and ODE, of shape (3,)."""
        limit = self.chains[-1]
        solution = limit.states(math.gcd(limit.depth, NODES))
        found = []
        for chain in self.chains:
            count = math.gcd(chain.depth, len(solution))
            every = len(solution) // count
            states = chain.states(count) - solution[every - 1 :: every]
            ode = limit.coarse_output(chain.depth) - solution[-1]
            norms = [torch.linalg.vector_norm(t, dim=-1).max() for t in (states, states[-1], ode)]
            found.append(torch.stack(norms))
        return found


class LongTimeProblem(Problem):
    """One chain for very many iterations."""

    def __init__(self, settings: LongTimeSettings, context: Context) -> None:
        x, y, W, V = draw(settings, context.device)
        self.chain = start_chain(settings, settings.depth, x, y, W, V)
        self.members = [{"depth": settings.depth}]
        self.steps = settings.steps
        self.data = Data.of("gaussian", [x, y])
        self.optimizer = gradient_descent([self.chain], settings.learning_rate)
        self.engine = self.chain.engine
        self.entries = random_entries(settings.entries, W, V, settings.seed)
        # Even steps for fits over time, log-spaced ones for the beginning.
        even, log = (spaced(self.steps, settings.probes) for spaced in (evenly_spaced, log_spaced))
        self.probes = [
            Probe("metrics", sorted({*even, *log}), self.measure),
            Probe("entries", settings.times, self.measure_entries),
            Probe("start", [0], self.measure_start),
        ]
        self.least_quotient = least_quotient(self.chain, settings, x, W[0])

    def loss_and_grad(self) -> Tensor:
        """Compute loss and gradients."""
        return self.chain.loss().reshape(1)

    def measure(self) -> pd.DataFrame:
        """Loss, present successive distances, and the local Polyak-Lojasiewicz quotient.

        The quotient is L ||grad loss||^2 / loss: with the flow dZ/dt = -L grad loss (Eq. 4) it is
        minus the derivative of log loss by t, the rate at which the loss falls at this moment.
        """
        chain, loss = self.chain, self.loss_and_grad()
        square = chain.V.grad.square().sum() + chain.W.grad.square().sum()
        return member_rows(
            self.members,
            loss=loss,
            V_distance=chain.V.successive_distance().reshape(1),
            W_distance=chain.W.successive_distance().reshape(1),
            quotient=chain.depth * square / loss,
        )

    def measure_start(self) -> pd.DataFrame:
        """Return the smallest quotient that any targets could have at the start."""
        return pd.DataFrame([{**self.members[0], "least_quotient": self.least_quotient}])

    def measure_entries(self) -> pd.DataFrame:
        """List some entries of V_k and W_k, always the same, over layers k."""
        self.chain.loss()  # brings the values up to date
        frames = []
        for name, weights in (("V", self.chain.V), ("W", self.chain.W)):
            for number, (row, column) in enumerate(self.entries[name]):
                values = weights.value[:, row, column].double().cpu().numpy()
                frame = pd.DataFrame({"layer": range(1, len(values) + 1), "value": values})
                frames.append(frame.assign(weight=name, entry=number, row=row, column=column))
        return pd.concat(frames, ignore_index=True).assign(**self.members[0])


class KinkProblem(Problem):
    """Chains of width one on one sample, whose layers start on both sides of ReLU's kink.

    h_0 = x, h_k = h_{k-1} + (1/L) sigma(w_k h_{k-1}), loss (h_L - y)^2 and w_k(0) = (-1)^k / L for
    k = 1, ..., L (Appendix D). Targets are a tensor axis.
    """

    def __init__(self, settings: KinkSettings, context: Context) -> None:
        self.settings = settings
        cases = list(itertools.product(settings.activation, settings.depth))
        self.chains = [self._chain(*case, context.device) for case in cases]
        self.members = [
            {"activation": activation, "depth": depth, "target": target}
            for (activation, depth), target in itertools.product(cases, settings.target)
        ]
        self.steps = settings.steps
        sample = torch.tensor([settings.input, *settings.target], dtype=torch.float64)
        self.data = Data.of("one_sample", [sample])
        # The outer weights of the general chain are 1 and are not trained.
        self.optimizer = gradient_descent(self.chains, settings.learning_rate, ["W"])
        self.engine = self.chains[0].engine
        self.probes = [Probe("metrics", log_spaced(self.steps, settings.probes), self.measure)]

    def loss_and_grad(self) -> Tensor:
        """Compute all losses and gradients."""
        return torch.cat([chain.loss() for chain in self.chains])

    def measure(self) -> pd.DataFrame:
        """Loss, the largest gap max_k |w_{k+1} - w_k|, and the largest weight."""
        losses = self.loss_and_grad()
        return member_rows(
            self.members,
            loss=losses,
            gap=torch.cat([chain.W.successive_distance() for chain in self.chains]),
            largest_weight=torch.cat([chain.W.value.flatten(1).amax(1) for chain in self.chains]),
        )

    def _chain(self, activation: str, depth: int, device: torch.device) -> DescendingChain:
        settings = self.settings
        y = torch.tensor(settings.target, dtype=DTYPES[settings.dtype], device=device)
        y = y.reshape(-1, 1, 1)
        sign = torch.tensor([-1.0, 1.0], dtype=y.dtype, device=device).repeat(depth // 2)
        W = (sign / depth).reshape(1, depth, 1, 1).repeat(len(y), 1, 1, 1)
        return DescendingChain(
            torch.full_like(y, settings.input),
            y,
            W,
            torch.ones_like(W),
            depth,
            LayerRule(1 / depth, activation),
            backend=settings.backend,
        )


def draw(
    settings: RegressionSettings, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw x and y, both ``(n, d)``, and every layer's start W ``(1, m, d)`` and V ``(1, d, m)``.

    A seed's numbers do not depend on depth, scaling or type.
    """
    n, d, m = settings.samples, settings.dimension, settings.width
    x = standard_normal(n, d, generator(settings.seed, "inputs"))
    y = standard_normal(n, d, generator(settings.seed, "targets"))
    W = standard_normal(m, d, generator(settings.seed, "weights"))[None]
    drawn = (x, y, W, torch.zeros_like(W.mT).contiguous())
    x, y, W, V = (t.to(device=device, dtype=DTYPES[settings.dtype]) for t in drawn)
    return x, y, W, V


def start_chain(
    settings: RegressionSettings, depth: int, x: Tensor, y: Tensor, W: Tensor, V: Tensor
) -> DescendingChain:
    """Build a chain with the factors of the setting ``scaling``.

    ``code``: h + (1/L) V sigma(W h). ``paper``: h + (1/(L m^(1/2))) V sigma(d^(-1/2) W h), Eq. 1.
    """
    with_factors = settings.scaling == "paper"
    outer = math.sqrt(settings.width) if with_factors else 1.0
    inner = math.sqrt(settings.dimension) if with_factors else 1.0
    rule = LayerRule(1 / (outer * depth), settings.activation, 1 / inner)
    return DescendingChain(x, y, W, V, depth, rule, backend=settings.backend)


def least_quotient(
    chain: DescendingChain, settings: RegressionSettings, x: Tensor, W: Tensor
) -> float:
    """Return the Polyak-Lojasiewicz constant at the start, over all targets.

    With V = 0 only V has a gradient, and the quotient L ||grad loss||^2 / loss of residuals r is
    (4 / (n d)) (L step_size)^2 tr(r^T G r) / ||r||^2, where G is the Gram matrix of the
    sigma(inner_scale W x_i). Its infimum has G's smallest eigenvalue, which is 0 where m < n.
    """
    rule = chain.rule
    features = rule.inner_scale * x.double() @ W.double().T
    ACTIVATIONS[rule.activation].value(features, features)
    smallest = torch.linalg.eigvalsh(features @ features.T)[0].clamp_min(0)
    scale = (chain.depth * rule.step_size) ** 2
    return float(4 * scale * smallest / (settings.samples * settings.dimension))


def gradient_descent(
    chains: Iterable[DescendingChain], learning_rate: float, names: Iterable[str] = ("V", "W")
) -> torch.optim.Optimizer:
    """Return plain gradient descent with learning rate ``learning_rate`` times each depth."""
    return torch.optim.SGD(
        [
            {
                "params": [getattr(chain, name).deviation for name in names],
                "lr": learning_rate * chain.depth,
            }
            for chain in chains
        ]
    )


def random_entries(count: int, W: Tensor, V: Tensor, seed: int) -> dict[str, list[tuple[int, int]]]:
    """Draw rows and columns of ``count`` entries of each weight matrix."""
    source = generator(seed, "entries")
    return {
        name: [
            (
                int(torch.randint(weights.shape[-2], (), generator=source)),
                int(torch.randint(weights.shape[-1], (), generator=source)),
            )
            for _ in range(count)
        ]
        for name, weights in (("V", V), ("W", W))
    }
