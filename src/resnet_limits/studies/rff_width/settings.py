"""Finite and infinite width: settings of its problems."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
    model_validator,
)

from resnet_limits.classification_settings import ClassificationSettings, StepSchedule
from resnet_limits.settings import (
    Axis,
    Distinct,
    Incidental,
    Mistake,
    Settings,
    TwoOrMore,
    spaced_bytes,
)

Fraction = Annotated[float, Field(gt=0, lt=1)]
# Beyond, a point has no digits left within a period of float32 features.
Length = Annotated[float, Field(gt=0, le=1e6)]
Model = Literal["rkhs", "shl"]
Mean = Annotated[tuple[float, ...], Strict(False), Field(min_length=1)]
Std = Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)]
MODEL = "residuals: with a fixed random hidden layer (rkhs), or with a trained one (shl)"


class WidthSettings(Settings):
    """Settings of `WidthProblem`."""

    points: Literal["jittered_grid", "standard_normal"] = Field(
        description="law of the inputs; standard_normal is the hard case, where points can be close"
    )
    dimension: PositiveInt = Field(description="dimension d of inputs and d' of targets")
    spacing: Length = Field(
        description="distance of neighbours on the grid, in length scales of the kernel"
    )
    jitter: Annotated[float, Field(ge=0, le=0.49)] = Field(
        description="largest shift of a coordinate as a fraction of the spacing"
    )
    target_scale: PositiveFloat = Field(description="standard deviation of the Gaussian targets")
    data_seed: Annotated[NonNegativeInt, Incidental()] = Field(
        description="seed of inputs and targets"
    )
    kernel: Literal["gaussian", "matern2.5", "matern4.5"] = Field(
        description="kernel k whose features are drawn"
    )
    samples: TwoOrMore = Field(description="number of samples N")
    embedding: Literal["scaling", "lifting"] = Field(
        description="family of the maps A and B (Section 5.1)"
    )
    alpha: Axis[Length] = Field(description="factor alpha of a scaling; a lifting does not use it")
    states: Axis[TwoOrMore] = Field(
        description="dimension q of a lifting's states; a scaling does not use it"
    )
    width: Axis[PositiveInt] = Field(
        description="number r of features; infinite width is always trained as well"
    )
    draw: Annotated[Axis[NonNegativeInt], Incidental()] = Field(description="seed of the features")
    depth: PositiveInt = Field(description="number of Euler steps D")
    step_size: PositiveFloat = Field(
        description="largest step size of gradient descent, in units of N / sigma_max(B)^2"
    )
    stability: PositiveFloat = Field(
        description="step size in these units times the largest eigenvalue of a network's own "
        "kernel matrix at the start, at most; from 2 on gradient descent is unstable"
    )
    steps: PositiveInt = Field(description="largest number of steps")
    converged: Fraction = Field(
        description="loss relative to the initial one at which a run has converged"
    )
    precision: Literal["float32", "float64"] = Field(
        description="floating-point type of finite widths; infinite width has float64"
    )
    compression: Fraction = Field(
        description="infinite width: power function above which a visited point becomes a centre"
    )
    capacity: PositiveInt = Field(
        description="infinite width: largest number of centres of a sample at an Euler step"
    )
    kappa_states_max: PositiveInt = Field(
        description="largest q for which kappa of the features is bounded"
    )
    kappa_width: Annotated[Distinct[PositiveInt], Incidental()] = Field(
        description="numbers of features, too many to train, for which it is bounded as well"
    )
    probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of evenly spaced steps at which losses are measured and finished runs "
        "stop"
    )
    bound_probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of log-spaced steps at which eigenvalues and PL quotients are measured"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: weights with gradients, states, kernel matrices and centres."""
        scaling = self.embedding == "scaling"
        sizes = [self.dimension] * len(self.alpha) if scaling else list(self.states)
        size = "dimension, alpha" if scaling else "states"
        item = {"float32": 4, "float64": 8}[self.precision]
        draws, features = len(self.draw), sum(self.width)
        layer = sum(sizes) * draws
        largest = max((q for q in sizes if q <= self.kappa_states_max), default=0)
        centres = 3 * sum(sizes) + len(sizes) * self.capacity
        return {
            f"depth, width, draw, {size}": 4 * item * self.depth * layer * features,
            "depth, width, draw, samples": 2 * item * self.depth * draws * features * self.samples,
            f"depth, samples, draw, {size}": 2 * item * self.depth * layer * self.samples,
            "samples, depth, draw": item * draws * self.depth * self.samples**2,
            "capacity, depth, samples": 8 * self.depth * self.samples * self.capacity * centres,
            f"{size}, kappa_states_max": 8 * largest**4,
            "kappa_width, dimension": 8 * max(self.kappa_width, default=0) * self.dimension,
            "probes": spaced_bytes(self.probes),
            "bound_probes": spaced_bytes(self.bound_probes),
        }

    @model_validator(mode="after")
    def _has_room_for_its_inputs(self) -> Self:
        least = min(self.states)
        if self.embedding == "lifting" and least < self.dimension:
            raise Mistake(
                "states",
                f"{least} is less than dimension, too few for a lifting; give at least "
                f"{self.dimension}.",
            )
        return self


class Normalization(Settings):
    """What is subtracted from pixels, scaled to [0, 1], and what they are then divided by."""

    mean: Mean = Field(description="per channel, or one for all")
    std: Std = Field(description="per channel, or one for all")


class ImageSettings(ClassificationSettings):
    """Settings of both image problems."""

    model: Model = Field(description=MODEL)
    normalization: Normalization = Field(
        description="normalization of pixels scaled to [0, 1]: mean and standard deviation"
    )

    @model_validator(mode="after")
    def _normalizes_every_channel(self) -> Self:
        channels = 3 if self.dataset.startswith("cifar") else 1
        for name, values in self.normalization:
            if len(values) not in (1, channels):
                raise Mistake(
                    f"normalization.{name}",
                    f"{len(values)} values for the {channels} channels of {self.dataset}; give "
                    "one for each, or one for all.",
                )
        return self


class FlowSettings(ImageSettings):
    """Settings of `FlowProblem`; epochs and milestones count from the end of pretraining."""

    layers: PositiveInt = Field(
        description="intervals of the weights, and steps of the midpoint rule"
    )
    channels: PositiveInt = Field(description="channels of the flow and of its hidden layer")
    interpolation: Literal["linear", "authors"] = Field(
        description="residuals between nodes: of linear weights, or as in the authors' code"
    )
    size: Literal[28] = Field(
        description="pixels a side of the input, for which the maps are made; smaller images are "
        "padded with zeros"
    )
    schedule: StepSchedule = Field(
        description="learning rate over epochs, without those of pretraining: times the factor at "
        "each milestone"
    )
    pretraining: NonNegativeInt = Field(
        description="epochs for which the maps A and B are trained before they are fixed"
    )
    pretraining_rate: PositiveFloat = Field(description="learning rate of pretraining")

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: besides those of images, the flow's weights with gradients."""
        flow = 8 * 9 * self.layers * self.channels**2
        return super().memory_bytes() | {
            "layers, channels": flow,
            "pretraining": 40 * self.pretraining,
        }


class BlockNetworkSettings(ImageSettings):
    """Settings of `BlockNetworkProblem`."""

    layers: PositiveInt = Field(description="number of blocks of the third stage")
    width: PositiveInt = Field(
        description="channels of the first stage, doubled by each later stage"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: besides those of images, the third stage's weights; W's gradients.

        Each block of it has two convolutions of 3x3 among four times the width.
        """
        stage = 4 * 3 * 9 * self.layers * (4 * self.width) ** 2
        return super().memory_bytes() | {"layers, width": stage}
