"""Dense residual chains, thousands of layers deep, and their gradients.

The model is that of Marion, Wu, Sander and Biau (ICLR 2024), Eq. 1: from h_0 = x,

    h_{k+1} = h_k + step_size V_k sigma(inner_scale W_k h_k),    k = 0, ..., L - 1.

An autograd graph of such a chain spends its time on nodes, not on arithmetic, and keeps five
tensors a layer. Here the whole chain is one node with a hand-written adjoint.
"""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from resnet_limits.models.activations import ACTIVATIONS, COMPILED, LayerRule
from resnet_limits.models.engines import choose_engine, is_compilable


def chain(
    x: Tensor,
    W: Tensor,
    V: Tensor,
    rule: LayerRule,
    *,
    backend: str = "auto",
) -> Tensor:
    """Return h_L of h_{k+1} = h_k + step_size V_k sigma(inner_scale W_k h_k), h_0 = x.

    Differentiable once with respect to `x`, `W` and `V`.

    Parameters
    ----------
    x
        Input, of shape (n, d) or, with an axis of independent seeds in front, (S, n, d).
    W
        Inner weights, of shape (L, m, d) or (S, L, m, d).
    V
        Outer weights, of shape (L, d, m) or (S, L, d, m).
    rule
        Step size, activation sigma and inner scale.
    backend
        "numba" (on the CPU, float32 or float64), "torch" (everywhere), or "auto": numba where it
        is installed and can do it. Numba compiles at the first use of each type, a quarter of a
        minute, and keeps the result on disk. The same inputs, backend and number of threads
        (`torch.get_num_threads`) give the same bits.

    Returns
    -------
    Tensor
        h_L, of the shape of `x`.

    Raises
    ------
    ValueError
        If shapes, types or devices disagree, or the backend is unknown or cannot do it.
    ModuleNotFoundError
        If numba is asked for and missing.
    """
    check_chain(x, W, V)
    batched = x.dim() == 3
    if not batched:
        x, W, V = x.unsqueeze(0), W.unsqueeze(0), V.unsqueeze(0)
    keep_states = torch.is_grad_enabled() and any(t.requires_grad for t in (x, W, V))
    engine = _new_engine(backend, x, W, rule, keep_states)
    output: Tensor = _Chain.apply(x, W, V, engine)
    return output if batched else output.squeeze(0)


class ChainLoss:
    """Mean squared error of a chain, and its gradients, in buffers made once.

    For training loops: a call computes, for each seed, the mean over samples and coordinates of
    (h_L - y)^2, and overwrites the given gradient tensors with its derivatives.

    Parameters
    ----------
    x, y
        Inputs and targets, of shape (n, d) or (S, n, d). They are not copied.
    W
        Inner weights as in `chain`; only their shape counts.
    rule, backend
        As in `chain`.

    Attributes
    ----------
    engine
        Name of the engine in use: "numba" or "torch".
    loss
        Tensor of shape () or (S,), overwritten by each call.

    Raises
    ------
    ValueError, ModuleNotFoundError
        As `chain`.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        W: Tensor,
        rule: LayerRule,
        *,
        backend: str = "auto",
    ) -> None:
        check_chain(x, W, W.mT)
        if y.shape != x.shape:
            raise ValueError(f"y has shape {tuple(y.shape)}, x has {tuple(x.shape)}")
        self.loss = x.new_empty(x.shape[:-2])
        self._batched = x.dim() == 3
        self._shape = W.shape
        self._x, self._y, W = (self._with_seeds(t.detach()) for t in (x, y, W))
        self._losses = self.loss.view(-1)
        self._residual, self._square = (torch.empty_like(self._x).contiguous() for _ in range(2))
        self._engine = _new_engine(backend, self._x, W, rule, keep_states=True)
        self.engine = self._engine.name

    def _with_seeds(self, tensor: Tensor) -> Tensor:
        return tensor if self._batched else tensor.unsqueeze(0)

    @torch.no_grad()
    def __call__(self, W: Tensor, V: Tensor, W_grad: Tensor, V_grad: Tensor) -> Tensor:
        """Overwrite `W_grad` and `V_grad` with the loss's gradients, and return `self.loss`.

        Gradients have the shapes of their weights, and may be ``W.grad`` and ``V.grad``. Tensors
        that are not contiguous work, at the price of a copy.
        """
        if W.shape != self._shape or W_grad.shape != W.shape:
            raise ValueError(f"W and W_grad must have shape {tuple(self._shape)}")
        if V.shape != W.mT.shape or V_grad.shape != V.shape:
            raise ValueError(f"V and V_grad must have shape {tuple(W.mT.shape)}")
        W, V, W_grad, V_grad = (self._with_seeds(t) for t in (W, V, W_grad, V_grad))
        output = self._engine.forward(self._x, W, V)
        torch.sub(output, self._y, out=self._residual)
        torch.mul(self._residual, self._residual, out=self._square)
        torch.mean(self._square, dim=(-2, -1), out=self._losses)
        self._residual.mul_(2 / prod(self._residual.shape[1:]))
        self._engine.backward(self._residual, W, V, W_grad, V_grad)
        return self.loss


def check_chain(x: Tensor, W: Tensor, V: Tensor) -> None:
    """Raise ValueError unless the shapes, types and devices of a chain agree (see `chain`)."""
    shapes = f"x {tuple(x.shape)}, W {tuple(W.shape)}, V {tuple(V.shape)}"
    if x.dim() not in (2, 3) or W.dim() != x.dim() + 1:
        raise ValueError(f"need x (n, d) and W (L, m, d), or both batched; got {shapes}")
    if W.shape[-1] != x.shape[-1] or V.shape != W.mT.shape or W.shape[:-3] != x.shape[:-2]:
        raise ValueError(f"need x (..., n, d), W (..., L, m, d), V (..., L, d, m); got {shapes}")
    if 0 in x.shape or 0 in W.shape:
        raise ValueError(f"a chain needs samples, layers and features; got {shapes}")
    if not x.dtype == W.dtype == V.dtype or not x.dtype.is_floating_point:
        raise ValueError(f"need one floating type; got {x.dtype}, {W.dtype}, {V.dtype}")
    if not x.device == W.device == V.device:
        raise ValueError(f"need one device; got {x.device}, {W.device}, {V.device}")


class Engine(Protocol):
    """Forward and backward pass of a chain, in buffers that each call overwrites."""

    name: str

    def forward(self, x: Tensor, W: Tensor, V: Tensor) -> Tensor:
        """Return h_L, of shape (S, n, d)."""

    def backward(
        self, adjoint: Tensor, W: Tensor, V: Tensor, W_grad: Tensor, V_grad: Tensor
    ) -> Tensor:
        """Fill in the weights' gradients for the last forward pass, and return that of x.

        `adjoint` is the loss's derivative with respect to h_L.
        """


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, V: Tensor, engine: Engine) -> Tensor:
        ctx.engine = engine
        ctx.save_for_backward(W, V)
        return engine.forward(x, W, V).clone()  # the buffer itself would make a reference cycle

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        W, V = ctx.saved_tensors
        W_grad, V_grad = torch.empty_like(W), torch.empty_like(V)
        x_grad = ctx.engine.backward(adjoint, W, V, W_grad, V_grad)
        return x_grad.clone(), W_grad, V_grad, None


def _new_engine(backend: str, x: Tensor, W: Tensor, rule: LayerRule, keep_states: bool) -> Engine:
    compilable = is_compilable(x) and rule.activation in COMPILED
    needed = f"float32 or float64 on the CPU, not {x.dtype} on {x.device}, and no softplus"
    if choose_engine(backend, compilable, needed) == "torch":
        return TorchEngine(x, W, rule, keep_states)
    # Imported only here: it takes half a second, and numba is optional.
    from resnet_limits.models.compiled.chains import NumbaEngine

    return NumbaEngine(x, W, rule, keep_states)


class TorchEngine:
    """The `Engine` in torch, for every device and type.

    Walking back, only what depends on the next layer is done layer by layer; arguments, slopes and
    weight gradients are computed for `CHUNK` layers at once.
    """

    CHUNK = 32
    name = "torch"

    def __init__(self, x: Tensor, W: Tensor, rule: LayerRule, keep_states: bool) -> None:
        self._step_size = rule.step_size
        self._inner_scale = rule.inner_scale
        self._activation = ACTIVATIONS[rule.activation]
        depth, width = W.shape[1:3]
        chunk = min(self.CHUNK, depth) if keep_states else 0
        wide = (*x.shape[:-1], width)
        self._states = x.new_empty(depth + 1 if keep_states else 2, *x.shape)
        self._argument = x.new_empty(wide)
        self._values, self._slopes, self._inner = (x.new_empty(chunk, *wide) for _ in range(3))
        self._adjoints = x.new_empty(chunk + 1, *x.shape)
        self._product = torch.empty_like(x)

    def forward(self, x: Tensor, W: Tensor, V: Tensor) -> Tensor:
        """Return h_L."""
        states = self._states.unbind(0)
        states[0].copy_(x)
        argument = self._argument
        for k, (w, v) in enumerate(zip(W.mT.unbind(1), V.mT.unbind(1), strict=True)):
            state, out = states[k % len(states)], states[(k + 1) % len(states)]
            torch.baddbmm(argument, state, w, beta=0, alpha=self._inner_scale, out=argument)
            self._activation.value(argument, argument)
            # Not baddbmm, which may round each term of the product to the precision of the state.
            torch.bmm(argument, v, out=self._product)
            torch.add(state, self._product, alpha=self._step_size, out=out)
        return out

    def backward(
        self, adjoint: Tensor, W: Tensor, V: Tensor, W_grad: Tensor, V_grad: Tensor
    ) -> Tensor:
        """Fill in the weights' gradients and return that of x."""
        depth = W.shape[1]
        for first in reversed(range(0, depth, self.CHUNK)):
            layers = slice(first, min(first + self.CHUNK, depth))
            adjoint = self._backward_chunk(
                adjoint,
                self._states[layers],
                *(weights[:, layers] for weights in (W, V, W_grad, V_grad)),
            )
        return adjoint

    def _backward_chunk(
        self, adjoint: Tensor, states: Tensor, W: Tensor, V: Tensor, W_grad: Tensor, V_grad: Tensor
    ) -> Tensor:
        depth = len(states)
        values, slopes, inner = (
            buffer[:depth] for buffer in (self._values, self._slopes, self._inner)
        )
        torch.matmul(states, W.mT.transpose(0, 1), out=inner).mul_(self._inner_scale)
        self._activation.slope(inner, slopes)
        slopes.mul_(self._step_size)
        self._activation.value(inner, values)
        adjoints = self._adjoints[: depth + 1]
        adjoints[depth].copy_(adjoint)
        per_layer = zip(
            adjoints[1:].unbind(0),
            inner.unbind(0),
            slopes.unbind(0),
            W.unbind(1),
            V.unbind(1),
            adjoints[:-1].unbind(0),
            strict=True,
        )
        for above, product, slope, w, v, below in reversed(list(per_layer)):
            torch.bmm(above, v, out=product).mul_(slope)
            torch.bmm(product, w, out=self._product)
            torch.add(above, self._product, alpha=self._inner_scale, out=below)
        gradient = adjoints[1:].mT @ values
        torch.mul(gradient.transpose(0, 1), self._step_size, out=V_grad)
        gradient = inner.mT @ states
        torch.mul(gradient.transpose(0, 1), self._inner_scale, out=W_grad)
        return adjoints[0]
