"""Settings that every problem shares that trains a network to classify images."""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from resnet_limits.settings import Distinct, Incidental, Mistake, Settings, Truncates

PIXELS = {"digits": 8, "mnist": 28, "cifar10": 32, "cifar100": 32}  # a side of the images
LEAST_IMAGES = 1000  # every data set has more
Type = Literal["auto", "float32", "bfloat16"]


class StepSchedule(Settings):
    """The learning rate is multiplied by a factor at each milestone."""

    kind: Literal["step"] = Field(description="law of the learning rate")
    milestones: Distinct[PositiveInt] = Field(
        description="epochs after which the learning rate is multiplied by the factor"
    )
    factor: PositiveFloat = Field(description="factor of the learning rate at a milestone")

    @field_validator("milestones")
    @classmethod
    def _increase(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if list(milestones) != sorted(milestones):
            raise ValueError(f"{list(milestones)} does not increase; sort it.")
        return milestones


class CosineSchedule(Settings):
    """The learning rate follows half a cosine down to 0 at the end."""

    kind: Literal["cosine"] = Field(description="law of the learning rate")

    @model_validator(mode="before")
    @classmethod
    def _has_no_steps(cls, values: Container[str]) -> Any:
        for key in ("milestones", "factor"):
            if key in values:
                raise Mistake(
                    key, "a cosine schedule has neither milestones nor factor; leave them out."
                )
        return values


Schedule = Annotated[StepSchedule | CosineSchedule, Field(discriminator="kind")]


class Augmentation(Settings):
    """Random changes of the training images."""

    pad: NonNegativeInt = Field(description="zeros added on each side before a random crop")
    flip: bool = Field(description="whether each image is mirrored with probability 1/2")


class Precision(Settings):
    """Type of the convolutions by device.

    ``auto`` is bfloat16 where the processor computes with it, and float32 elsewhere.
    """

    cpu: Type = Field(description="type on a CPU")
    cuda: Type = Field(description="type on a GPU")


class ClassificationSettings(Settings):
    """A network trained to classify images by stochastic gradient descent."""

    dataset: Literal["digits", "cifar10", "cifar100", "mnist"] = Field(description="data set")
    train_images: NonNegativeInt = Field(
        description="number of training images, the same ones for every seed; 0 for all"
    )
    size: Annotated[int, Field(ge=8)] = Field(
        description="pixels a side of the network's input; smaller images are padded with zeros"
    )
    batch: PositiveInt = Field(description="images per mini-batch")
    epochs: PositiveInt = Field(description="passes over the training images")
    stop_after: Annotated[NonNegativeInt, Truncates()] = Field(
        description="epochs after which training stops, with the schedule of all of them; 0 for all"
    )
    learning_rate: PositiveFloat = Field(description="initial learning rate")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(description="momentum of SGD")
    weight_decay: NonNegativeFloat = Field(
        description="weight decay of all parameters but those that a network exempts"
    )
    schedule: Schedule = Field(
        description="learning rate over epochs: times the factor at each milestone, or cosine to 0"
    )
    augmentation: Augmentation = Field(
        description="random crops after zero padding, and mirrored images"
    )
    precision: Precision = Field(
        description="type of convolutions by device; auto is bfloat16 where the processor "
        "computes with it, float32 elsewhere"
    )
    seed: Annotated[NonNegativeInt, Incidental()] = Field(
        description="seed of weights, order and augmentation"
    )

    @property
    def last_epoch(self) -> int:
        """The epoch after which training ends."""
        return self.stop_after or self.epochs

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: padded images as bytes, a float32 batch, the ends of epochs."""
        images = self.train_images or LEAST_IMAGES
        side = self.size + 2 * self.augmentation.pad
        return {
            "train_images, size, augmentation.pad": images * side**2,
            "batch, size": 4 * self.largest_batch * self.size**2,
            "epochs": 40 * self.epochs,
        }

    @property
    def largest_batch(self) -> int:
        """A lower bound of the largest mini-batch."""
        return min(self.batch, self.train_images or LEAST_IMAGES)

    @model_validator(mode="after")
    def _fits_its_images(self) -> Self:
        pixels = PIXELS[self.dataset]
        if self.size < pixels:
            raise Mistake(
                "size",
                f"{self.size} is less than the {pixels} pixels a side of {self.dataset}; "
                f"give at least {pixels}, or choose a data set of smaller images.",
            )
        if 0 < self.train_images < self.batch:
            raise Mistake(
                "batch",
                f"{self.batch} is more than the {self.train_images} training images; "
                "give at most as many.",
            )
        return self

    @model_validator(mode="after")
    def _stops_within_its_epochs(self) -> Self:
        if self.stop_after > self.epochs:
            raise Mistake(
                "stop_after",
                f"{self.stop_after} is after the end of training (epochs: {self.epochs}); give "
                "at most as many, or 0 for all.",
            )
        return self

    @model_validator(mode="after")
    def _reaches_its_milestones(self) -> Self:
        for epoch in self.schedule.milestones if self.schedule.kind == "step" else ():
            if epoch >= self.epochs:
                raise Mistake(
                    "schedule.milestones",
                    f"{epoch} is at or after the end of training (epochs: {self.epochs}); "
                    "leave it out.",
                )
        return self
