"""Sorted tau, Section 5: ResNets trained as usual, with steps, and by Algorithm 1; the cost."""

from __future__ import annotations

import time

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_limits.classification import Classification, choose_precision
from resnet_limits.models.resnet import METHODS, ResNet, network
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.random import generator
from resnet_limits.studies.sorted_tau.settings import CostSettings, ResNetSettings


class ResNetProblem(Classification):
    """One network, one method, one seed, whose weights and batches are those of all methods."""

    settings: ResNetSettings
    network: ResNet

    def __init__(self, settings: ResNetSettings, context: Context) -> None:
        super().__init__(settings, context)
        if settings.method != "vanilla":
            self._follow_order()

    def build_network(self) -> ResNet:
        """Make the setting's network for the setting's method."""
        settings = self.settings
        return network(
            settings.network,
            self.image_channels,
            self.classes,
            settings.method,
            generator(settings.seed, "weights"),
            settings.time_scale,
        )

    def _follow_order(self) -> None:
        """Count changes of the blocks' order, and measure the steps at the ends of epochs."""
        self.order = torch.tensor(self.network.order)
        self.changes = torch.zeros((), dtype=torch.int64)
        self.state = {**self.state, "order": self.order, "changes": self.changes}
        self.probes = [*self.probes, Probe("steps", self.epoch_ends, self.measure_steps)]

    def loss_and_grad(self) -> Tensor:
        """Compute loss and gradients; note whether the last update has changed the order."""
        loss = super().loss_and_grad()
        if self.settings.method == "sorted_tau":
            order = torch.tensor(self.network.order)  # of the forward pass just made
            self.changes += int(not torch.equal(order, self.order))
            self.order.copy_(order)
        return loss

    def logits(self, x: Tensor) -> Tensor:
        """Apply the network in the chosen precision; in float32 where it is evaluated."""
        if self.network.training:
            return super().logits(x)
        logits: Tensor = self.network(x)
        return logits

    def measure_steps(self) -> pd.DataFrame:
        """Each block's index in the order of execution and its step, and changes of order so far.

        ``changes`` counts the updates that changed the order.
        """
        rows = [
            {
                "stage": stage,
                "index": index,
                "block": block,
                "size": 1.0 if step is None else float(step.detach()),
            }
            for stage, schedule in enumerate(self.network.steps(), start=1)
            for index, (block, step) in enumerate(schedule, start=1)
        ]
        frame = pd.DataFrame(rows).assign(changes=int(self.changes), **self.members[0])
        return frame.assign(epoch=int(self.taken) // self.steps_per_epoch)


class CostProblem(Problem):
    """Gradients of every method's network timed one after the other, on random images.

    Times are the processor's where the processor computes, so that other processes do not enter;
    on a GPU they are those of the clock. The optimizer's update is left out: it is the same but
    for tau.
    """

    def __init__(self, settings: CostSettings, context: Context) -> None:
        self.settings = settings
        self.device = context.device
        self.precision = choose_precision(settings.precision, self.device)
        source = generator(settings.seed, "images")
        size = settings.size
        x = torch.randn(settings.batch, 3, size, size, generator=source)
        self.x = x.to(self.device, memory_format=torch.channels_last)
        self.y = torch.randint(settings.classes, (settings.batch,), generator=source)
        self.y = self.y.to(self.device)
        self.data = Data.of("random_images", [x, self.y])
        self.networks = {method: self._network(method) for method in METHODS}
        self.members = [{"network": settings.network, "seed": settings.seed}]
        self.steps = settings.repeats
        self.optimizer = torch.optim.SGD(self.networks["vanilla"].parameters(), lr=0.0)
        self.seconds = torch.zeros(settings.repeats, len(METHODS), dtype=torch.float64)
        self.taken = torch.zeros((), dtype=torch.int64)
        self.state = {"seconds": self.seconds, "taken": self.taken}
        self.probes = [Probe("metrics", [self.steps], self.measure)]

    def loss_and_grad(self) -> Tensor:
        """Time one gradient of each network; which comes first goes round."""
        repeat = int(self.taken)
        losses = {}
        for shift in range(len(METHODS)):
            column = (repeat + shift) % len(METHODS)
            method = METHODS[column]
            if repeat == 0:  # first calls choose algorithms and allocate memory
                self._gradient(method)
            start = self._now()
            losses[method] = self._gradient(method)
            self.seconds[repeat, column] = self._now() - start
        self.taken += 1
        return losses["vanilla"].reshape(1)

    def measure(self) -> pd.DataFrame:
        """Seconds of every repeat, and numbers of parameters and of blocks."""
        frame = pd.DataFrame(self.seconds.numpy(), columns=[f"{m}_seconds" for m in METHODS])
        for method, model in self.networks.items():
            frame[f"{method}_parameters"] = sum(p.numel() for p in model.parameters())
        blocks = sum(len(row) for row in self.networks["vanilla"].steps())
        return frame.assign(repeat=range(len(frame)), blocks=blocks, **self.members[0])

    def _network(self, method: str) -> ResNet:
        settings = self.settings
        weights = generator(settings.seed, "weights")
        model = network(settings.network, 3, settings.classes, method, weights)
        return model.to(self.device).to(memory_format=torch.channels_last)

    def _gradient(self, method: str) -> Tensor:
        model = self.networks[method]
        model.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bfloat16"):
            logits = model(self.x)
        loss = F.cross_entropy(logits.float(), self.y)
        torch.autograd.backward(loss)
        return loss.detach()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()
