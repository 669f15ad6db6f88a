"""Learners and the spaces that their parameters are searched in."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidemill.declarations.origin import Origin, here
from tidemill.declarations.unsupported import unsupported


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int


@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`; with `log`, evenly spread over its orders of magnitude."""

    low: float
    high: float
    log: bool = False


class Choice:
    """One of some values."""

    def __init__(self, *options: bool | float | str) -> None:
        self.options = options


ParameterValue = Int | Float | Choice | bool | int | float | str


@dataclass(frozen=True)
class Learner:
    """A library's learner with its parameters, fixed or searched."""

    library: str
    algorithm: str
    parameters: Mapping[str, ParameterValue]
    origin: Origin = field(default_factory=here, repr=False)


def XGBoost(**parameters: ParameterValue) -> Learner:  # noqa: N802 - named like the classes beside it
    """Gradient boosted trees."""
    return Learner("xgboost", "", parameters)


def River(algorithm: str, **parameters: ParameterValue) -> Learner:  # noqa: N802 - named like the classes beside it
    """One of river's learners, such as "linear_model.LogisticRegression"."""
    return Learner("river", algorithm, parameters)


_INSTEAD = "there are tm.XGBoost and tm.River"
Sklearn = unsupported("tm.Sklearn", _INSTEAD)
LightGBM = unsupported("tm.LightGBM", _INSTEAD)
EntryPoint = unsupported("tm.EntryPoint", _INSTEAD)
