"""The paper's image experiments: what is trained and measured."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from resnet_limits.classification import Classification
from resnet_limits.data.batches import Batches
from resnet_limits.data.images import Split
from resnet_limits.models.rkhs_networks import BlockNetwork, FlowNetwork
from resnet_limits.problem import Context
from resnet_limits.random import generator
from resnet_limits.studies.rff_width.settings import (
    BlockNetworkSettings,
    FlowSettings,
    ImageSettings,
)


class ImageProblem(Classification):
    """Classification with the settings' own normalization of the pixels."""

    settings: ImageSettings

    def _batches(self, split: Split, pad: int) -> Batches:
        settings = self.settings
        mean, std = settings.normalization.mean, settings.normalization.std
        return Batches(split, mean, std, settings.size, pad, self.device)


class BlockNetworkProblem(ImageProblem):
    """A network like ResNet-18 with residuals of the model (Figure 3)."""

    settings: BlockNetworkSettings

    def build_network(self) -> BlockNetwork:
        """Make the network of the settings' model, width and layers."""
        settings = self.settings
        return BlockNetwork(
            settings.model,
            self.image_channels,
            settings.width,
            settings.layers,
            self.classes,
            generator(settings.seed, "weights"),
        )


class FlowProblem(ImageProblem):
    """Trains the maps A and B alone for some epochs, then the flow between them alone.

    Which it is depends on the number of the step, so a resumed run goes on where it was. Epochs
    are counted from the flow's first: those of pretraining are 1 - ``pretraining`` to 0
    (Figures 1 and 2).
    """

    settings: FlowSettings
    network: FlowNetwork

    def __init__(self, settings: FlowSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._set_phase()

    def build_network(self) -> FlowNetwork:
        """Make the flow of the settings' model, channels and layers, and its maps."""
        settings = self.settings
        return FlowNetwork(
            settings.model,
            self.image_channels,
            settings.channels,
            settings.layers,
            self.classes,
            generator(settings.seed, "weights"),
            settings.interpolation,
        )

    @property
    def warm_up(self) -> int:
        """Epochs of pretraining."""
        return self.settings.pretraining

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the flow, and the maps with the learning rate of pretraining.

        The optimizer passes over what has no gradient, which at any time is one of the two.
        """
        maps = {"params": self.network.maps, "lr": self.settings.pretraining_rate}
        return [{"params": list(self.network.flow.parameters())}, maps]

    def loss_and_grad(self) -> Tensor:
        """Compute the next mini-batch's loss and the gradients of what the phase trains."""
        self._set_phase()
        return super().loss_and_grad()

    def _set_phase(self) -> None:
        steps = self.settings.pretraining * self.steps_per_epoch
        self.network.set_pretraining(int(self.taken) < steps)
