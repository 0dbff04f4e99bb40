"""Weight smoothness: settings of its problems."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from resnet_limits.classification_settings import ClassificationSettings
from resnet_limits.settings import (
    Axis,
    Incidental,
    Mistake,
    NonEmpty,
    Settings,
    TwoOrMore,
    spaced_bytes,
)

CHANNELS = 16  # of which the compiled convolutions need a multiple

Softplus = Literal[
    "softplus1",
    "softplus16",
    "softplus32",
    "softplus64",
    "softplus128",
    "softplus256",
    "softplus512",
    "softplus1024",
]
Activation = Literal["gelu", "gelu_tanh", "tanh", "relu", "identity"] | Softplus
SOFTPLUS = frozenset(get_args(Softplus))
Backend = Literal["auto", "numba", "torch"]
EvenDepth = Annotated[int, Field(ge=2, multiple_of=2)]


class ChainSettings(Settings):
    """Gradient descent on chains h_k = h_{k-1} + (factor / L) V_k sigma(W_k h_{k-1})."""

    steps: PositiveInt = Field(description="iterations of full-batch gradient descent")
    learning_rate: PositiveFloat = Field(
        description="learning rate without its factor L; also the time t that an iteration takes"
    )
    dtype: Literal["float32", "float64"] = Field(description="floating-point type")
    backend: Annotated[Backend, Incidental()] = Field(
        description="how chains are computed: compiled by numba, by torch, or auto (numba where "
        "it is installed)"
    )

    @property
    def item_bytes(self) -> int:
        """Bytes of a number."""
        return {"float32": 4, "float64": 8}[self.dtype]


def refuse_compiled_softplus(activations: Iterable[str], backend: str) -> None:
    """Raise `Mistake` where a softplus is to be compiled: none is."""
    found = SOFTPLUS & set(activations)
    if found and backend == "numba":
        raise Mistake("backend", f"{min(found)} is not compiled; give backend auto or torch.")


class RegressionSettings(ChainSettings):
    """Chains fitted to Gaussian inputs and targets (Section 5.1)."""

    dimension: PositiveInt = Field(description="data dimension d")
    width: PositiveInt = Field(description="hidden width m")
    samples: PositiveInt = Field(description="number of samples n")
    activation: Activation = Field(description="activation sigma")
    scaling: Literal["code", "paper"] = Field(
        description="factors of the layers: 1/L alone, or with Eq. 1's powers of the widths"
    )
    times: NonEmpty[NonNegativeInt] = Field(
        description="iterations T at which weights are measured"
    )
    seed: Annotated[NonNegativeInt, Incidental()] = Field(
        description="seed of data and initial weights"
    )

    def layer_bytes(self, layers: int) -> dict[str, int]:
        """Return lower bounds: of W and V deviations, gradients and differences; x and y."""
        weights = 6 * layers * self.width * self.dimension
        return {
            "depth, width, dimension": self.item_bytes * weights,
            "samples, dimension": self.item_bytes * 2 * self.samples * self.dimension,
            "samples, width": self.item_bytes * self.samples * self.width,
        }

    @model_validator(mode="after")
    def _reaches_its_times(self) -> Self:
        last = max(self.times)
        if last > self.steps:
            raise Mistake(
                "times", f"{last} is after the end of training (steps: {self.steps}); leave it out."
            )
        return self

    @model_validator(mode="after")
    def _can_be_computed(self) -> Self:
        refuse_compiled_softplus([self.activation], self.backend)
        return self


class LargeDepthSettings(RegressionSettings):
    """Settings of `LargeDepthProblem`."""

    depth: Axis[TwoOrMore] = Field(description="number of layers L")
    limit_depth: NonNegativeInt = Field(
        description="depth that stands for the limit, a multiple of every depth; 0 for none"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds, those of `layer_bytes`: all depths train in lockstep."""
        return self.layer_bytes(sum(self.depth) + self.limit_depth)

    @model_validator(mode="after")
    def _has_a_limit_that_each_depth_divides(self) -> Self:
        for depth in self.depth if self.limit_depth else ():
            if self.limit_depth % depth or self.limit_depth == depth:
                raise Mistake(
                    "limit_depth",
                    f"{self.limit_depth} is not a proper multiple of depth {depth}; give a larger "
                    "common multiple of all depths, or 0 for no limit.",
                )
        return self


class LongTimeSettings(RegressionSettings):
    """Settings of `LongTimeProblem`."""

    depth: TwoOrMore = Field(description="number of layers L")
    entries: Annotated[PositiveInt, Incidental()] = Field(
        description="random entries of V and of W that are kept"
    )
    probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of log-spaced steps, and of evenly spaced ones, that are measured"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: those of `layer_bytes`, steps, and entries of every layer."""
        return self.layer_bytes(self.depth) | {
            "probes": spaced_bytes(self.probes),
            "entries, depth": 16 * self.entries * self.depth,
        }


class KinkSettings(ChainSettings):
    """Settings of `KinkProblem`."""

    depth: Axis[EvenDepth] = Field(
        description="number of layers L; even, since initial weights alternate in sign"
    )
    activation: Axis[Activation] = Field(description="activation sigma")
    input: PositiveFloat = Field(description="input x of the sample")
    target: Axis[PositiveFloat] = Field(description="target y of the sample, above x")
    probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of log-spaced steps that are measured"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: weights, deviations, gradients and differences of all layers."""
        layers = sum(self.depth) * len(self.activation) * len(self.target)
        return {
            "depth, activation, target": self.item_bytes * 6 * layers,
            "probes": spaced_bytes(self.probes),
        }

    @model_validator(mode="after")
    def _has_targets_above_its_input(self) -> Self:
        # Appendix D, and the closed forms of the gap, are for y > x > 0.
        least = min(self.target)
        if least <= self.input:
            raise Mistake(
                "target", f"{least} is not above the input {self.input}; give a larger one."
            )
        return self

    @model_validator(mode="after")
    def _can_be_computed(self) -> Self:
        refuse_compiled_softplus(self.activation, self.backend)
        return self


class DeepConvolutionSettings(ClassificationSettings):
    """Settings of `DeepConvolutionProblem`."""

    size: Annotated[int, Field(ge=12)] = Field(
        description="pixels a side of the network's input; smaller images are padded with zeros"
    )
    depth: TwoOrMore = Field(description="number of layers L")
    channels: PositiveInt = Field(description="channels of every layer")
    activation: Literal["identity", "gelu", "relu"] = Field(
        description="activation sigma of the layers"
    )
    init: Literal["weight_tied", "iid", "gaussian_process"] = Field(
        description="how the layers' convolutions are related at initialization"
    )
    length_scale: PositiveFloat = Field(
        description="length scale of the Gaussian process, in units of the whole depth"
    )
    measured: Annotated[NonEmpty[NonNegativeInt], Incidental()] = Field(
        description="epochs after which weights are measured, besides start and end"
    )
    entries: Annotated[PositiveInt, Incidental()] = Field(
        description="random entries of each convolution that are kept"
    )
    transfer_images: Annotated[NonNegativeInt, Incidental()] = Field(
        description="test images on which the trained network is compared with deeper ones of "
        "interpolated weights; 0 for no comparison"
    )
    backend: Annotated[Backend, Incidental()] = Field(
        description="how layers are computed on a CPU: compiled by numba, by torch, or auto "
        "(numba where it is installed)"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: besides those of images, weights with gradients, and entries."""
        filters = 2 * self.depth * 9 * self.channels**2
        return super().memory_bytes() | {
            "depth, channels": 8 * filters,
            "entries, depth": 16 * self.entries * self.depth,
        }

    @model_validator(mode="after")
    def _reaches_its_measurements(self) -> Self:
        last = max(self.measured)
        if last > self.epochs:
            raise Mistake(
                "measured",
                f"{last} is after the end of training (epochs: {self.epochs}); leave it out.",
            )
        return self

    @model_validator(mode="after")
    def _can_be_compiled(self) -> Self:
        if self.backend != "numba":
            return self
        if self.channels % CHANNELS:
            raise Mistake(
                "channels",
                f"{self.channels} is not a multiple of {CHANNELS}, which numba needs; give one, "
                "or backend auto.",
            )
        if self.precision.cpu != "float32":
            raise Mistake(
                "precision.cpu",
                f"numba computes in float32, not in {self.precision.cpu}; give float32, or "
                "backend auto.",
            )
        return self


class PublishedSettings(Settings):
    """Settings of `PublishedProblem`."""

    folder: Annotated[str, Field(pattern=r"^[a-z0-9]+$")] = Field(
        description="folder below the data root in which the authors' files are looked for"
    )
    depth: TwoOrMore = Field(description="number of layers L")
    channels: PositiveInt = Field(description="channels of every layer")
    activation: Axis[Literal["gelu", "relu"]] = Field(description="activation of the layers")
    init: Axis[Literal["weight_tied", "iid"]] = Field(
        description="how the layers' convolutions were related at initialization"
    )
    batch_norm: Axis[bool] = Field(description="whether the layers have batch norm")
    entries: Annotated[PositiveInt, Incidental()] = Field(
        description="random entries of each convolution that are kept"
    )
    seed: Annotated[NonNegativeInt, Incidental()] = Field(
        description="seed of the choice of entries"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: both convolutions' filters, and the entries' rows."""
        return {
            "depth, channels": 4 * 2 * 9 * self.depth * self.channels**2,
            "depth, entries": 8 * 2 * self.depth * self.entries,
        }
