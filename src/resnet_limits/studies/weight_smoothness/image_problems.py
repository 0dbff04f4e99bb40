"""Weight smoothness on images: deep convolutional networks, and how smooth their weights are."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from resnet_limits.classification import Classification
from resnet_limits.models.deep_convolution import DeepConvolution
from resnet_limits.models.smoothness import smoothness, without
from resnet_limits.problem import Context, Probe
from resnet_limits.random import generator
from resnet_limits.studies.weight_smoothness.settings import DeepConvolutionSettings

DEEPER = (2, 4)  # times as many layers
EVALUATION_BATCH = 500


class DeepConvolutionProblem(Classification):
    """A deep convolutional network whose layers' weights are looked at while it trains."""

    settings: DeepConvolutionSettings
    network: DeepConvolution

    def __init__(self, settings: DeepConvolutionSettings, context: Context) -> None:
        super().__init__(settings, context)
        # Compiled layers are float32.
        self.engine = "torch" if self.precision == "bfloat16" else self.network.engine
        # Drawn anew by a resumed run, so no checkpoint needs it.
        self.start = {k: w.detach().clone() for k, w in self.network.filters().items()}
        early = [e for e in sorted({0, *settings.measured}) if e < len(self.epoch_ends)]
        steps = sorted({self.steps, *(self.epoch_ends[epoch] for epoch in early)})
        self.probes = [
            *self.probes,
            Probe("smoothness", steps, self.measure_smoothness),
            Probe("entries", steps, self.measure_entries),
        ]
        if settings.transfer_images:
            self.probes.append(Probe("transfer", [self.steps], self.measure_transfer))

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
        """Measure `smoothness` of each convolution (Table 1, Figure 4).

        ``path`` tells of what: the ``weights``, their ``update`` since the start, or the part of
        them that is ``new``, orthogonal to the start, which weight decay does not leave.
        """
        rows = []
        for name, weights in self.network.filters().items():
            start = self.start[name]
            paths = {
                "weights": weights,
                "update": weights - start,
                "new": without(weights, start),
            }
            for path, values in paths.items():
                measures = smoothness(values)._asdict().items()
                found = {key: float(value) for key, value in measures}
                rows.append({"convolution": name, "path": path, **found})
        return pd.DataFrame(rows).assign(**self._when())

    @torch.no_grad()
    def measure_transfer(self) -> pd.DataFrame:
        """Compare with networks of more layers, whose weights are interpolated (`deepened`).

        ``change`` is the relative change of the logits, in the Frobenius norm over test images;
        accuracies are in % of these images.
        """
        own, labels = self._test_logits(self.network)
        rows = []
        for factor in DEEPER:
            deeper, _ = self._test_logits(self.network.deepened(factor))
            rows.append(
                {
                    "factor": factor,
                    "change": float((deeper - own).norm() / own.norm()),
                    "accuracy": _accuracy(own, labels),
                    "deeper_accuracy": _accuracy(deeper, labels),
                }
            )
        return pd.DataFrame(rows).assign(**self._when())

    def _test_logits(self, network: DeepConvolution) -> tuple[Tensor, Tensor]:
        """Return logits and labels of the first test images."""
        network.eval()
        count = min(self.settings.transfer_images, len(self.test_batches))
        logits, labels = [], []
        for first in range(0, count, EVALUATION_BATCH):
            x, y = self.test_batches.plain(slice(first, min(first + EVALUATION_BATCH, count)))
            logits.append(network(x).double())
            labels.append(y)
        return torch.cat(logits), torch.cat(labels)

    def measure_entries(self) -> pd.DataFrame:
        """List some entries of the filters, always the same, over layers (Figure 3)."""
        settings = self.settings
        found = list_entries(self.network.filters(), settings.entries, settings.seed)
        return found.assign(**self._when())

    def _when(self) -> dict[str, int]:
        return {**self.members[0], "epoch": int(self.taken) // self.steps_per_epoch}


def list_entries(filters: Mapping[str, Tensor], count: int, seed: int) -> pd.DataFrame:
    """List random entries of filters ``(L, out, in, 3, 3)`` over layers, drawn from a seed.

    Parameters
    ----------
    filters
        By the convolution's name.
    count
        Number of entries of each convolution.
    seed
        Of the choice of entries.
    """
    source = generator(seed, "entries")
    frames = []
    for name, weights in filters.items():
        paths = weights.detach().flatten(1)
        indices = torch.randint(paths.shape[1], (count,), generator=source)
        for number, index in enumerate(indices.tolist()):
            values = paths[:, index].double().cpu().numpy()
            frame = pd.DataFrame({"layer": range(1, len(values) + 1), "value": values})
            frames.append(frame.assign(convolution=name, entry=number, index=index))
    return pd.concat(frames, ignore_index=True)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float(100 * (logits.argmax(1) == labels).double().mean())
