"""Sorted tau: settings of its problems."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from resnet_limits.classification_settings import ClassificationSettings, Precision
from resnet_limits.settings import Axis, Incidental, Mistake, Settings, TwoOrMore, spaced_bytes

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
    method: Literal["vanilla", "steps", "sorted_tau"] = Field(
        description="plain training; trained steps in an order that stays; or Algorithm 1: trained "
        "steps, blocks sorted by tau"
    )
    time_scale: PositiveFloat = Field(
        description="T: tau starts equally spaced on [0, T], and a step is (n / T) (tau^l - "
        "tau^{l-1}), 1 at the start; the smaller T, the faster tau moves relative to its spacing, "
        "by the factor (n / T)^2. T = 1 is the paper's time, T = n has tau start at 1, ..., n"
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

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: the stem's output, the linear layer, and times."""
        return {
            "batch, size": 4 * self.batch * STEM_CHANNELS * self.size**2,
            "classes, batch": 4 * self.classes * max(self.batch, 64),
            "repeats": 16 * self.repeats,
        }


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

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: float64 weights with gradients, and states kept for gradients."""
        networks = len(self.activation) * len(self.start) * len(self.seed)
        layers = networks * sum(self.depth)
        return {
            "depth, width, seed": 16 * layers * self.width**2,
            "depth, samples, width, seed": 8 * layers * self.samples * self.width,
            "samples, dimension, seed": 8 * len(self.seed) * self.samples * self.dimension,
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


class ExpansionSettings(DenseSettings):
    """Settings of `ExpansionProblem`."""

    order: Annotated[int, Field(ge=3)] = Field(description="highest order of the expansion")

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: besides those of dense networks, one term of every order."""
        terms = 8 * self.order * self.samples * self.width
        return super().memory_bytes() | {"order, samples, width": terms}


class GradientsSettings(DenseSettings):
    """Settings of `GradientsProblem`."""

    probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of log-spaced steps that are measured"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: besides those of dense networks, the probes' steps."""
        return super().memory_bytes() | {"probes": spaced_bytes(self.probes)}
