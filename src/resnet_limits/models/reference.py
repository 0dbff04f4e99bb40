"""The reference model: one member of a `MeanFieldODE` as torchdyn's NeuralODE.

Slow and plain; what the batched model is tested and timed against. Importing it costs seconds.
"""

from __future__ import annotations

import torch
from torch import nn
from torchdyn.core import NeuralODE

from resnet_limits.models.mean_field import MeanFieldODE


class TwoLayer(nn.Module):
    """A two-layer tanh network with given affine maps, ``(m, d + 1)`` and ``(o, m + 1)``."""

    def __init__(self, inner: torch.Tensor, outer: torch.Tensor) -> None:
        super().__init__()
        units, width = inner.shape
        self.inner = nn.Linear(width - 1, units, dtype=inner.dtype)
        self.outer = nn.Linear(units, outer.shape[0], dtype=inner.dtype)
        with torch.no_grad():
            for layer, maps in ((self.inner, inner), (self.outer, outer)):
                layer.weight.copy_(maps[:, :-1])
                layer.bias.copy_(maps[:, -1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map points ``(n, inputs)`` to ``(n, outputs)``."""
        return self.outer(torch.tanh(self.inner(x)))

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients as affine maps."""
        return _gradient(self.inner), _gradient(self.outer)


def _gradient(layer: nn.Linear) -> torch.Tensor:
    weight, bias = layer.weight.grad, layer.bias.grad
    assert weight is not None and bias is not None, "no backward pass yet"
    return torch.cat([weight, bias[:, None]], dim=1)


class Field(nn.Module):
    """A vector field that is one network at all times, or another on each Euler step."""

    def __init__(self, networks: list[TwoLayer], depth: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.depth = depth

    def forward(self, t: torch.Tensor, x: torch.Tensor, args: object = None) -> torch.Tensor:
        """Return the velocity at time ``t`` in [0, 1) of points ``(n, d)``."""
        del args  # torchdyn passes it
        return self.networks[round(float(t) * self.depth) % len(self.networks)](x)


class TorchdynNetwork(nn.Module):
    """A NeuralODE with an output layer, and the weights of one member of a `MeanFieldODE`.

    Parameters
    ----------
    model
        Whose present weights are copied.
    member
        Which member.
    """

    def __init__(self, model: MeanFieldODE, member: int) -> None:
        super().__init__()
        pairs = zip(model.field_inner[member], model.field_outer[member], strict=True)
        self.fields = [TwoLayer(inner, outer) for inner, outer in pairs]
        self.ode = NeuralODE(
            Field(self.fields, model.depth),
            solver="euler",
            sensitivity="autograd",
            return_t_eval=False,
        )
        self.head = TwoLayer(model.head_inner[member], model.head_outer[member])
        self.t_span = torch.linspace(0, 1, model.depth + 1, dtype=model.head_inner.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return outputs ``(n,)`` for points ``(n, d)``."""
        return self.head(self.ode(x, self.t_span)[-1]).squeeze(-1)
