"""The image networks of Barboni, Peyre and Vialard (2022), Appendix A, after the authors' code."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_limits.models.convolution_flow import ConvolutionFlow, Interpolation

BLOCKS = 4  # stages of the network on CIFAR, each of half the pixels and twice the channels


class FlowNetwork(nn.Module):
    """A residual flow between two maps A and B that are fixed, perhaps after pretraining.

    A: convolution 4x4 of stride 2, batch norm, ReLU, convolution 4x4 of stride 2, batch norm;
    28 pixels become 13, then 5. B: batch norm, linear.

    Parameters
    ----------
    model, layers, generator
        Of the flow, see `ConvolutionFlow`; the maps are drawn from the generator as well.
    inputs
        Channels of the images.
    channels
        Channels of the flow and of its hidden layer.
    classes
        Number of logits.
    interpolation
        Of the flow.

    Attributes
    ----------
    pretraining
        While it is true, A and B are trained and batch norm uses the batch's statistics; the flow
        is left out, which is the identity as long as W = 0. Afterwards A and B are fixed, with
        running statistics; without any pretraining these are 0 and 1, so batch norm changes
        nothing.
    """

    SIDE = 5

    def __init__(
        self,
        model: str,
        inputs: int,
        channels: int,
        layers: int,
        classes: int,
        generator: torch.Generator,
        interpolation: Interpolation = "linear",
    ) -> None:
        super().__init__()
        self.input_map = nn.Sequential(
            nn.Conv2d(inputs, channels, 4, stride=2),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 4, stride=2),
            nn.BatchNorm2d(channels),
        )
        self.output_map = nn.Sequential(
            nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(self.SIDE**2 * channels, classes)
        )
        initialize(self, generator)
        self.flow = ConvolutionFlow(model, channels, channels, layers, generator, interpolation)
        self.pretraining = False

    @property
    def maps(self) -> list[nn.Parameter]:
        """Parameters of A and B."""
        return [*self.input_map.parameters(), *self.output_map.parameters()]

    def set_pretraining(self, on: bool) -> None:
        """Train A and B alone, or the flow alone."""
        self.pretraining = on
        for parameter in self.maps:
            parameter.requires_grad_(on)

    def train(self, mode: bool = True) -> FlowNetwork:
        """Switch batch norm to the batch's statistics, in pretraining only."""
        super().train(mode and self.pretraining)
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, inputs, 28, 28)`` to logits ``(batch, classes)``."""
        z = self.input_map(images)
        if not (self.training and self.pretraining):
            z = self.flow(z)
        logits: Tensor = self.output_map(z)
        return logits


class BlockNetwork(nn.Module):
    """A network like ResNet-18 whose residuals are those of the model, trained from 0.

    Convolution 3x3, batch norm and ReLU; four stages of 2, 2, ``layers`` and 2 blocks, each of
    half the pixels and twice the channels of the one before, with batch norm after the second;
    mean over pixels; linear.

    Parameters
    ----------
    model
        ``rkhs`` or ``shl``, see `Block`.
    inputs
        Channels of the images.
    width
        Channels of the first stage.
    layers
        Blocks of the third stage.
    classes
        Number of logits.
    generator
        Source of the weights.
    """

    def __init__(
        self,
        model: str,
        inputs: int,
        width: int,
        layers: int,
        classes: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        widths = [width * 2**stage for stage in range(BLOCKS)]
        self.stages = nn.Sequential()
        before = width
        for stage, (count, after) in enumerate(zip((2, 2, layers, 2), widths, strict=True)):
            strides = [1 if stage == 0 else 2] + (count - 1) * [1]
            for stride in strides:
                self.stages.append(Block(model, before, after, stride))
                before = after
            if stage == 1:
                self.stages.append(nn.BatchNorm2d(after))
        self.linear = nn.Linear(before, classes)
        initialize(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, inputs, size, size)`` to logits ``(batch, classes)``."""
        logits: Tensor = self.linear(self.stages(self.stem(images)).mean((2, 3)))
        return logits


class Block(nn.Module):
    """One residual step z + W * relu(U * z), with W = 0 at the start.

    In ``rkhs`` U is random and fixed; in ``shl`` it is trained. A block that changes the shape
    has a convolution 1x1 and batch norm in place of z.
    """

    def __init__(self, model: str, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.inner.weight.requires_grad_(model == "shl")
        self.outer = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, z: Tensor) -> Tensor:
        """Take the step; the sum is in float32, also under autocast."""
        moved: Tensor = self.shortcut(z).float() + self.outer(F.relu(self.inner(z)))
        return moved


@torch.no_grad()
def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights from a generator.

    Convolutions, linear maps and their biases are uniform with bound 1 / sqrt(inputs of a unit),
    which is torch's default; the fixed U of a block is Gaussian of variance 1 / inputs, and W 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    for module in network.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.outer.weight)
            weight = module.inner.weight
            if not weight.requires_grad:
                deviation = 1 / math.sqrt(weight[0].numel())
                nn.init.normal_(weight, 0, deviation, generator=generator)
