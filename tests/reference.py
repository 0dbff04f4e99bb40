"""Plain versions of the models, one network at a time, by torchdyn and torch.nn."""

import torch
from torch import nn
from torchdyn.core import NeuralODE

from resnet_limits.models.mean_field import MeanFieldODE


class TwoLayer(nn.Module):
    """A two-layer tanh network with given affine maps."""

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
        return self.outer(torch.tanh(self.inner(x)))

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients as affine maps."""
        inner, outer = (
            torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)
            for layer in (self.inner, self.outer)
        )
        return inner, outer


class FieldPerStep(nn.Module):
    """A vector field of time that is one network on each Euler step."""

    def __init__(self, fields: list[TwoLayer]) -> None:
        super().__init__()
        self.fields = nn.ModuleList(fields)

    def forward(self, t: torch.Tensor, x: torch.Tensor, args: object = None) -> torch.Tensor:
        return self.fields[round(float(t) * len(self.fields))](x)


class TorchdynNetwork(nn.Module):
    """One member of a `MeanFieldODE` as torchdyn's NeuralODE with an output layer."""

    def __init__(self, model: MeanFieldODE, member: int) -> None:
        super().__init__()
        pairs = zip(model.field_inner[member], model.field_outer[member], strict=True)
        self.fields = [TwoLayer(inner, outer) for inner, outer in pairs]
        constant = len(self.fields) == 1
        self.ode = NeuralODE(
            self.fields[0] if constant else FieldPerStep(self.fields),
            solver="euler",
            sensitivity="autograd",
            return_t_eval=False,
        )
        self.head = TwoLayer(model.head_inner[member], model.head_outer[member])
        self.t_span = torch.linspace(0, 1, model.depth + 1, dtype=model.head_inner.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.ode(x, self.t_span)[-1]).squeeze(-1)
