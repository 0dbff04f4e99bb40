"""Dense chains as a naive autograd loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_limits.models.activations import LayerRule

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda z: z,
}
ACTIVATIONS |= {
    f"softplus{beta}": partial(F.softplus, beta=beta, threshold=40)
    for beta in (1, 16, 32, 64, 128, 256, 512, 1024)
}


def chain(x: Tensor, W: Tensor, V: Tensor, rule: LayerRule) -> Tensor:
    """Return h_L for shapes as in `resnet_limits.models.chains.chain`."""
    sigma = ACTIVATIONS[rule.activation]
    h = x
    for w, v in zip(W.unbind(-3), V.unbind(-3), strict=True):
        argument = h @ w.mT
        if rule.inner_scale != 1:  # benchmarks should not pay for a factor of 1
            argument = rule.inner_scale * argument
        h = h + rule.step_size * (sigma(argument) @ v.mT)
    return h


def gradients(
    model: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, y: Tensor, W: Tensor, V: Tensor
) -> list[Tensor]:
    """Return each seed's mean squared error, and its gradients with respect to x, W and V."""
    leaves = [t.detach().requires_grad_() for t in (x, W, V)]
    loss = (model(*leaves) - y).square().mean(dim=(-2, -1))
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def losses(
    x: Tensor, y: Tensor, W: Tensor, V: Tensor, rule: LayerRule, learning_rate: float, steps: int
) -> list[float]:
    """Return the losses before each step of gradient descent and after the last."""
    found = []
    for _ in range(steps + 1):
        loss, _, W_grad, V_grad = gradients(partial(chain, rule=rule), x, y, W, V)
        found.append(loss.item())
        W = W - learning_rate * len(W) * W_grad
        V = V - learning_rate * len(V) * V_grad
    return found
