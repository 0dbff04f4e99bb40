"""A convolutional residual network of very many layers, of one width throughout.

The model is that of Marion, Wu, Sander and Biau (ICLR 2024), Section 5.2: behind a 5x5 convolution
of stride 3, batch norm and ReLU follow residual layers

    h_{k+1} = h_k + (1/L) bn2(conv2(sigma(bn1(conv1(h_k))))),    k = 0, ..., L - 1,

then average pooling by 4 and a linear layer. The parameters of all layers are one tensor of each
kind, whose first axis is the layer's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_limits.models.engines import BACKENDS, choose_engine, is_compilable
from resnet_limits.models.smoothness import interpolate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "relu": F.relu,
}
INITS = ("weight_tied", "iid", "gaussian_process")
FILTER_SIZE = 3  # pixels a side
CHANNEL_MULTIPLE = 16  # numba needs channels in whole vectors of float32
MOMENTUM = 0.1  # of batch norm's running statistics, as torch has it


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
        How the layers' convolutions relate at the start: one of `INITS`, see `initial_filters`.
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
        If a name is unknown or the images are too small to be pooled; by the forward pass, if numba
        is asked for what it cannot do.
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
            filters = initial_filters(depth, channels, init, length_scale, generator)
            # Flat, since torch cannot bring modules with tensors of five axes to channels_last.
            self.register_parameter(name, nn.Parameter(filters.flatten(2)))
        for name, start in (("bn1", 1.0), ("bn2", 0.0)):
            self.register_parameter(f"{name}_weight", _filled(depth, channels, start))
            self.register_parameter(f"{name}_bias", _filled(depth, channels, 0.0))
            self.register_buffer(f"{name}_mean", torch.zeros(depth, channels))
            self.register_buffer(f"{name}_var", torch.ones(depth, channels))
        self._spare: dict[tuple[Any, ...], list[list[Tensor]]] = {}  # buffers of compiled layers
        self._engine: str | None = None

    @property
    def engine(self) -> str:
        """Engine of the last forward pass, "numba" or "torch"; before the first, of the next."""
        return self._engine or self._choose_engine()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, classes)``."""
        self._engine = self._choose_engine()
        h = F.relu(self.stem_norm(self.stem(images)))
        h = self._compiled(h) if self._engine == "numba" else self._loop(h)
        logits: Tensor = self.head(F.avg_pool2d(h, 4).flatten(1))
        return logits

    def _choose_engine(self) -> str:
        weight = self.stem.weight
        able = is_compilable(weight) and len(weight) % CHANNEL_MULTIPLE == 0
        return choose_engine(
            self.backend,
            able and not torch.is_autocast_enabled("cpu"),
            f"float32 or float64 on the CPU, no autocast and channels in {CHANNEL_MULTIPLE}s",
        )

    def filters(self) -> dict[str, Tensor]:
        """Return views of ``conv1`` and ``conv2``, each ``(L, out, in, 3, 3)``."""
        return {
            name: getattr(self, name).unflatten(2, (-1, FILTER_SIZE, FILTER_SIZE))
            for name in ("conv1", "conv2")
        }

    @torch.no_grad()
    def deepened(self, factor: int) -> DeepConvolution:
        """Return a network of ``factor`` times as many layers, without any training.

        Parameters and running statistics of its layers are interpolated in depth, and each layer's
        step is ``factor`` times smaller; the rest is the same.
        """
        self._spare.clear()  # not worth copying
        deeper = copy.deepcopy(self)
        deeper.depth = factor * self.depth
        for name in ("conv1", "conv2", "bn1_weight", "bn1_bias", "bn2_weight", "bn2_bias"):
            setattr(deeper, name, nn.Parameter(interpolate(getattr(self, name), factor)))
        for name in ("bn1_mean", "bn1_var", "bn2_mean", "bn2_var"):
            setattr(deeper, name, interpolate(getattr(self, name), factor))
        return deeper

    def _loop(self, h: Tensor) -> Tensor:
        """Apply the layers one by one; bn2's parameters carry the factor 1/L."""
        sigma, training = ACTIVATIONS[self.activation], self.training
        conv1, conv2 = self.filters().values()
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

    def _compiled(self, h: Tensor) -> Tensor:
        from resnet_limits.models.compiled import deep_convolution as compiled  # numba is optional

        parameters = (self.bn1_weight, self.bn1_bias, self.bn2_weight, self.bn2_bias)
        weights = (*self.filters().values(), *parameters)
        running = (self.bn1_mean, self.bn1_var, self.bn2_mean, self.bn2_var)
        if not self.training:
            return compiled.evaluate(h, weights, running, self.activation)
        output, *moments = compiled.train(h, weights, self.activation, self._spare)
        count = h.numel() // h.shape[1]
        factors = (1, count / (count - 1)) * 2  # torch, too, averages unbiased variances
        with torch.no_grad():
            for average, moment, factor in zip(running, moments, factors, strict=True):
                average.lerp_(factor * moment, MOMENTUM)
        return output


def default_init(module: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Draw a module's parameters from torch's default law, uniform up to 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(module.weight[0].numel())
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


def initial_filters(
    depth: int, channels: int, init: str, length_scale: float, generator: torch.Generator
) -> Tensor:
    """Draw 3x3 filters ``(depth, channels, channels, 3, 3)`` of variance 1/(3 fan_in).

    ``weight_tied`` copies the first layer's to every layer, ``iid`` draws every layer's, and under
    ``gaussian_process`` each entry is a Gaussian process in depth, independent of the others, with
    covariance exp(-(s - s')^2 / (2 length_scale^2)) between depths s = k / depth (Section 4.3).
    """
    independent = 1 if init == "weight_tied" else depth
    shape = (independent, channels, channels, FILTER_SIZE, FILTER_SIZE)
    filters = torch.randn(shape, generator=generator, dtype=torch.float64)
    if init == "gaussian_process":
        filters = torch.tensordot(squared_exponential_root(depth, length_scale), filters, 1)
    fan_in = channels * FILTER_SIZE**2
    return (filters / math.sqrt(3 * fan_in)).expand(depth, *shape[1:]).float().contiguous()


def squared_exponential_root(depth: int, length_scale: float) -> Tensor:
    """Return the symmetric root, in float64, of the covariance of depths k / depth."""
    s = torch.arange(depth, dtype=torch.float64) / depth
    covariance = torch.exp(-((s[:, None] - s) ** 2) / (2 * length_scale**2))
    # Not Cholesky's: a smooth covariance is singular to rounding.
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    return root


def _filled(depth: int, channels: int, value: float) -> nn.Parameter:
    return nn.Parameter(torch.full((depth, channels), value))
