"""Two Spirals: settings of its problems."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from resnet_limits.settings import (
    Axis,
    Distinct,
    Incidental,
    Mistake,
    Settings,
    TwoOrMore,
    spaced_bytes,
)


class SpiralsSettings(Settings):
    """Settings of `SpiralsProblem`."""

    dimension: Literal[2] = Field(description="data dimension d")
    field: Literal["constant", "per_step", "frozen", "removed"] = Field(
        description="vector field: constant in depth, one per Euler step, untrained, or removed"
    )
    depth: PositiveInt = Field(description="number of Euler steps L")
    field_width: PositiveInt = Field(description="hidden width M of the vector field")
    head_width: PositiveInt = Field(description="hidden width K of the output layer")
    steps: PositiveInt = Field(description="number of full-batch Adam steps")
    learning_rate: PositiveFloat = Field(description="learning rate of Adam")
    noise: NonNegativeFloat = Field(description="width of the uniform noise on each coordinate")
    n_train: Axis[TwoOrMore] = Field(description="number of training points")
    n_test: TwoOrMore = Field(description="number of test points")
    seed: Annotated[Axis[NonNegativeInt], Incidental()] = Field(
        description="seed of data and initial weights"
    )
    probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of evenly spaced steps, and of log-spaced ones, at which errors are "
        "measured"
    )
    gram_probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of log-spaced steps at which Gram matrices are measured"
    )
    gram_n_max: NonNegativeInt = Field(
        description="largest n_train for which Gram matrices are measured; 0 for none"
    )
    boundary_n: Annotated[Distinct[TwoOrMore], Incidental()] = Field(
        description="values of n_train whose decision boundary is kept, first seed only"
    )
    boundary_grid: Annotated[TwoOrMore, Incidental()] = Field(
        description="grid points per coordinate of the kept decision boundary"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: float32 weights with gradients, hidden units of all samples."""
        seeds, members = len(self.seed), len(self.seed) * len(self.n_train)
        steps = self.depth if self.field in ("constant", "per_step") else 0
        fields = self.depth if self.field == "per_step" else 1
        weights = members * (fields * self.field_width + self.head_width)
        units = steps * self.field_width + self.head_width
        compared = max((n for n in self.n_train if n <= self.gram_n_max), default=0)
        return {
            "seed, n_train, depth, field_width, head_width": 8 * weights,
            "n_train, seed, depth, field_width, head_width": 4 * seeds * sum(self.n_train) * units,
            "n_test, seed, n_train, head_width": 4 * members * self.n_test * self.head_width,
            "gram_n_max, seed": 12 * seeds * compared**2,
            "boundary_grid": 12 * self.boundary_grid**2,
            "probes": spaced_bytes(self.probes),
            "gram_probes": spaced_bytes(self.gram_probes),
        }

    @model_validator(mode="after")
    def _measures_sizes_that_it_trains(self) -> Self:
        for size in self.boundary_n:
            if size not in self.n_train:
                raise Mistake("boundary_n", f"{size} is not among n_train; leave it out.")
        least = min(self.n_train)
        if 0 < self.gram_n_max < least:
            raise Mistake(
                "gram_n_max",
                f"{self.gram_n_max} is less than every n_train; give at least {least}, or 0 for "
                "no Gram matrices.",
            )
        return self


class ParticleSettings(Settings):
    """Settings of `ParticleProblem`."""

    dimension: Literal[2] = Field(description="data dimension d")
    depth: PositiveInt = Field(description="number of Euler steps L")
    particles: int = Field(
        ge=64,
        multiple_of=8,
        description="number of particles K of the output layer; the field has a quarter as many "
        "at every Euler step",
    )
    alpha: PositiveFloat = Field(description="scale of the field in Eq. 2")
    beta: Axis[PositiveFloat] = Field(description="scale of the output in Eq. 2")
    input_norm: PositiveFloat = Field(
        description="largest norm of an input, but for the noise; the arms are scaled to it"
    )
    noise: NonNegativeFloat = Field(
        description="width of the uniform noise on each coordinate, before inputs are scaled"
    )
    n_train: Axis[TwoOrMore] = Field(description="number of training points")
    seed: Annotated[Axis[NonNegativeInt], Incidental()] = Field(
        description="seed of data and particles"
    )
    steps: NonNegativeInt = Field(description="number of gradient steps; 0 measures the start only")
    step_size: PositiveFloat = Field(
        description="step size over the largest that is stable at the start"
    )
    probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of log-spaced steps at which all is measured"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: particles, points, and activations of all members."""
        members = len(self.beta) * len(self.seed)
        points = members * sum(self.n_train)
        return {
            "particles, n_train, beta, seed": 8 * points * self.particles,
            "particles, depth, seed": 8 * members * self.particles * self.depth // 4,
            "probes": spaced_bytes(self.probes),
        }


class SolversSettings(Settings):
    """Settings of `SolversProblem`."""

    dimension: Literal[2] = Field(description="data dimension d")
    depth: Axis[PositiveInt] = Field(description="number of Euler steps L")
    field_width: PositiveInt = Field(description="hidden width M of the vector field")
    head_width: PositiveInt = Field(description="hidden width K of the output layer")
    adaptive: Literal["dopri5", "tsit5"] = Field(
        description="torchdyn's solver of the ODE itself, at tolerance 1e-8"
    )
    steps: PositiveInt = Field(description="number of full-batch Adam steps")
    learning_rate: PositiveFloat = Field(description="learning rate of Adam")
    noise: NonNegativeFloat = Field(description="width of the uniform noise on each coordinate")
    n_train: TwoOrMore = Field(description="number of training points")
    n_test: TwoOrMore = Field(description="number of points at which outputs are compared")
    seed: Annotated[Axis[NonNegativeInt], Incidental()] = Field(
        description="seed of data and initial weights"
    )
    probes: Annotated[TwoOrMore, Incidental()] = Field(
        description="number of log-spaced steps at which all is measured"
    )

    def memory_bytes(self) -> dict[str, int]:
        """Return lower bounds: data and weights of all networks."""
        networks = len(self.depth) * len(self.seed)
        points = 16 * networks * (self.n_train + self.n_test)
        return {
            "n_train, n_test, depth, seed": points,
            "depth, n_train": 16 * max(self.depth) * self.n_train,
            "field_width, head_width": 24 * networks * (self.field_width + self.head_width),
            "probes": spaced_bytes(self.probes),
        }
