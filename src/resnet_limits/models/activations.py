"""Activations of dense chains, their derivatives, and the rule that puts them into layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, clamp_min, gt, mul, ops, tanh


class Activation(NamedTuple):
    """An elementwise function and its derivative.

    Both take ``(argument, out)``, tensors of one shape, and fill ``out``; ``value`` may work in
    place (``out is argument``), ``slope`` may not.
    """

    value: Callable[[Tensor, Tensor], object]
    slope: Callable[[Tensor, Tensor], object]


def _gelu(argument: Tensor, out: Tensor, approximate: str) -> None:
    ops.aten.gelu.out(argument, approximate=approximate, out=out)


def _gelu_slope(argument: Tensor, out: Tensor, approximate: str) -> None:
    ones = out.fill_(1)
    ops.aten.gelu_backward.grad_input(ones, argument, approximate=approximate, grad_input=out)


def _tanh_slope(argument: Tensor, out: Tensor) -> None:
    tanh(argument, out=out).square_().neg_().add_(1)


def _softplus(argument: Tensor, out: Tensor, beta: float) -> None:
    # Beyond the threshold it is the identity up to rounding, in float64 too.
    ops.aten.softplus.out(argument, beta=beta, threshold=40, out=out)


def _softplus_slope(argument: Tensor, out: Tensor, beta: float) -> None:
    mul(argument, beta, out=out).sigmoid_()


ACTIVATIONS = {
    "gelu": Activation(
        partial(_gelu, approximate="none"), partial(_gelu_slope, approximate="none")
    ),
    "gelu_tanh": Activation(
        partial(_gelu, approximate="tanh"), partial(_gelu_slope, approximate="tanh")
    ),
    "tanh": Activation(lambda argument, out: tanh(argument, out=out), _tanh_slope),
    "relu": Activation(
        lambda argument, out: clamp_min(argument, 0, out=out),
        lambda argument, out: gt(argument, 0, out=out),
    ),
    "identity": Activation(lambda argument, out: out.copy_(argument), lambda _, out: out.fill_(1)),
}

COMPILED = tuple(ACTIVATIONS)  # those that numba has

# log(1 + exp(beta x)) / beta: ReLU as beta grows.
ACTIVATIONS |= {
    f"softplus{beta}": Activation(
        partial(_softplus, beta=beta), partial(_softplus_slope, beta=beta)
    )
    for beta in (1, 16, 32, 64, 128, 256, 512, 1024)
}


@dataclass(frozen=True)
class LayerRule:
    """What a layer h + step_size V sigma(inner_scale W h) of a dense chain does with its weights.

    Parameters
    ----------
    step_size
        The factor of the residual, such as 1 / L.
    activation
        Sigma, one of `ACTIVATIONS`: "gelu" (by the error function), "gelu_tanh", "tanh", "relu",
        "identity", or "softplus" with its beta, such as "softplus16" (in torch only).
    inner_scale
        The factor of the activation's argument.

    Raises
    ------
    ValueError
        If the activation is unknown.
    """

    step_size: float
    activation: str = "gelu"
    inner_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"unknown activation {self.activation!r}; known: {known}")
