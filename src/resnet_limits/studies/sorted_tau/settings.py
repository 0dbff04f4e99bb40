"""Sorted tau: settings of its problems."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from resnet_limits.classification_settings import ClassificationSettings, Precision
from resnet_limits.settings import Axis, Incidental, Mistake, Settings, TwoOrMore

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


class ResNetSettings(ClassificationSettings):
    """Settings of `ResNetProblem`."""

    network: Network = Field(description="network")
    method: Literal["vanilla", "steps", "sorted_tau"] = Field(
        description="plain training; trained steps in an order that stays; or Algorithm 1: trained "
        "steps, blocks sorted by tau"
    )
    time_scale: PositiveFloat = Field(
        description="T: tau starts equally spaced on [0, T], and a step is (n / T) (tau^l - "
        "tau^{l-1}), 1 at the start; the smaller T, the faster tau moves relative to its spacing, "
        "by the factor (n / T)^2. T = 1 is the paper's time, T = n has tau start at 1, ..., n"
    )


class CostSettings(Settings):
    """Settings of `CostProblem`."""

    network: Network = Field(description="network")
    size: Annotated[int, Field(ge=8)] = Field(description="pixels a side of the images")
    batch: PositiveInt = Field(description="images per mini-batch")
    classes: TwoOrMore = Field(description="number of classes")
    repeats: Annotated[TwoOrMore, Incidental()] = Field(
        description="timed gradients of each network, taken in turn"
    )
    precision: Precision = Field(
        description="type of convolutions by device; auto is bfloat16 where the processor "
        "computes with it, float32 elsewhere"
    )
    seed: Annotated[NonNegativeInt, Incidental()] = Field(
        description="seed of weights and images; each is a process of its own"
    )


class DenseSettings(Settings):
    """Small dense networks fitted by gradient descent."""

    activation: Axis[Literal["sigmoid", "tanh", "sin", "identity"]] = Field(
        description="activation sigma"
    )
    start: Axis[Literal["tied", "iid"]] = Field(
        description="initial weights: the same in every layer, or drawn for each"
    )
    weight_scale: Axis[PositiveFloat] = Field(
        description="standard deviation of initial weights, times sqrt(width)"
    )
    depth: Axis[TwoOrMore] = Field(description="number of layers L")
    seed: Annotated[Axis[NonNegativeInt], Incidental()] = Field(
        description="seed of data and weights"
    )
    samples: TwoOrMore = Field(description="number of samples")
    dimension: PositiveInt = Field(description="dimension of x")
    width: PositiveInt = Field(description="width of the states X")
    steps: PositiveInt = Field(description="steps of full-batch gradient descent")
    learning_rate: PositiveFloat = Field(description="learning rate without its factor L")

    @model_validator(mode="after")
    def _embeds_its_inputs(self) -> Self:
        # X^0 = w2 x needs orthonormal columns w2.
        if self.dimension > self.width:
            raise Mistake(
                "width",
                f"{self.width} is less than dimension; give at least {self.dimension}.",
            )
        return self


class ExpansionSettings(DenseSettings):
    """Settings of `ExpansionProblem`."""

    order: Annotated[int, Field(ge=3)] = Field(description="highest order of the expansion")


class GradientsSettings(DenseSettings):
    """Settings of `GradientsProblem`."""

    probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of log-spaced steps that are measured"
    )
