"""Weight smoothness on images: deep convolutional networks, and how smooth their weights are."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn

from resnet_limits.classification import Classification
from resnet_limits.data.images import Images
from resnet_limits.errors import UserError
from resnet_limits.models.deep_convolution import CHANNEL_MULTIPLE, DeepConvolution
from resnet_limits.models.smoothness import smoothness
from resnet_limits.probes import Probe
from resnet_limits.random import generator
from resnet_limits.train import Context, Problem


class DeepClassification(Classification):
    """A deep convolutional network whose layers' weights are looked at while it trains."""

    network: DeepConvolution

    def __init__(self, settings: SimpleNamespace, context: Context) -> None:
        check(settings)
        super().__init__(settings, context, self._build)
        steps = [
            self.epoch_ends[epoch] for epoch in sorted({0, *settings.measured, settings.epochs})
        ]
        self.probes = [
            *self.probes,
            Probe("smoothness", steps, self.measure_smoothness),
            Probe("entries", steps, self.measure_entries),
        ]

    def _build(self, images: Images, size: int) -> nn.Module:
        settings = self.settings
        return DeepConvolution(
            settings.depth,
            settings.activation,
            settings.init,
            generator(settings.seed, "weights"),
            channels=settings.channels,
            length_scale=settings.length_scale,
            image_channels=images.train.images.shape[-1],
            classes=len(images.classes),
            size=size,
            backend=settings.backend,
        )

    def measure_smoothness(self) -> pd.DataFrame:
        """Measure `smoothness` of each convolution (Table 1, Figure 4)."""
        rows = [
            {"convolution": name, **{key: float(v) for key, v in smoothness(w)._asdict().items()}}
            for name, w in self.network.filters().items()
        ]
        return pd.DataFrame(rows).assign(**self._when())

    def measure_entries(self) -> pd.DataFrame:
        """List some entries of the filters, always the same, over layers (Figure 3)."""
        source = generator(self.settings.seed, "entries")
        frames = []
        for name, filters in self.network.filters().items():
            paths = filters.detach().flatten(1)
            places = torch.randint(paths.shape[1], (self.settings.entries,), generator=source)
            for number, place in enumerate(places.tolist()):
                values = paths[:, place].double().cpu().numpy()
                frame = pd.DataFrame({"layer": range(1, len(values) + 1), "value": values})
                frames.append(frame.assign(convolution=name, entry=number, place=place))
        return pd.concat(frames, ignore_index=True).assign(**self._when())

    def _when(self) -> dict[str, int]:
        return {**self.members[0], "epoch": int(self.taken) // self.steps_per_epoch}


def cifar(settings: SimpleNamespace, context: Context) -> Problem:
    """Build experiment `cifar`."""
    return DeepClassification(settings, context)


def check(settings: SimpleNamespace) -> None:
    """Refuse measurements after the last epoch, and channels that the backend cannot do."""
    if max(settings.measured) > settings.epochs:
        raise UserError(
            f"measured: {max(settings.measured)} is after the last of {settings.epochs} epochs; "
            "leave it out."
        )
    if settings.backend == "numba" and settings.channels % CHANNEL_MULTIPLE:
        raise UserError(
            f"channels: numba needs a multiple of {CHANNEL_MULTIPLE}, not {settings.channels}."
        )
