"""A convolutional residual network of very many layers, of one width throughout.

The model is that of Marion, Wu, Sander and Biau (ICLR 2024), Section 5.2: behind a 5x5 convolution
of stride 3, batch norm and ReLU follow residual layers

    h_{k+1} = h_k + (1/L) bn2(conv2(sigma(bn1(conv1(h_k))))),    k = 0, ..., L - 1,

then average pooling by 4 and a linear layer. The parameters of all layers are one tensor of each
kind, whose first axis is the layer's.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "relu": F.relu,
}
BACKENDS = ("auto", "numba", "torch")
INITS = ("weight_tied", "iid", "gaussian_process")
KERNEL = 3
MOMENTUM = 0.1  # of batch norm's running statistics, as torch has it
# Winograd's F(2x2, 3x3): the transform of a kernel in one direction.
WINOGRAD = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))


class DeepConvolution(nn.Module):
    """The network: images ``(batch, image_channels, H, W)`` to logits ``(batch, classes)``.

    Convolutions of the layers have no biases: batch norm would cancel them. They start Gaussian
    with the variance of torch's default, 1/(3 fan_in); the rest starts as torch has it, and bn2's
    weight as 0, so that every layer starts as the identity.

    Parameters
    ----------
    depth
        Number of layers L.
    activation
        Sigma: one of `ACTIVATIONS`.
    init
        How the layers' convolutions relate at the start: one of `INITS`, see `initial_kernels`.
    generator
        Of all numbers drawn.
    length_scale
        Of the Gaussian process, in units of the whole depth; others do not use it.
    size
        Height and width of the images.
    backend
        "numba" (compiled for the CPU, float32 or float64), "torch" (everywhere), or "auto": numba
        where it is installed and can do it. They agree but for rounding.

    Raises
    ------
    ValueError
        If a name is unknown or the images are too small to be pooled.
    """

    conv1: Tensor
    conv2: Tensor
    bn1_weight: Tensor
    bn1_bias: Tensor
    bn1_mean: Tensor
    bn1_var: Tensor
    bn2_weight: Tensor
    bn2_bias: Tensor
    bn2_mean: Tensor
    bn2_var: Tensor

    def __init__(
        self,
        depth: int,
        activation: str,
        init: str,
        generator: torch.Generator,
        *,
        channels: int = 16,
        length_scale: float = 0.25,
        image_channels: int = 3,
        classes: int = 10,
        size: int = 32,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, known in ((activation, ACTIVATIONS), (init, INITS), (backend, BACKENDS)):
            if name not in known:
                raise ValueError(f"unknown name {name!r}; known: {', '.join(known)}")
        pooled = ((size - 3) // 3 + 1) // 4
        if pooled < 1:
            raise ValueError(f"images of {size} pixels are too small: give at least 12")
        self.depth, self.activation, self.backend = depth, activation, backend
        self.stem = nn.Conv2d(image_channels, channels, 5, stride=3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels * pooled**2, classes)
        for module in (self.stem, self.head):
            default_init(module, generator)
        for name in ("conv1", "conv2"):
            kernels = initial_kernels(depth, channels, init, length_scale, generator)
            # Flat, since torch cannot bring modules with tensors of five axes to channels_last.
            self.register_parameter(name, nn.Parameter(kernels.flatten(2)))
        for name, start in (("bn1", 1.0), ("bn2", 0.0)):
            self.register_parameter(f"{name}_weight", _filled(depth, channels, start))
            self.register_parameter(f"{name}_bias", _filled(depth, channels, 0.0))
            self.register_buffer(f"{name}_mean", torch.zeros(depth, channels))
            self.register_buffer(f"{name}_var", torch.ones(depth, channels))
        self._spare: dict[tuple[int, ...], list[list[Tensor]]] = {}  # buffers of compiled layers

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, classes)``."""
        h = F.relu(self.stem_norm(self.stem(images)))
        h = self._compiled(h) if self._is_compiled(h) else self._loop(h)
        return self.head(F.avg_pool2d(h, 4).flatten(1))

    def kernels(self) -> dict[str, Tensor]:
        """Return views of ``conv1`` and ``conv2``, each ``(L, out, in, 3, 3)``."""
        return {
            name: getattr(self, name).unflatten(2, (-1, KERNEL, KERNEL))
            for name in ("conv1", "conv2")
        }

    def _loop(self, h: Tensor) -> Tensor:
        """Apply the layers one by one; bn2's parameters carry the factor 1/L."""
        sigma, training = ACTIVATIONS[self.activation], self.training
        conv1, conv2 = self.kernels().values()
        stacks = (
            *(conv1, self.bn1_weight, self.bn1_bias, self.bn1_mean, self.bn1_var),
            *(conv2, self.bn2_weight / self.depth, self.bn2_bias / self.depth),
            *(self.bn2_mean, self.bn2_var),
        )
        # Not indexed inside the loop, which would make the backward pass quadratic in depth.
        for w1, s1, t1, m1, v1, w2, s2, t2, m2, v2 in zip(
            *(s.unbind() for s in stacks), strict=True
        ):
            inner = F.batch_norm(F.conv2d(h, w1, padding=1), m1, v1, s1, t1, training, MOMENTUM)
            outer = F.conv2d(sigma(inner), w2, padding=1)
            h = h + F.batch_norm(outer, m2, v2, s2, t2, training, MOMENTUM)
        return h

    def _is_compiled(self, h: Tensor) -> bool:
        able = h.device.type == "cpu" and h.dtype in (torch.float32, torch.float64)
        able = able and not torch.is_autocast_enabled("cpu") and h.shape[1] % 16 == 0
        if self.backend == "numba" and not able:
            raise ValueError(
                "numba needs float32 or float64 on the CPU, no autocast, and channels in sixteens"
            )
        return able and self.backend != "torch" and (self.backend == "numba" or _has_numba())

    def _compiled(self, h: Tensor) -> Tensor:
        parameters = (self.bn1_weight, self.bn1_bias, self.bn2_weight, self.bn2_bias)
        running = (self.bn1_mean, self.bn1_var, self.bn2_mean, self.bn2_var)
        kernels = [transform(kernels) for kernels in self.kernels().values()]
        if not self.training:
            moments = tuple(moment.to(h.dtype) for moment in running)
            return _evaluate(h, (*kernels, *parameters), moments, self.activation)
        output, *moments = _Layers.apply(h, *kernels, *parameters, self.activation, self._spare)
        count = h.numel() // h.shape[1]
        factors = (1, count / (count - 1)) * 2  # torch, too, averages unbiased variances
        with torch.no_grad():
            for average, moment, factor in zip(running, moments, factors, strict=True):
                average.lerp_(factor * moment, MOMENTUM)
        return output


def transform(kernels: Tensor) -> Tensor:
    """Return G g G^T of 3x3 kernels ``(L, out, in, 3, 3)``, as ``(L, 4 * 4 * in, out)``."""
    G = torch.tensor(WINOGRAD, dtype=kernels.dtype, device=kernels.device)
    transformed = torch.einsum("pa,qb,loiab->lpqio", G, G, kernels)
    return transformed.reshape(len(kernels), -1, kernels.shape[1]).contiguous()


def _flip(transformed: Tensor) -> Tensor:
    """Return the transform of the flipped and transposed kernels."""
    depth, _, channels = transformed.shape
    places = torch.tensor([3, 1, 2, 0])  # where flipping takes the rows of G
    places = (4 * places[:, None] + places).flatten()
    return transformed.reshape(depth, 16, channels, channels)[:, places].mT.reshape_as(transformed)


class _Layers(torch.autograd.Function):
    """All layers as one node: its output, and the moments of both batch norms."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *weights, activation, spare = arguments
        ctx.save_for_backward(*weights)
        ctx.shape, ctx.activation, ctx.spare = h.shape, activation, spare
        depth, batch = len(weights[0]), spare.setdefault((len(weights[0]), *h.shape), [])
        # Fresh memory costs a tenth of a step; a backward pass leaves its buffers to the next.
        states = batch.pop() if batch else _new_states(h, depth, depth)
        ctx.states = states
        output = _walk(h, weights, states, activation, training=True)
        moments = tuple(moment.clone() for moment in states[3:])
        ctx.mark_non_differentiable(*moments)
        return output, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        from resnet_limits.models import _convolution_kernels as compiled

        if ctx.states is None:
            raise RuntimeError("a second backward pass needs a second forward pass")
        weights, states = ctx.saved_tensors, ctx.states
        gradients = [torch.zeros_like(weight) for weight in weights]
        adjoint = _rows(adjoint).clone()
        compiled.walk_back(
            compiled.Weights(*_arrays(weights)),
            (_flip(weights[0]).numpy(), _flip(weights[1]).numpy()),
            compiled.States(*_arrays(states)),
            compiled.Weights(*_arrays(gradients)),
            adjoint.numpy(),
            (ctx.shape[2], ctx.shape[3]),
            compiled.KINDS[ctx.activation],
        )
        ctx.states = None
        ctx.spare[len(weights[0]), *ctx.shape].append(states)
        return _maps(adjoint, ctx.shape), *gradients, None, None


@torch.no_grad()
def _evaluate(
    h: Tensor, weights: Sequence[Tensor], moments: Sequence[Tensor], activation: str
) -> Tensor:
    states = [*_new_states(h, 1, len(weights[0]))[:3], *moments]
    return _walk(h, weights, states, activation, training=False)


def _walk(
    h: Tensor, weights: Sequence[Tensor], states: Sequence[Tensor], activation: str, training: bool
) -> Tensor:
    from resnet_limits.models import _convolution_kernels as compiled  # numba is optional

    states[0][0] = _rows(h)
    compiled.walk(
        compiled.Weights(*_arrays(weights)),
        compiled.States(*_arrays(states)),
        (h.shape[2], h.shape[3]),
        compiled.KINDS[activation],
        training,
    )
    last = len(weights[0]) % len(states[0])
    return _maps(states[0][last].clone(), h.shape)


def _new_states(h: Tensor, kept: int, depth: int) -> list[Tensor]:
    """Return buffers that keep the states of so many layers, and the moments of all."""
    rows, channels = h.numel() // h.shape[1], h.shape[1]
    states = [h.new_empty(count, rows, channels) for count in (kept + 1, kept, kept)]
    return states + [h.new_empty(depth, channels) for _ in range(4)]


def _rows(h: Tensor) -> Tensor:
    """Return maps ``(batch, channels, H, W)`` as ``(batch H W, channels)``."""
    return h.detach().permute(0, 2, 3, 1).reshape(-1, h.shape[1])


def _maps(rows: Tensor, shape: torch.Size) -> Tensor:
    batch, channels, height, width = shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _arrays(tensors: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


def default_init(module: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Draw a module's parameters from torch's default law, uniform up to 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(module.weight[0].numel())
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


def initial_kernels(
    depth: int, channels: int, init: str, length_scale: float, generator: torch.Generator
) -> Tensor:
    """Draw 3x3 kernels ``(depth, channels, channels, 3, 3)`` of variance 1/(3 fan_in).

    ``weight_tied`` copies the first layer's to every layer, ``iid`` draws every layer's, and under
    ``gaussian_process`` each entry is a Gaussian process in depth, independent of the others, with
    covariance exp(-(s - s')^2 / (2 length_scale^2)) between depths s = k / depth (Section 4.3).
    """
    independent = 1 if init == "weight_tied" else depth
    shape = (independent, channels, channels, KERNEL, KERNEL)
    kernels = torch.randn(shape, generator=generator, dtype=torch.float64)
    if init == "gaussian_process":
        kernels = torch.tensordot(squared_exponential_root(depth, length_scale), kernels, 1)
    fan_in = channels * KERNEL**2
    return (kernels / math.sqrt(3 * fan_in)).expand(depth, *shape[1:]).float().contiguous()


def squared_exponential_root(depth: int, length_scale: float) -> Tensor:
    """Return the symmetric root, in float64, of the covariance of depths k / depth."""
    s = torch.arange(depth, dtype=torch.float64) / depth
    covariance = torch.exp(-((s[:, None] - s) ** 2) / (2 * length_scale**2))
    # Not Cholesky's: a smooth covariance is singular to rounding.
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT


def _filled(depth: int, channels: int, value: float) -> nn.Parameter:
    return nn.Parameter(torch.full((depth, channels), value))
