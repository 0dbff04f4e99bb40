"""A neural ODE whose vector field and head are two-layer tanh networks, batched over members.

The model of Chen et al. (ICLR 2024), Eq. 2, at finite width and with L Euler steps: with
``z_0 = x`` in R^d,

    z_{l+1} = z_l + (1/L) (W2 tanh(W1 z_l + b1) + b2),      l = 0 .. L-1,
    output  = V2 tanh(V1 z_L + c1) + c2.

Layout. Samples are the last, contiguous axis, so that every operation is a long vector operation
or a batched matrix product. Affine maps are in homogeneous coordinates: states carry a row of
ones and hidden layers a unit that is always 1, so biases need no separate operations.

The logistic function is several times faster than tanh in torch, and ``tanh(u) = 2 logistic(2u)
- 1``. So networks are evaluated with logistic units, and the small matrices around these absorb
the scaling and the shift (`LogisticForm`); no long operation computes a tanh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

SATURATED = 40.0  # logistic(40) is exactly 1 in float32 and float64


def homogeneous(x: Tensor) -> Tensor:
    """Append a row of ones: ``(..., d, n)`` becomes ``(..., d + 1, n)``."""
    return torch.cat([x, torch.ones_like(x[..., :1, :])], dim=-2)


def draw_affine(
    shape: Sequence[int], fan_out: int, fan_in: int, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Draw affine maps ``(*shape, fan_out, fan_in + 1)`` by the law of ``torch.nn.Linear``.

    Weights, and biases in the last column, are uniform on ``+-fan_in^(-1/2)``.
    """
    uniform = torch.rand(*shape, fan_out, fan_in + 1, generator=generator, dtype=dtype)
    bound: float = fan_in**-0.5
    return (2 * uniform - 1) * bound


class TwoLayerODE:
    """A batch of independent networks, called members.

    Parameters
    ----------
    field_inner, field_outer
        Affine maps of the vector field, ``(members, f, m, d + 1)`` and ``(members, f, d, m + 1)``:
        ``f`` is 1 for a field constant in depth and ``depth`` for one field per step.
    head_inner, head_outer
        Affine maps of the head, ``(members, k, d + 1)`` and ``(members, 1, k + 1)``.
    depth
        Number of Euler steps L.
    field
        ``constant`` or ``per_step`` (both trained), ``frozen`` (not trained) or ``removed``.
    """

    def __init__(
        self,
        field_inner: Tensor,
        field_outer: Tensor,
        head_inner: Tensor,
        head_outer: Tensor,
        depth: int,
        field: str,
    ) -> None:
        self.depth = depth
        self.field = field
        self.field_inner, self.field_outer = field_inner.clone(), field_outer.clone()
        self.head_inner, self.head_outer = head_inner.clone(), head_outer.clone()
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)

    @property
    def trains_field(self) -> bool:
        """Whether the vector field is trained."""
        return self.field in ("constant", "per_step")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trained tensors, by name."""
        field = {"field_inner": self.field_inner, "field_outer": self.field_outer}
        head = {"head_inner": self.head_inner, "head_outer": self.head_outer}
        return field | head if self.trains_field else head

    def logistic_form(self) -> LogisticForm:
        """Return the networks in the form in which they are evaluated."""
        steps = 0 if self.field == "removed" else self.depth
        inner = _logistic_inner(self.field_inner)
        # A row of zeros keeps the state's row of ones.
        outer = pad(_logistic_outer(self.field_outer), (0, 0, 0, 1)) / self.depth
        return LogisticForm(
            inner=_unbind_steps(inner, steps),
            outer=_unbind_steps(outer, steps),
            head_inner=_logistic_inner(self.head_inner),
            head_outer=_logistic_outer(self.head_outer),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs ``(members, n)`` for homogeneous inputs ``(members, d + 1, n)``."""
        return self.logistic_form()(x)


@dataclass(frozen=True)
class LogisticForm:
    """Networks in homogeneous coordinates with logistic units in place of tanh.

    Attributes
    ----------
    inner, outer
        For every Euler step ``(members, m + 1, d + 1)`` and ``(members, d + 1, m + 1)``; the
        factor 1/L is in ``outer``.
    head_inner, head_outer
        ``(members, k + 1, d + 1)`` and ``(members, 1, k + 1)``.
    """

    inner: Sequence[Tensor]
    outer: Sequence[Tensor]
    head_inner: Tensor
    head_outer: Tensor

    def __getitem__(self, members: slice) -> LogisticForm:
        """Return a slice of the members."""
        return LogisticForm(
            [inner[members] for inner in self.inner],
            [outer[members] for outer in self.outer],
            self.head_inner[members],
            self.head_outer[members],
        )

    def flow(self, x: Tensor) -> Tensor:
        """Transport homogeneous inputs ``(members, d + 1, n)`` to the last state z_L."""
        z = x
        for inner, outer in zip(self.inner, self.outer, strict=True):
            z = torch.baddbmm(z, outer, torch.bmm(inner, z).sigmoid_())
        return z

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs ``(members, n)`` for homogeneous inputs ``(members, d + 1, n)``."""
        hidden = torch.bmm(self.head_inner, self.flow(x)).sigmoid_()
        return torch.bmm(self.head_outer, hidden).squeeze(1)


def _logistic_inner(inner: Tensor) -> Tensor:
    """Double ``(..., m, d + 1)`` and append the unit that is always 1."""
    one = torch.zeros_like(inner[..., :1, :])
    one[..., -1] = SATURATED
    return torch.cat([2 * inner, one], dim=-2)


def _logistic_outer(outer: Tensor) -> Tensor:
    """Rewrite ``W tanh + b``, ``(..., o, m + 1)``, as ``2 W logistic + (b - W 1)``."""
    weight, bias = outer[..., :-1], outer[..., -1:]
    return torch.cat([2 * weight, bias - weight.sum(dim=-1, keepdim=True)], dim=-1)


def _unbind_steps(matrices: Tensor, steps: int) -> tuple[Tensor, ...]:
    """Split ``(members, f, ., .)`` into one tensor per step; a constant field serves all steps."""
    fields = matrices.unbind(1)
    return fields * steps if len(fields) == 1 else fields[:steps]


class TrainingSet:
    """The samples of some members, and the buffers of their gradient.

    Parameters
    ----------
    members
        Which members have these samples.
    x
        Homogeneous inputs, ``(members, d + 1, n)``.
    y
        Targets, ``(members, n)``.
    """

    def __init__(self, members: slice, x: Tensor, y: Tensor) -> None:
        self.members, self.x, self.y = members, x, y

    def allocate(self, model: TwoLayerODE) -> None:
        """Allocate buffers; transport the samples once if the field is not trained."""
        count, _, samples = self.x.shape
        fixed = self.x if model.trains_field else model.logistic_form()[self.members].flow(self.x)
        steps = model.depth if model.trains_field else 0
        units, head_units = model.field_inner.shape[-2] + 1, model.head_inner.shape[-2] + 1
        new = self.x.new_empty
        self.states = [fixed, *(torch.empty_like(self.x) for _ in range(steps))]
        self.hidden = [new(count, units, samples) for _ in range(steps)]
        self.delta = new(count, units, samples)
        self.head_hidden = new(count, head_units, samples)
        self.head_delta = new(count, head_units, samples)
        self.output = new(count, 1, samples)
        self.adjoint = torch.empty_like(self.x)


class SquaredLoss:
    """Mean squared error of every member, with gradients by a hand-written adjoint method.

    Parameters
    ----------
    model
        The networks.
    sets
        Training sets that together cover all members, in order; their sizes may differ.
    """

    def __init__(self, model: TwoLayerODE, sets: Sequence[TrainingSet]) -> None:
        self.model, self.sets = model, sets
        for samples in sets:
            samples.allocate(model)
        form = model.logistic_form()
        fields = model.field_inner.shape[1] if model.trains_field else 0
        self._inner = [torch.zeros_like(form.inner[step]) for step in range(fields)]
        self._outer = [torch.zeros_like(form.outer[step]) for step in range(fields)]
        self._head_inner = torch.zeros_like(form.head_inner)
        self._head_outer = torch.zeros_like(form.head_outer)

    def __call__(self) -> Tensor:
        """Return all losses, ``(members,)``, and set the parameters' ``.grad``."""
        for gradient in (*self._inner, *self._outer):
            gradient.zero_()
        form = self.model.logistic_form()
        losses = torch.cat([self._loss(samples, form[samples.members]) for samples in self.sets])
        self._set_gradients()
        return losses

    def _loss(self, samples: TrainingSet, form: LogisticForm) -> Tensor:
        _forward(samples, form)
        residual = samples.output.squeeze(1).sub_(samples.y)
        losses = residual.square().mean(dim=1)
        residual.mul_(2 / residual.shape[1])
        self._backward_head(samples, form)
        for step in reversed(range(len(samples.hidden))):
            self._backward_step(samples, form, step)
        return losses

    def _backward_head(self, samples: TrainingSet, form: LogisticForm) -> None:
        hidden, delta, members = samples.head_hidden, samples.head_delta, samples.members
        torch.bmm(samples.output, hidden.mT, out=self._head_outer[members])
        torch.bmm(form.head_outer.mT, samples.output, out=delta)
        torch.ops.aten.sigmoid_backward.grad_input(delta, hidden, grad_input=delta)
        torch.bmm(delta, samples.states[-1].mT, out=self._head_inner[members])
        torch.bmm(form.head_inner.mT, delta, out=samples.adjoint)

    def _backward_step(self, samples: TrainingSet, form: LogisticForm, step: int) -> None:
        hidden, delta, adjoint = samples.hidden[step], samples.delta, samples.adjoint
        field, members = step % len(self._inner), samples.members
        self._outer[field][members].baddbmm_(adjoint, hidden.mT)
        torch.bmm(form.outer[step].mT, adjoint, out=delta)
        torch.ops.aten.sigmoid_backward.grad_input(delta, hidden, grad_input=delta)
        self._inner[field][members].baddbmm_(delta, samples.states[step].mT)
        adjoint.baddbmm_(form.inner[step].mT, delta)

    def _set_gradients(self) -> None:
        """Pull the gradients back from the logistic form to the parameters."""
        model = self.model
        model.head_inner.grad = 2 * self._head_inner[:, :-1]
        model.head_outer.grad = _pull_back_outer(self._head_outer)
        if model.trains_field:
            model.field_inner.grad = 2 * torch.stack(self._inner, dim=1)[:, :, :-1]
            outer = torch.stack(self._outer, dim=1)[:, :, :-1] / model.depth
            model.field_outer.grad = _pull_back_outer(outer)


def _forward(samples: TrainingSet, form: LogisticForm) -> None:
    for step, hidden in enumerate(samples.hidden):
        z = samples.states[step]
        torch.bmm(form.inner[step], z, out=hidden).sigmoid_()
        torch.baddbmm(z, form.outer[step], hidden, out=samples.states[step + 1])
    torch.bmm(form.head_inner, samples.states[-1], out=samples.head_hidden).sigmoid_()
    torch.bmm(form.head_outer, samples.head_hidden, out=samples.output)


def _pull_back_outer(gradient: Tensor) -> Tensor:
    """Turn the gradient for `_logistic_outer`'s result into that for its argument."""
    weight, bias = gradient[..., :-1], gradient[..., -1:]
    return torch.cat([2 * weight - bias, bias], dim=-1)


def evaluate(parameters: Mapping[str, Tensor], x: Tensor, depth: int) -> Tensor:
    """Evaluate one network at one point by the equations as written, differentiably.

    The counterpart of `LogisticForm` where speed does not matter.

    Parameters
    ----------
    parameters
        ``field_inner (f, m, d + 1)``, ``field_outer (f, d, m + 1)``, ``head_inner (k, d + 1)``
        and ``head_outer (1, k + 1)`` of one member.
    x
        A point, ``(d,)``.
    depth
        Number of Euler steps L.
    """
    fields = parameters["field_inner"].shape[0]
    z = x
    for step in range(depth):
        inner = parameters["field_inner"][step % fields]
        outer = parameters["field_outer"][step % fields]
        z = z + _two_layer(inner, outer, z) / depth
    return _two_layer(parameters["head_inner"], parameters["head_outer"], z).squeeze(-1)


def _two_layer(inner: Tensor, outer: Tensor, z: Tensor) -> Tensor:
    hidden = torch.tanh(inner[:, :-1] @ z + inner[:, -1])
    return outer[:, :-1] @ hidden + outer[:, -1]


def gram_matrices(model: TwoLayerODE, members: slice, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gram matrices of the output's gradients (Chen et al., Eq. 19 and 20).

    At finite width the measures are sums over particles, that is over hidden units: G1 sums
    over the field's, G2 over the head's. Biases of the outer layers belong to no
    particle and are left out. The rank is at most the number of parameters, so with more samples
    than that the smallest eigenvalue is 0 whatever the theory says.

    Parameters
    ----------
    model
        The networks.
    members
        Which of them.
    x
        Points, ``(members, n, d)``.

    Returns
    -------
    G1, G2
        In float64, each ``(members, n, n)``.
    """
    names = ("field_inner", "field_outer", "head_inner", "head_outer")
    parameters = {name: getattr(model, name)[members].detach().double() for name in names}

    # Over points with one network, then over members.
    gradient = torch.func.vmap(torch.func.grad(evaluate), in_dims=(None, 0, None))
    rows = torch.func.vmap(gradient, in_dims=(0, 0, None))(parameters, x.double(), model.depth)
    field = _gram(rows["field_inner"], rows["field_outer"][..., :-1])
    return field, _gram(rows["head_inner"], rows["head_outer"][..., :-1])


def _gram(*jacobians: Tensor) -> Tensor:
    """Sum ``J J^T`` over Jacobians of shape ``(members, n, ...)``."""
    flat = torch.cat([jacobian.flatten(2) for jacobian in jacobians], dim=2)
    return flat @ flat.mT


def particle_distances(now: Tensor, start: Tensor) -> Tensor:
    """Return the root mean square over particles of the distance moved, ``(members,)``.

    Both arguments hold a particle per row, as `particles` returns them.
    """
    return (now - start).square().sum(dim=-1).flatten(1).mean(dim=1).sqrt()


def particles(inner: Tensor, outer: Tensor) -> Tensor:
    """Join a hidden unit's incoming and outgoing weights, ``(members, ..., m, d + 1 + o)``."""
    return torch.cat([inner, outer[..., :-1].mT], dim=-1)
