"""Settings of the study's problems: one class ``XSettings`` for each ``XProblem``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from resnet_limits.settings import Axis, Incidental, Mistake, Settings


class MyStudySettings(Settings):
    """Gradient descent on a quadratic function."""

    curvature: PositiveFloat = Field(description="smallest curvature; the largest is 1")
    dimension: PositiveInt = Field(description="number of variables")
    learning_rate: PositiveFloat = Field(description="step size of gradient descent")
    steps: PositiveInt = Field(description="number of steps")
    # What is `Incidental` may differ from the paper's protocol: it changes no result.
    probes: Annotated[PositiveInt, Incidental()] = Field(
        description="number of measurements after the start"
    )
    # The values of an `Axis` are trained together in one run; those of other grids are runs.
    seed: Annotated[Axis[NonNegativeInt], Incidental()] = Field(description="seed of the start")

    @model_validator(mode="after")
    def _is_stable(self) -> Self:
        if self.learning_rate >= 2:
            raise Mistake("learning_rate", f"{self.learning_rate} diverges; give less than 2.")
        return self
