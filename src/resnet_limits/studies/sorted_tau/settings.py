"""Sorted tau: settings of its problems."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from resnet_limits.classification_settings import ClassificationSettings, Precision
from resnet_limits.settings import Axis, Mistake, Settings, TwoOrMore, spaced_bytes

Network = Literal[
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet164",
    "resnext29_8x64d",
    "resnext29_16x64d",
]


STEM_CHANNELS = 16  # every network has as many or more


class ResNetSettings(ClassificationSettings):
    """Settings of `ResNetProblem`."""

    network: Network = Field(description="network")
    method: Literal["vanilla", "sorted_tau"] = Field(
        description="plain training, or Algorithm 1: trained steps, blocks sorted by tau"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: besides those of images, the stem's output of a batch."""
        stem = 4 * self.largest_batch * STEM_CHANNELS * self.size**2
        return super().memory_bytes() | {"batch, size": stem}


class CostSettings(Settings):
    """Settings of `CostProblem`."""

    network: Network = Field(description="network")
    size: Annotated[int, Field(ge=8)] = Field(description="pixels a side of the images")
    batch: PositiveInt = Field(description="images per mini-batch")
    classes: TwoOrMore = Field(description="number of classes")
    repeats: TwoOrMore = Field(description="timed gradients of each network, taken in turn")
    precision: Precision = Field(
        description="type of convolutions by device; auto is bfloat16 where the processor "
        "computes with it, float32 elsewhere"
    )
    seed: NonNegativeInt = Field(description="seed of weights and images")

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: the stem's output, the linear layer, and times."""
        return {
            "batch, size": 4 * self.batch * STEM_CHANNELS * self.size**2,
            "classes, batch": 4 * self.classes * max(self.batch, 64),
            "repeats": 16 * self.repeats,
        }


class ExpansionSettings(Settings):
    """Settings of `ExpansionProblem`."""

    activation: Axis[Literal["sigmoid", "tanh", "identity"]] = Field(description="activation sigma")
    start: Axis[Literal["tied", "iid"]] = Field(
        description="initial weights: the same in every layer, or drawn for each"
    )
    depth: Axis[TwoOrMore] = Field(description="number of layers L")
    seed: Axis[NonNegativeInt] = Field(description="seed of data and weights")
    samples: TwoOrMore = Field(description="number of samples")
    dimension: PositiveInt = Field(description="dimension of x")
    width: PositiveInt = Field(description="width of the states X")
    weight_scale: PositiveFloat = Field(
        description="standard deviation of initial weights, times sqrt(width)"
    )
    steps: PositiveInt = Field(description="steps of full-batch gradient descent")
    learning_rate: PositiveFloat = Field(description="learning rate without its factor L")
    order: Annotated[int, Field(ge=3)] = Field(description="highest order of the expansion")
    probes: TwoOrMore = Field(description="number of log-spaced steps that are measured")

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: float64 weights with gradients, and states kept for gradients."""
        networks = len(self.activation) * len(self.start) * len(self.seed)
        layers = networks * sum(self.depth)
        return {
            "depth, width, seed": 16 * layers * self.width**2,
            "depth, samples, width, seed": 8 * layers * self.samples * self.width,
            "samples, dimension, seed": 8 * len(self.seed) * self.samples * self.dimension,
            "order, samples, width": 8 * self.order * self.samples * self.width,
            "probes": spaced_bytes(self.probes),
        }

    @model_validator(mode="after")
    def _embeds_its_inputs(self) -> Self:
        # X^0 = w2 x needs orthonormal columns w2.
        if self.dimension > self.width:
            raise Mistake(
                "width",
                f"{self.width} is less than dimension; give at least {self.dimension}.",
            )
        return self
