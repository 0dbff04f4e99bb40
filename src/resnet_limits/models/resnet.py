"""Convolutional ResNets with pre-activation: vanilla, or with trained, sorted time steps.

Lu, Ma, Lu, Lu and Ying (ICML 2020) give each residual block a scalar tau beside its weights and run
the blocks in the order of tau (Eq. 15, Algorithm 1). For n blocks whose times start equally spaced
on [0, T],

    X^{l+1} = X^l + (n / T) (tau^l - tau^{l-1}) F(X^l; theta^l),    tau^0 = 0,

so that every step is 1 at the start, as in the usual network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_limits.errors import require_known

METHODS = ("vanilla", "steps", "sorted_tau")

Layer = TypeVar("Layer", bound=nn.Module)


class Architecture(NamedTuple):
    """The shape of a network; stages two and three halve the image.

    Attributes
    ----------
    blocks
        Number of residual blocks in each of the three stages.
    stem
        Channels after the first convolution.
    inner, outputs
        Channels inside and between the blocks of each stage.
    kernels
        Kernel sizes of a block's convolutions.
    strided
        Index of the convolution that is strided where the image is halved.
    cardinality
        Groups of a block's last convolution but one.
    project
        The shortcut where shapes change: a 1x1 convolution of the block's first activations, or
        (option A of He et al.) every second pixel and channels of zeros.
    """

    blocks: int
    stem: int
    inner: tuple[int, int, int]
    outputs: tuple[int, int, int]
    kernels: tuple[int, ...]
    strided: int
    cardinality: int = 1
    project: bool = False


def _basic(depth: int) -> Architecture:
    widths = (16, 32, 64)
    return Architecture((depth - 2) // 6, 16, widths, widths, (3, 3), strided=0)


def _resnext(cardinality: int) -> Architecture:
    inner = (64 * cardinality, 128 * cardinality, 256 * cardinality)
    return Architecture(3, 64, inner, (256, 512, 1024), (1, 3, 1), 1, cardinality, project=True)


NAMES: dict[str, Architecture] = {
    **{f"resnet{depth}": _basic(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet164": Architecture(18, 16, (16, 32, 64), (64, 128, 256), (1, 3, 1), strided=0),
    **{f"resnext29_{cardinality}x64d": _resnext(cardinality) for cardinality in (8, 16)},
}


def network(
    name: str,
    channels: int,
    classes: int,
    method: str,
    generator: torch.Generator,
    time_scale: float = 1.0,
) -> ResNet:
    """Return a network of `NAMES` with freshly drawn weights.

    All methods draw the same numbers, and compute the same until tau is trained; ``steps`` and
    ``sorted_tau`` also do after that, until two blocks change places.

    Parameters
    ----------
    name
        The ``resnet``s are those of He et al. (2016) for CIFAR: 6n + 2 layers in basic blocks, or
        for ``resnet164`` bottlenecks; shortcuts of option A (assumed; the code of He et al. (2016)
        projects). ``resnext29_8x64d`` and ``resnext29_16x64d`` are those of Xie et al. (2017) with
        pre-activation; their projections see the activations and have no batch norm of their own
        (assumed, as in the code of He et al.).
    channels, classes
        Numbers of image channels and of classes.
    method
        One of `METHODS`.
    generator
        Source of the weights.
    time_scale
        As in `ResNet`.

    Raises
    ------
    UserError
        If the network or the method is unknown.
    """
    require_known(name, NAMES, "network")
    require_known(method, METHODS, "method")
    model = ResNet(NAMES[name], channels, classes, method, time_scale)
    initialize(model, generator)
    return model


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights, those of convolutions as in He et al. (2015).

    Convolutions get variance 2 / (outputs x kernel area), as in the code of He et al. (2016) and
    of Xie et al.; the classifier is uniform on +-1 / sqrt(inputs), its bias zero (assumed).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.bias)


class Timed(NamedTuple):
    """A block's index in its stage, and its step (None: 1, and not trained)."""

    block: int
    step: Tensor | None


class ResNet(nn.Module):
    """A stem, three stages of residual blocks, batch norm, average pooling and a linear classifier.

    Blocks of one shape make a group, in which Eq. 15 holds: a stage is one group, unless its first
    block changes the shape. No other block fits there, so that one stays first and is a group of
    its own, whose step is its own tau over T; the rest of the stage begins anew at tau^0 = 0, and
    its steps add up to n / T times its largest tau.

    States, batch norm's statistics, pooling and logits have the images' type. Under autocast only
    the blocks' branches are in lower precision: what convolutions read, and what they return.

    Parameters
    ----------
    architecture
        The shape.
    channels, classes
        Numbers of image channels and of classes.
    method
        ``vanilla``: every step is 1. ``steps``: tau is trained, and blocks keep the order of their
        indices, so that steps may become negative. ``sorted_tau``: blocks run in the order of tau,
        ties in the order of their indices.
    time_scale
        T, at which every group's time ends at first. Gradient descent on tau moves steps
        (n / T)^2 times as fast as descent on the steps themselves would.

    Attributes
    ----------
    tau
        Each stage's times, by index of the block; empty unless trained.
    order
        Each stage's blocks in the order in which they were last run.
    """

    _rate: Tensor
    _follows: Tensor
    _stays: Tensor

    def __init__(
        self,
        architecture: Architecture,
        channels: int,
        classes: int,
        method: str = "vanilla",
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.stem = _convolution(channels, architecture.stem, 3)
        stages = [_blocks(architecture, stage) for stage in range(3)]
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.norm = nn.BatchNorm2d(architecture.outputs[-1])
        self.classifier = _undrawn(nn.Linear, architecture.outputs[-1], classes)
        self.order = [list(range(len(blocks))) for blocks in stages]
        self._vanilla = [[Timed(index, None) for index in range(len(blocks))] for blocks in stages]
        self._sorts = method == "sorted_tau"
        sizes, ranks = _groups(stages)
        self.register_buffer("_rate", sizes / time_scale, persistent=False)
        self.register_buffer("_follows", (ranks > 1).double(), persistent=False)
        self.register_buffer("_stays", _first_stays(stages), persistent=False)
        tau = ranks / self._rate
        self.tau = nn.ParameterList([] if method == "vanilla" else list(tau.clone()))

    @property
    def undecayed(self) -> list[str]:
        """Names of the parameters exempt from weight decay: tau."""
        return [name for name, _ in self.named_parameters() if name.startswith("tau.")]

    def steps(self) -> list[list[Timed]]:
        """Return each stage's blocks and steps in the order of execution.

        Steps are differentiable with respect to tau.
        """
        if not self.tau:
            return self._vanilla
        tau = torch.stack(list(self.tau))
        if self._sorts:
            order = tau.detach().masked_fill(self._stays, -math.inf).argsort(dim=1, stable=True)
            tau = tau.gather(1, order)
            # Python must know the order to run the blocks: the only synchronization with a GPU.
            self.order = order.tolist()
        steps = self._rate * (tau - self._follows * tau.roll(1, 1))
        return [
            [Timed(*pair) for pair in zip(indices, row.unbind(), strict=True)]
            for indices, row in zip(self.order, steps.unbind(), strict=True)
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` of images ``(B, channels, size, size)``."""
        x = self.stem(images).to(images.dtype)
        for blocks, schedule in zip(self.stages, self.steps(), strict=True):
            x = _run(list(blocks.children()), schedule, x)
        with torch.autocast(x.device.type, enabled=False):
            x = F.relu(self.norm(x), inplace=True)
            logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _run(blocks: Sequence[nn.Module], schedule: Sequence[Timed], x: Tensor) -> Tensor:
    for index, step in schedule:
        x = blocks[index](x, step)
    return x


class Block(nn.Module):
    """X -> shortcut(X) + step F(X), where F repeats batch norm, ReLU, convolution.

    Parameters
    ----------
    widths
        Channels before, between and after the convolutions.
    kernels, strides, groups
        Of the convolutions; the last one has stride 1 and one group.
    project
        As in `Architecture`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        groups: Sequence[int],
        project: bool,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])
        shapes = zip(pairwise(widths), kernels, strides, groups, strict=True)
        *inner, self.last = [_convolution(*pair, *rest) for pair, *rest in shapes]
        self.inner = nn.ModuleList(inner)
        self.stride, self.new_channels = max(strides), widths[-1] - widths[0]
        self.changes_shape = self.stride > 1 or self.new_channels > 0
        self.projection = (
            _convolution(widths[0], widths[-1], 1, self.stride)
            if project and self.changes_shape
            else None
        )

    def forward(self, x: Tensor, step: Tensor | None = None) -> Tensor:
        """Return the next state; the step is 1 unless given."""
        first, *others = self.norms
        hidden = F.relu(first(_as_read_by_convolutions(x)), inplace=True)
        shortcut = self._shortcut(x, hidden)
        for convolution, norm in zip(self.inner, others, strict=True):
            hidden = F.relu(norm(convolution(hidden)), inplace=True)
        # F ends with a convolution: scaling its few weights scales F without a pass over F.
        weight = self.last.weight if step is None else step * self.last.weight
        residual = F.conv2d(hidden, weight, padding=self.last.kernel_size[0] // 2)
        # A sum of two types would convert first as well, but slower.
        return residual.to(x.dtype).add_(shortcut)

    def _shortcut(self, x: Tensor, activations: Tensor) -> Tensor:
        if self.projection is not None:
            projected: Tensor = self.projection(activations)
            return projected.to(x.dtype)
        if not self.changes_shape:
            return x
        # Pooling of single pixels rather than a slice, whose gradient would lose channels_last.
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, 0, self.new_channels))


def _as_read_by_convolutions(x: Tensor) -> Tensor:
    """Return the state in the type that convolutions compute with under autocast.

    Batch norm of it still sums in float32 or better.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _groups(stages: Sequence[Sequence[Block]]) -> tuple[Tensor, Tensor]:
    """Return for every place in the order of execution its group's size, and its rank in the group.

    Shapes ``(stages, blocks)``, in float64, so that differences such as 3 (2/3 - 1/3) are 1 when
    rounded to float32.
    """
    count = len(stages[0])
    alone = _first_stays(stages)[:, :1].double()
    first = torch.arange(count).double() == 0
    sizes = torch.where(first, count + alone * (1 - count), count - alone)
    ranks = torch.arange(1.0, count + 1).double() - alone * ~first
    return sizes, ranks


def _first_stays(stages: Sequence[Sequence[Block]]) -> Tensor:
    """Return which blocks change the shape, so that they stay first, ``(stages, blocks)``."""
    return torch.tensor([[block.changes_shape for block in blocks] for blocks in stages])


def _blocks(architecture: Architecture, stage: int) -> list[Block]:
    """Return a stage's blocks; the first one changes the shape if any does."""
    before, outputs = (architecture.stem, *architecture.outputs)[stage : stage + 2]
    indices = range(len(architecture.kernels))
    groups = [architecture.cardinality if index == len(indices) - 2 else 1 for index in indices]
    blocks = []
    for block in range(architecture.blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        strides = [stride if index == architecture.strided else 1 for index in indices]
        inner = [architecture.inner[stage]] * (len(indices) - 1)
        widths = [outputs if block else before, *inner, outputs]
        blocks.append(Block(widths, architecture.kernels, strides, groups, architecture.project))
    return blocks


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = kernel // 2
    return _undrawn(nn.Conv2d, inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


def _undrawn(layer: type[Layer], *sizes: int, **options: int) -> Layer:
    """Return a layer whose weights are still to be drawn."""
    made: Layer = nn.utils.skip_init(layer, *sizes, **options)  # type: ignore[no-untyped-call]
    return made
