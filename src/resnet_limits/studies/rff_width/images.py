"""The paper's image experiments: what ``fit`` is told to train and measure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
from torch import Tensor, nn

from resnet_limits.classification import Classification
from resnet_limits.data.images import Images
from resnet_limits.models.rkhs_networks import BlockNetwork, FlowNetwork
from resnet_limits.random import generator
from resnet_limits.train import Context


def mnist(settings: SimpleNamespace, context: Context) -> FlowClassification:
    """Return a flow between fixed maps, which are pretrained first (Figures 1 and 2)."""
    return FlowClassification(settings, context)


def cifar(settings: SimpleNamespace, context: Context) -> Classification:
    """Return a network like ResNet-18 with residuals of the model (Figure 3)."""

    def build(images: Images, _size: int) -> nn.Module:
        return BlockNetwork(
            settings.model,
            images.train.images.shape[-1],
            settings.width,
            settings.layers,
            len(images.classes),
            generator(settings.seed, "weights"),
        )

    return Classification(settings, context, build)


class FlowClassification(Classification):
    """Trains the maps A and B alone for some epochs, then the flow between them alone.

    Which it is depends on the number of the step, so a resumed run goes on where it was. Epochs
    are counted from the flow's first: those of pretraining are 1 - ``pretraining`` to 0.

    Parameters
    ----------
    settings
        Those of `Classification`, besides ``model``, ``layers``, ``channels``, ``pretraining``
        (epochs) and ``pretraining_rate`` (learning rate).
    context
        Device and data root.
    """

    network: FlowNetwork

    def __init__(self, settings: SimpleNamespace, context: Context) -> None:
        before = settings.pretraining
        schedule = settings.schedule
        milestones = [before + epoch for epoch in schedule["milestones"]]
        whole = {
            "epochs": before + settings.epochs,
            "schedule": {**schedule, "milestones": milestones},
        }

        def build(images: Images, _size: int) -> nn.Module:
            return FlowNetwork(
                settings.model,
                images.train.images.shape[-1],
                settings.channels,
                settings.layers,
                len(images.classes),
                generator(settings.seed, "weights"),
            )

        super().__init__(SimpleNamespace(**vars(settings) | whole), context, build)
        self._set_phase()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the flow, and the maps with the learning rate of pretraining.

        The optimizer passes over what has no gradient, which at any time is one of the two.
        """
        maps = {"params": self.network.maps, "lr": self.settings.pretraining_rate}
        return [{"params": list(self.network.flow.parameters())}, maps]

    def step(self) -> Tensor:
        """Compute the next mini-batch's loss and the gradients of what the phase trains."""
        self._set_phase()
        return super().step()

    def measure(self) -> pd.DataFrame:
        """Measure as any classification does, with epochs counted from the flow's first."""
        frame = super().measure()
        frame["epoch"] -= self.settings.pretraining
        return frame

    def _set_phase(self) -> None:
        steps = self.settings.pretraining * self.steps_per_epoch
        self.network.set_pretraining(int(self.taken) < steps)
