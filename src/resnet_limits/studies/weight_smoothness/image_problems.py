"""Weight smoothness on images: deep convolutional networks, and how smooth their weights are."""

from __future__ import annotations

import pandas as pd
import torch

from resnet_limits.classification import Classification
from resnet_limits.models.deep_convolution import DeepConvolution
from resnet_limits.models.smoothness import smoothness
from resnet_limits.problem import Context, Probe
from resnet_limits.random import generator
from resnet_limits.studies.weight_smoothness.settings import DeepConvolutionSettings


class DeepConvolutionProblem(Classification):
    """A deep convolutional network whose layers' weights are looked at while it trains."""

    settings: DeepConvolutionSettings
    network: DeepConvolution

    def __init__(self, settings: DeepConvolutionSettings, context: Context) -> None:
        super().__init__(settings, context)
        # Compiled layers are float32.
        self.engine = "torch" if self.precision == "bfloat16" else self.network.engine
        last = settings.last_epoch
        epochs = sorted({0, last, *(epoch for epoch in settings.measured if epoch < last)})
        steps = [self.epoch_ends[epoch] for epoch in epochs]
        self.probes = [
            *self.probes,
            Probe("smoothness", steps, self.measure_smoothness),
            Probe("entries", steps, self.measure_entries),
        ]

    def build_network(self) -> DeepConvolution:
        """Make the network of the settings' depth, activation and start."""
        settings = self.settings
        return DeepConvolution(
            settings.depth,
            settings.activation,
            settings.init,
            generator(settings.seed, "weights"),
            channels=settings.channels,
            length_scale=settings.length_scale,
            image_channels=self.image_channels,
            classes=self.classes,
            size=settings.size,
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
