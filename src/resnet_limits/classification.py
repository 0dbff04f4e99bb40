"""Training one network to classify images by stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from resnet_limits.classification_settings import ClassificationSettings, Precision
from resnet_limits.data.batches import Batches, Draw
from resnet_limits.data.images import Images, Split, load_images
from resnet_limits.errors import UserError
from resnet_limits.problem import Context, Data, Probe, Problem
from resnet_limits.random import generator

EVALUATION_BATCH = 500


class Classification(Problem):
    """One network on one set of images; one step is one mini-batch.

    A subclass writes `build_network`.

    Order and augmentation of an epoch are drawn from its number and the seed alone, so networks
    of the same seed see the same batches, and a resumed run sees what it would have seen. An
    epoch's last batch is smaller where the numbers do not divide.

    Parameters
    ----------
    settings
        Those of every image experiment, and whatever the subclass adds.
    context
        Device and data root.

    Attributes
    ----------
    network
        On the device, channels last.
    images
        The data set.
    epoch_ends
        Numbers of steps after which epochs 0, 1, ... have ended; epoch 0 is the start.
    steps, scheduled_steps
        Number of steps that are trained, and that the schedule of the learning rate is for;
        fewer are trained where the settings stop after some of the epochs.

    Raises
    ------
    UserError
        If the data set cannot be had or does not fit the settings.
    """

    scratch = ("_epoch",)  # drawn from the epoch's number and the seed

    def __init__(self, settings: ClassificationSettings, context: Context) -> None:
        self.settings = settings
        self.device = context.device
        self.images = load_images(settings.dataset, context.data_root)
        self._load()
        self.precision = choose_precision(settings.precision, self.device)
        if self.device.type == "cuda":  # the fastest algorithms do not repeat their bits
            torch.backends.cudnn.deterministic = True
        network = self.build_network().to(self.device)
        self.network: nn.Module = network.to(memory_format=torch.channels_last)
        self.members = [{"seed": settings.seed}]
        self.optimizer = self.make_optimizer()
        self.scheduler = self.make_scheduler()
        self.probes = [Probe("metrics", self.epoch_ends, self.measure)]
        # Steps so far; and loss, errors and images of the running epoch as seen while training.
        self.taken = torch.zeros((), dtype=torch.int64)
        self.seen = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.state: dict[str, Tensor] = {"taken": self.taken, "seen": self.seen}
        self._epoch: tuple[int, Draw] | None = None

    def build_network(self) -> nn.Module:
        """Make the network: ``(batch, channels, size, size)`` to logits ``(batch, classes)``.

        Parameters whose names it lists as ``undecayed`` have no weight decay.
        """
        raise NotImplementedError

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return int(self.images.train.images.shape[-1])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.images.classes)

    @property
    def warm_up(self) -> int:
        """Epochs before those that the settings count."""
        return 0

    def _load(self) -> None:
        settings, images = self.settings, self.images
        chosen = subset(images, settings.train_images)
        check_size(images, settings.size)
        pad = settings.augmentation.pad
        self.train_batches = self._batches(chosen, pad)
        self.test_batches = self._batches(images.test, 0)
        self.data = describe(images, len(chosen.labels))
        self.steps_per_epoch = -(-len(chosen.labels) // settings.batch)
        self.scheduled_steps = (self.warm_up + settings.epochs) * self.steps_per_epoch
        self.steps = (self.warm_up + settings.last_epoch) * self.steps_per_epoch
        self.epoch_ends = list(range(0, self.steps + 1, self.steps_per_epoch))
        self.milestones = self.epoch_ends[1:]

    def _batches(self, split: Split, pad: int) -> Batches:
        images, size = self.images, self.settings.size
        return Batches(split, images.mean, images.std, size, pad, self.device)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return SGD with the settings' momentum and weight decay."""
        settings = self.settings
        return torch.optim.SGD(
            self.parameter_groups(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is trained: the parameters with weight decay, and those without."""
        named = [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]
        exempt = set(getattr(self.network, "undecayed", ()))
        groups: list[dict[str, Any]] = [{"params": [p for n, p in named if n not in exempt]}]
        if exempt:
            without = [p for n, p in named if n in exempt]
            groups.append({"params": without, "weight_decay": 0.0})
        return groups

    def make_scheduler(self) -> lr_scheduler.LRScheduler:
        """Return the settings' schedule, in steps: at milestones by a factor, or cosine to 0."""
        schedule = self.settings.schedule
        if schedule.kind == "cosine":
            return lr_scheduler.CosineAnnealingLR(self.optimizer, self.scheduled_steps)
        epochs = [self.warm_up + epoch for epoch in schedule.milestones]
        milestones = [epoch * self.steps_per_epoch for epoch in epochs]
        return lr_scheduler.MultiStepLR(self.optimizer, milestones, schedule.factor)

    def loss_and_grad(self) -> Tensor:
        """Compute the next mini-batch's mean loss and its gradients."""
        x, y = self.next_batch()
        self.network.train()
        logits = self.logits(x)
        loss = F.cross_entropy(logits, y)
        torch.autograd.backward(loss)
        errors = (logits.detach().argmax(1) != y).sum()
        self.seen += torch.stack([loss.detach() * len(y), errors, torch.full_like(errors, len(y))])
        return loss.detach().reshape(1)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next augmented images and labels, and count them."""
        epoch, index = divmod(int(self.taken), self.steps_per_epoch)
        if index == 0:
            self.seen.zero_()
        if self._epoch is None or self._epoch[0] != epoch:
            augmentation, seed = self.settings.augmentation, self.settings.seed
            drawn = Draw.epoch(
                len(self.train_batches), augmentation.pad, augmentation.flip, seed, epoch
            )
            # A copy for every batch would make the host wait for a GPU at every step.
            self._epoch = epoch, drawn.to(self.device)
        first = index * self.settings.batch
        self.taken += 1
        return self.train_batches.augmented(self._epoch[1][first : first + self.settings.batch])

    def logits(self, x: Tensor) -> Tensor:
        """Apply the network in the chosen precision; logits are float32."""
        with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bfloat16"):
            logits: Tensor = self.network(x)
        return logits.float()

    def measure(self) -> pd.DataFrame:
        """Mean loss and error in %: of the epoch's training batches, and of the test set.

        The training numbers are those seen while training, with augmentation and the batches'
        own statistics; at the start there are none.
        """
        loss, errors, count = self.seen.tolist()
        test_loss, test_error = self.evaluate()
        row = {
            "epoch": int(self.taken) // self.steps_per_epoch - self.warm_up,
            "train_loss": loss / count if count else np.nan,
            "train_error": 100 * errors / count if count else np.nan,
            "test_loss": test_loss,
            "test_error": test_error,
        }
        return pd.DataFrame([{**self.members[0], **row}])

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Return mean loss and error in % on the test set, with running statistics."""
        self.network.eval()
        count = len(self.test_batches)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for first in range(0, count, EVALUATION_BATCH):
            x, y = self.test_batches.plain(slice(first, first + EVALUATION_BATCH))
            logits = self.logits(x)
            errors = (logits.argmax(1) != y).sum()
            sums += torch.stack([F.cross_entropy(logits, y, reduction="sum"), errors])
        loss, errors_share = (sums / count).tolist()
        return loss, 100 * errors_share


def subset(images: Images, count: int) -> Split:
    """Return so many training images, the same for every seed and of every class alike; 0: all.

    Raises
    ------
    UserError
        If there are fewer.
    """
    train = images.train
    if count > len(train.labels):
        raise UserError(
            f"train_images: {count} asked for, {images.label} has {len(train.labels)}; "
            "ask for fewer, or for 0 to take all."
        )
    if count in (0, len(train.labels)):
        return train
    order = torch.randperm(len(train.labels), generator=generator(0, "subset")).numpy()
    # Within a class by the random order, then the first of every class, the second, ...
    by_class = order[np.argsort(train.labels[order], kind="stable")]
    labels = train.labels[by_class]
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
    rows = np.sort(by_class[np.argsort(rank, kind="stable")[:count]])
    return Split(train.images[rows], train.labels[rows])


def check_size(images: Images, size: int) -> None:
    """Raise `UserError` if the images are larger than the network's input."""
    largest = max(images.train.images.shape[1:3])
    if largest > size:
        raise UserError(f"size: {size} is less than the {largest} pixels of {images.label}.")


def describe(images: Images, count: int) -> Data:
    """Return what a record says of the data."""
    total = len(images.train.labels)
    share = "" if count == total else f"{count} of {total} training images"
    return Data(images.label, images.hash, "; ".join(filter(None, [images.note, share])))


def choose_precision(precision: Precision, device: torch.device) -> str:
    """Return the precision that the settings ask for on a device.

    ``auto`` is bfloat16 where the processor computes with it, and float32 elsewhere.
    """
    wanted = precision.cuda if device.type == "cuda" else precision.cpu
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
