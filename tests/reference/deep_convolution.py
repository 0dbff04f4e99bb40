"""The deep convolutional network as torch modules, one for each layer."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from resnet_limits.models.deep_convolution import DeepConvolution

ACTIVATIONS = {"identity": nn.Identity, "gelu": nn.GELU, "relu": nn.ReLU}


class Layer(nn.Module):
    """One residual layer; its convolutions have biases, as the authors' do."""

    def __init__(self, depth: int, channels: int, activation: str) -> None:
        super().__init__()
        self.depth = depth
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.sigma = ACTIVATIONS[activation]()

    def forward(self, h: Tensor) -> Tensor:
        """Apply the layer."""
        branch: Tensor = self.bn2(self.conv2(self.sigma(self.bn1(self.conv1(h)))))
        return h + branch / self.depth


def modules(network: DeepConvolution) -> nn.Sequential:
    """Return the network as modules with copies of its parameters; the layers are ``[3:-3]``."""
    channels = network.stem.out_channels
    layers = [Layer(network.depth, channels, network.activation) for _ in range(network.depth)]
    with torch.no_grad():
        for k, layer in enumerate(layers):
            for name, filters in network.filters().items():
                getattr(layer, name).weight.copy_(filters[k])
            for name in ("bn1", "bn2"):
                norm = getattr(layer, name)
                norm.weight.copy_(getattr(network, f"{name}_weight")[k])
                norm.bias.copy_(getattr(network, f"{name}_bias")[k])
    stem, stem_norm, head = (deepcopy(m) for m in (network.stem, network.stem_norm, network.head))
    return nn.Sequential(
        stem, stem_norm, nn.ReLU(), *layers, nn.AvgPool2d(4), nn.Flatten(), head
    ).to(network.stem.weight.dtype)
