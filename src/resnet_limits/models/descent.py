"""Gradient descent on the weights of dense residual chains.

Weights are held as a start and a deviation from it, and only deviations are trained. Neighbouring
layers of a weight-tied chain differ by far less than the weights' own rounding in float32: by 1e-9
where entries of size 1 are rounded to 1e-7. Their deviations resolve that difference.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from resnet_limits.models.activations import LayerRule
from resnet_limits.models.chains import ChainLoss, chain


class MovingWeights:
    """The weights of all layers, as a start plus a deviation.

    Parameters
    ----------
    start
        Of shape (..., L, rows, columns), or with 1 in place of L for layers that start alike.
    depth
        Number of layers L.

    Attributes
    ----------
    deviation
        What is trained.
    grad
        The loss's derivative with respect to the weights; also ``deviation.grad``, for optimizers.
    value
        Start plus deviation, up to date after `renew`.
    """

    def __init__(self, start: Tensor, depth: int) -> None:
        self._start = start
        *batch, layers, rows, columns = start.shape
        self._tied = layers == 1
        self.deviation = start.new_zeros(*batch, depth, rows, columns)
        self.grad = self.deviation.grad = torch.zeros_like(self.deviation)
        # From zero, deviation and value are the same numbers.
        self.value = self.deviation if not start.any() else start + self.deviation
        self._difference = torch.empty_like(self.deviation[..., 1:, :, :])

    def renew(self) -> None:
        """Bring `value` up to date, and let optimizers see `grad`."""
        self.deviation.grad = self.grad  # an optimizer's zero_grad() takes it away
        if self.value is not self.deviation:
            torch.add(self._start, self.deviation, out=self.value)

    def successive_distance(self) -> Tensor:
        """Return max_k ||Z_{k+1} - Z_k||_F, of shape (...)."""
        weights = self.deviation if self._tied else self.value
        difference = torch.sub(
            weights[..., 1:, :, :], weights[..., :-1, :, :], out=self._difference
        )
        norms: Tensor = torch.linalg.vector_norm(difference, dim=(-2, -1))
        return norms.amax(-1)

    def distances(self, limit: MovingWeights) -> tuple[Tensor, Tensor]:
        """Return distances to a deeper chain's weights with the same tied start.

        Both are piecewise constant over depth s in [0, 1]: Z(s) is the weight of layer
        ceil(s L). The deeper chain's depth must be a multiple of this one's, so that every
        layer of it faces exactly one here, and the norms are exact.

        Returns
        -------
        tuple
            The L2 norm (integral over s of ||Z(s) - Z_limit(s)||_F^2)^(1/2) and the supremum over
            s of ||Z(s) - Z_limit(s)||_F.
        """
        deviation = self.deviation.unsqueeze(-3)
        difference = torch.unflatten(limit.deviation, -3, (deviation.shape[-4], -1)) - deviation
        norms: Tensor = torch.linalg.vector_norm(difference, dim=(-2, -1)).flatten(-2)
        return norms.square().mean(-1).sqrt(), norms.amax(-1)


class DescendingChain:
    """A chain in training: data, weights, loss and gradients.

    Parameters
    ----------
    x, y
        Inputs and targets, of shape (n, d) or (S, n, d).
    W, V
        Starts of the weights, of shapes (..., L, m, d) and (..., L, d, m), or with 1 in place of L
        for layers that start alike.
    depth
        Number of layers L.
    rule, backend
        As in `resnet_limits.models.chains.chain`.

    Attributes
    ----------
    W, V
        The weights in training.
    rule
        Step size, activation and inner scale.
    engine
        Name of the engine in use: "numba" or "torch".
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        W: Tensor,
        V: Tensor,
        depth: int,
        rule: LayerRule,
        *,
        backend: str = "auto",
    ) -> None:
        self.depth = depth
        self._x, self.rule, self._backend = x, rule, backend
        self.W = MovingWeights(W, depth)
        self.V = MovingWeights(V, depth)
        self._loss = ChainLoss(x, y, self.W.value, rule, backend=backend)
        self.engine = self._loss.engine

    def loss(self) -> Tensor:
        """Return the mean squared error, shape () or (S,), and leave gradients in ``.grad``."""
        W, V = self._weights()
        return self._loss(W, V, self.W.grad, self.V.grad)

    @torch.no_grad()
    def states(self, count: int) -> Tensor:
        """Return the hidden states at depths s = 1/count, ..., 1, of shape (count, ..., n, d).

        Layer s L has depth s; `count` divides the number of layers. They are computed in float64:
        rounding of float32 adds up over thousands of layers.
        """
        h, found, each = self._x.double(), [], self.depth // count
        for first in range(0, self.depth, each):
            layers = slice(first, first + each)
            h = chain(h, *self._double(layers), self.rule, backend=self._backend)
            found.append(h)
        return torch.stack(found)

    @torch.no_grad()
    def coarse_output(self, depth: int) -> Tensor:
        """Return the output, (..., n, d), of fewer layers with the weights of the same functions.

        Layer k of them has the weights at s = k / depth, a divisor of the number of layers, and
        the step is as much larger: both are discretizations of one ODE (Proposition 2). Like
        `states`, in float64.
        """
        every = self.depth // depth
        rule = replace(self.rule, step_size=every * self.rule.step_size)
        weights = self._double(slice(every - 1, None, every))
        return chain(self._x.double(), *weights, rule, backend=self._backend)

    def _double(self, layers: slice) -> tuple[Tensor, Tensor]:
        W, V = (weights[..., layers, :, :].double().contiguous() for weights in self._weights())
        return W, V

    def _weights(self) -> tuple[Tensor, Tensor]:
        self.W.renew()
        self.V.renew()
        return self.W.value, self.V.value


def train_chain(
    x: Tensor,
    y: Tensor,
    W: Tensor,
    V: Tensor,
    *,
    learning_rate: float,
    steps: int,
    rule: LayerRule | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Train a chain on given data from given weights by full-batch gradient descent.

    The chain is h_{k+1} = h_k + step_size V_k sigma(inner_scale W_k h_k), h_0 = x; the loss is the
    mean over samples and coordinates of (h_L - y)^2; a step is
    Z <- Z - learning_rate L (gradient with respect to Z) for Z = W and V.

    Parameters
    ----------
    x, y
        Inputs and targets, of shape (n, d).
    W, V
        Weights at the start, of shapes (L, m, d) and (L, d, m); they are not changed.
    learning_rate
        The learning rate without its factor L.
    steps
        Number of steps.
    rule
        Step size, activation and inner scale; unless given, step size 1 / L, GELU and 1.
    backend
        As in `resnet_limits.models.chains.chain`.

    Returns
    -------
    tuple
        Losses before each step and after the last, of shape (steps + 1,), and the trained W and V.
    """
    depth = len(W)
    chain = DescendingChain(x, y, W, V, depth, rule or LayerRule(1 / depth), backend=backend)
    losses = [chain.loss().clone()]
    for _ in range(steps):
        for weights in (chain.W, chain.V):
            weights.deviation.sub_(weights.grad, alpha=learning_rate * depth)
        losses.append(chain.loss().clone())
    return torch.stack(losses), chain.W.value, chain.V.value
