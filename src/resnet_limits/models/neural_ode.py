"""The two-layer ODE by torchdyn: one member of a `TwoLayerODE` as a `NeuralODE`.

It is the solution that the batched engine is compared with, in tests, in benchmarks and in the
experiment ``solvers``. Importing torchdyn takes seconds, so nothing else imports this module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchdyn.core import NeuralODE

from resnet_limits.models.two_layer_ode import TwoLayerODE

EULER = "euler"
CONTIGUOUS = torch.contiguous_format
TOLERANCE = 1e-8  # of adaptive solvers, absolute and relative
EVALUATIONS = 10_000  # of the field, at most; a network that has learnt needs some hundred


class StiffError(Exception):
    """A field that an adaptive solver would follow for hours, or for ever."""


class TwoLayer(nn.Module):
    """A two-layer tanh network with given affine maps, ``(m, d + 1)`` and ``(o, m + 1)``."""

    def __init__(self, inner: Tensor, outer: Tensor) -> None:
        super().__init__()
        units, width = inner.shape
        self.inner = nn.Linear(width - 1, units, dtype=inner.dtype, device="meta")
        self.outer = nn.Linear(units, outer.shape[0], dtype=inner.dtype, device="meta")
        for layer, maps in ((self.inner, inner), (self.outer, outer)):
            layer.weight = nn.Parameter(maps[:, :-1].detach().clone(memory_format=CONTIGUOUS))
            layer.bias = nn.Parameter(maps[:, -1].detach().clone(memory_format=CONTIGUOUS))

    def forward(self, x: Tensor) -> Tensor:
        """Map points ``(n, inputs)`` to ``(n, outputs)``."""
        output: Tensor = self.outer(torch.tanh(self.inner(x)))
        return output

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return the gradients as affine maps."""
        return _gradient(self.inner), _gradient(self.outer)


def _gradient(layer: nn.Linear) -> Tensor:
    weight, bias = layer.weight.grad, layer.bias.grad
    assert weight is not None and bias is not None, "no backward pass yet"
    return torch.cat([weight, bias[:, None]], dim=1)


class Field(nn.Module):
    """A vector field: one network at all times, or one per Euler step."""

    def __init__(self, networks: list[TwoLayer], depth: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.depth = depth
        self.evaluations = 0

    def forward(self, t: Tensor, x: Tensor, args: object = None) -> Tensor:
        """Return the velocity at time ``t`` in [0, 1) of points ``(n, d)``."""
        del args  # torchdyn passes it
        self.evaluations += 1
        if self.evaluations > EVALUATIONS:
            raise StiffError
        step = round(float(t.detach()) * self.depth)
        velocity: Tensor = self.networks[step % len(self.networks)](x)
        return velocity


class TorchdynNetwork(nn.Module):
    """A `NeuralODE` with a head, and a copy of the present weights of one member of a model.

    Parameters
    ----------
    model, member
        Whose weights.
    solver
        A solver of torchdyn's: ``euler`` takes the model's number of steps; an adaptive one, such
        as ``dopri5``, chooses its own and needs a field that is constant in depth.
    """

    def __init__(self, model: TwoLayerODE, member: int, solver: str = EULER) -> None:
        super().__init__()
        pairs = zip(model.field_inner[member], model.field_outer[member], strict=True)
        self.fields = [TwoLayer(inner, outer) for inner, outer in pairs]
        tolerances = {} if solver == EULER else {"atol": TOLERANCE, "rtol": TOLERANCE}
        self.field = Field(self.fields, model.depth)
        self.ode = NeuralODE(
            self.field,
            solver=solver,
            sensitivity="autograd",
            return_t_eval=False,
            **tolerances,
        )
        self.head = TwoLayer(model.head_inner[member], model.head_outer[member])
        dtype, device = model.head_inner.dtype, model.head_inner.device
        points = model.depth + 1 if solver == EULER else 2
        self.t_span = torch.linspace(0, 1, points, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs ``(n,)`` for points ``(n, d)``; NaN if the field is too stiff."""
        self.field.evaluations = 0
        try:
            output: Tensor = self.head(self.ode(x, self.t_span)[-1])
        except StiffError:
            output = self.head(x) * torch.nan
        return output.squeeze(-1)
