"""A ResNet by the equations as written: shortcuts are slices, x becomes x + step * F(x)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from resnet_limits.models.resnet import Block, ResNet


def forward(model: ResNet, images: Tensor) -> Tensor:
    """Return logits ``(B, classes)`` of images ``(B, channels, size, size)``."""
    x = model.stem(images)
    for stage, schedule in zip(model.stages, model.steps(), strict=True):
        blocks: list[Any] = list(stage.children())
        for index, step in schedule:
            x = _apply(blocks[index], x, step)
    logits: Tensor = model.classifier(F.relu(model.norm(x)).mean((2, 3)))
    return logits


def _apply(block: Block, x: Tensor, step: Tensor | None) -> Tensor:
    activations = hidden = F.relu(block.norms[0](x))
    for convolution, norm in zip(block.inner, block.norms[1:], strict=True):
        hidden = F.relu(norm(convolution(hidden)))
    residual: Tensor = block.last(hidden)
    shortcut = _shortcut(block, x, activations)
    return shortcut + (residual if step is None else step * residual)


def _shortcut(block: Block, x: Tensor, activations: Tensor) -> Tensor:
    if block.projection is not None:
        projected: Tensor = block.projection(activations)
        return projected
    return F.pad(x[:, :, :: block.stride, :: block.stride], [0] * 5 + [block.new_channels])
