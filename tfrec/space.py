"""The `sweep:` section: which models, which settings of each, and how those are drawn."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tfrec.errors import UsageError
from tfrec.strict import Section

_DRAWS_A_TRIAL = 100
_DIGITS = 3


class Range(Section):
    """Numbers between two bounds, of which settings are drawn, to three significant digits."""

    low: float
    """The smallest number."""
    high: float
    """The largest number."""
    log: bool = False
    """Every factor is as likely as another of its size, instead of every difference."""
    whole: bool = False
    """Whole numbers alone."""

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high:
            raise ValueError("`low` must be smaller than `high`")
        if self.log and self.low <= 0:
            raise ValueError("`low` must be above 0 where `log` is true")
        return self

    def draw(self, rng: np.random.Generator) -> float | int:
        """One number."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        found = float(rng.uniform(low, high))
        number = float(f"{math.exp(found) if self.log else found:.{_DIGITS}g}")
        return round(number) if self.whole else min(max(number, self.low), self.high)


def _kind(values: Any) -> str:
    return "[range]" if isinstance(values, Mapping | Range) else "[values]"


Space = dict[
    str,
    Annotated[
        Annotated[tuple[Any, ...], Field(min_length=1), Tag("[values]")] | Annotated[Range, Tag("[range]")],
        Discriminator(_kind),
    ],
]


class Experiment(Section):
    """A configuration with changes."""

    config: str | None = None
    """File of the experiment; none = the file in which the sweep stands."""
    set: dict[str, Any] = Field({})
    """Key -> value over those of the file: `model: {name: sasrec}` or `training.epochs: 5`."""


class Swept(Experiment):
    """A model of the comparison: one row of its table."""

    space: Space = Field({})
    """What is tried for this model, beside `sweep.space`; the same key here wins."""
    first: Experiment | None = None
    """What is trained before, once: the model's trainings start from its weights (`training.initialize_from`). Models
    with the same share one run."""


class Sweep(Section):
    """The same budget of settings for every model of a comparison."""

    models: dict[str, Swept] = Field({})
    """Name of the row -> model; none = the model of this file alone. The others are compared with the first."""
    space: Space = Field({})
    """Key of the configuration -> list of values, or range (`{low: 0.0003, high: 0.01, log: true}`)."""
    trials: int | None = Field(None, ge=1)
    """Settings tried of each model, drawn at random without repeats; none = every combination of the values."""
    seed: int = Field(0, ge=0)
    """Seeds the draws: models of the same space try the same settings."""
    metric: str | None = None
    """Decides among the settings, by the validation queries; it becomes the `training.validation_metric` of every
    training. None = the one that the models' configurations name."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """`training.seed` of the trainings by which the best setting is judged on the test queries; trials
    have the first."""

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: dict[str, Swept]) -> dict[str, Swept]:
        folders = [folder_of(name) for name in models]
        if "" in folders or len(set(folders)) < len(folders):
            raise ValueError("names must differ in letters and digits, and have some")
        return models


def folder_of(name: str) -> str:
    """The name of a row as that of a directory."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.")


def settings(sweep: Sweep, name: str, swept: Swept) -> list[dict[str, Any]]:
    """The settings of a model, each as key -> value, in the order in which they are tried.

    Raises:
        UsageError: every combination is asked for where there is a range.
    """
    space = dict(sorted({**sweep.space, **swept.space}.items()))
    ranges = [key for key, values in space.items() if isinstance(values, Range)]
    if sweep.trials is None:
        if ranges:
            raise UsageError(f"`sweep.trials`: must be given where a range is drawn from (`{ranges[0]}` of {name}).")
        return list(_combinations(space))
    lists = [values for values in space.values() if not isinstance(values, Range)]
    if not ranges and math.prod(map(len, lists)) <= sweep.trials:
        return list(_combinations(space))
    return _draws(space, sweep.trials, np.random.default_rng(sweep.seed))


def _combinations(space: Space) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def _draws(space: Space, trials: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for _ in range(_DRAWS_A_TRIAL * trials):
        drawn = {
            key: values.draw(rng) if isinstance(values, Range) else values[int(rng.integers(len(values)))]
            for key, values in space.items()
        }
        if drawn not in found:
            found.append(drawn)
        if len(found) == trials:
            break
    return found


__all__ = ["Experiment", "Range", "Space", "Sweep", "Swept", "folder_of", "settings"]
