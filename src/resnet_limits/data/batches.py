"""Mini-batches of images: cropped, flipped and normalized as tensors, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_limits.data.images import Split
from resnet_limits.random import generator


@dataclass(frozen=True)
class Draw:
    """The images of a batch and their augmentation: tensors of shape ``(batch,)``.

    Attributes
    ----------
    rows
        Indices of the images in their set.
    down, right
        Upper left corner of the crop in the padded image, in pixels.
    flipped
        Whether the image is mirrored left to right.
    """

    rows: Tensor
    down: Tensor
    right: Tensor
    flipped: Tensor

    @classmethod
    def epoch(cls, count: int, pad: int, flip: bool, seed: int, epoch: int) -> Draw:
        """Draw an epoch's order, crops and flips; they depend on seed and epoch only."""
        order, source = generator(seed, "order", epoch), generator(seed, "augmentation", epoch)
        side = 2 * pad + 1
        down, right = torch.randint(side, (2, count), generator=source)
        flipped = torch.rand(count, generator=source) < 0.5
        rows = torch.randperm(count, generator=order)
        return cls(rows, down, right, flipped & flip)

    def __getitem__(self, part: slice) -> Draw:
        return Draw(*(tensor[part] for tensor in vars(self).values()))

    def to(self, device: torch.device) -> Draw:
        """Return a copy on a device."""
        return Draw(*(tensor.to(device) for tensor in vars(self).values()))


class Batches:
    """Images held as bytes on a device, padded with zeros, and served in batches.

    Parameters
    ----------
    split
        Images ``(count, height, width, channels)`` as bytes, and labels.
    mean, std
        Per channel, of pixels scaled to [0, 1]; batches are normalized by them.
    size
        Side length in pixels, at least that of the images; smaller images are padded to it.
    pad
        Additional padding on each side, for crops.
    device
        Where images are stored and batches are assembled.
    """

    def __init__(
        self,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        pad: int,
        device: torch.device,
    ) -> None:
        images = torch.as_tensor(split.images)
        count, height, width, channels = images.shape
        side = size + 2 * pad
        top, left = (side - height) // 2, (side - width) // 2
        padded = torch.zeros(count, side, side, channels, dtype=torch.uint8)
        padded[:, top : top + height, left : left + width] = images
        padded = padded.to(device)
        # Every crop of every image as a view; indexing copies only what a batch needs.
        shape = (count, 2 * pad + 1, 2 * pad + 1, size, size, channels)
        n, y, x, c = padded.stride()
        self.crops = padded.as_strided(shape, (n, y, x, y, x, c))
        self.labels = torch.as_tensor(split.labels).to(device)
        self.mean = 255 * torch.tensor(mean, dtype=torch.float32, device=device)
        self.scale = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=device))
        self.pad = pad

    def __len__(self) -> int:
        return len(self.labels)

    def augmented(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return images ``(batch, channels, size, size)``, channels last, and labels.

        The draw must be on the device of the images.
        """
        images = self.crops[draw.rows, draw.down, draw.right]
        images = torch.where(draw.flipped[:, None, None, None], images.flip(2), images)
        return self._normalized(images), self.labels[draw.rows]

    def plain(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return centre crops, not augmented, and labels."""
        return self._normalized(self.crops[rows, self.pad, self.pad]), self.labels[rows]

    def _normalized(self, images: Tensor) -> Tensor:
        return ((images - self.mean) * self.scale).permute(0, 3, 1, 2)
