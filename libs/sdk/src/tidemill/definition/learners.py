"""Learners with their parameters checked against what each library's learner takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.struct_pb2 import Value
from tidemill_contracts.bounds import MAX_CHOICES
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill.declarations.learners import Choice, Float, Int, Learner
from tidemill.declarations.origin import Origin
from tidemill.declarations.unsupported import Unsupported
from tidemill.definition.report import Report, is_finite, unknown
from tidemill.definition.source import line_of_keyword, line_of_text


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a parameter may be, both ends included, or with `above` the upper one alone."""

    low: float = 0
    high: float = math.inf
    above: bool = False

    def hold(self, value: float) -> bool:
        """Say whether a value lies within."""
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        least = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return least if self.high == math.inf else f"{least} and at most {self.high:g}"


@dataclass(frozen=True, slots=True)
class Known:
    """What one learner takes; `whole` and `real` are its parameters, with the bounds that its library documents."""

    algorithms: tuple[str, ...]
    whole: Mapping[str, Bounds]
    real: Mapping[str, Bounds]

    @property
    def parameters(self) -> Mapping[str, Bounds]:
        return {**self.whole, **self.real}


_POSITIVE, _SHARE = Bounds(above=True), Bounds(high=1, above=True)


LEARNERS: Mapping[str, Known] = {
    "xgboost": Known(
        algorithms=("",),
        whole={"n_estimators": Bounds(1), "max_depth": Bounds(), "max_leaves": Bounds(), "max_bin": Bounds(2)},
        real={
            "colsample_bytree": _SHARE,
            "gamma": Bounds(),
            "learning_rate": Bounds(high=1),
            "max_delta_step": Bounds(),
            "min_child_weight": Bounds(),
            "reg_alpha": Bounds(),
            "reg_lambda": Bounds(),
            "subsample": _SHARE,
        },
    ),
    "river": Known(
        algorithms=("linear_model.LogisticRegression",),
        whole={},
        real={
            "learning_rate": _POSITIVE,
            "l1": Bounds(),
            "l2": Bounds(),
            "intercept_lr": Bounds(),
            "clip_gradient": _POSITIVE,
        },
    ),
}


def compile_learner(learner: object, origin: Origin, subject: str, report: Report) -> definition.Learner | None:
    """Return the learner's message, or None with the fault reported."""
    if isinstance(learner, Unsupported):
        report.refuse(learner, subject)
        return None
    if not isinstance(learner, Learner):
        report.add(origin, subject, f"tm.XGBoost(…) or tm.River(…) is wanted, not {learner!r:.80}")
        return None
    known = LEARNERS[learner.library]
    if learner.algorithm not in known.algorithms:
        names = " and ".join(known.algorithms)
        message = f"{learner.library} {learner.algorithm!r} is not in this release; there is {names}"
        report.add(learner.origin, subject, message, line=line_of_text(learner.origin, learner.algorithm))
        return None
    parameters = [
        _parameter(learner, name, value, f"{subject}: parameter {name!r}", report)
        for name, value in sorted(learner.parameters.items())
    ]
    kept = [parameter for parameter in parameters if parameter is not None]
    return definition.Learner(library=learner.library, algorithm=learner.algorithm, parameters=kept)


def _parameter(learner: Learner, name: str, value: object, subject: str, report: Report) -> definition.Parameter | None:
    known = LEARNERS[learner.library]
    if name not in known.parameters:
        fault: str | None = unknown(name, known.parameters, "parameter")
    else:
        fault = _fault(value, whole=name in known.whole) or _beyond(value, known.parameters[name])
    if fault is not None:
        report.add(learner.origin, subject, fault, line=line_of_keyword(learner.origin, name))
        return None
    message = definition.Parameter(name=name)
    if isinstance(value, Int):
        message.int_range.CopyFrom(definition.IntRange(low=value.low, high=value.high))
    elif isinstance(value, Float):
        message.float_range.CopyFrom(definition.FloatRange(low=value.low, high=value.high, log=value.log))
    elif isinstance(value, Choice):
        message.choice.options.extend(Value(number_value=float(option)) for option in value.options)
    elif isinstance(value, int | float):
        message.fixed.number_value = value
    return message


def _fault(value: object, *, whole: bool) -> str | None:
    if isinstance(value, Int):
        good = _whole(value.low) and _whole(value.high) and value.low <= value.high
        return (
            None if good else f"tm.Int takes whole numbers, low to high, not {value.low!r:.40} and {value.high!r:.40}"
        )
    if isinstance(value, Float):
        return _float_fault(value, whole=whole)
    return _choice_fault(value, whole=whole) if isinstance(value, Choice) else _number_fault(value, whole=whole)


def _beyond(value: object, bounds: Bounds) -> str | None:
    """Return what is out of bounds of a value that has no other fault."""
    if isinstance(value, Int | Float):
        parts: tuple[Any, ...] = (value.low, value.high)
    else:
        parts = value.options if isinstance(value, Choice) else (value,)
    return next((f"it must be {bounds}, not {part!r:.80}" for part in parts if not bounds.hold(part)), None)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _number_fault(value: object, *, whole: bool) -> str | None:
    if whole:
        return None if _whole(value) else f"a whole number is needed, not {value!r:.80}"
    return None if is_finite(value) else f"a finite number is needed, not {value!r:.80}"


def _float_fault(value: Float, *, whole: bool) -> str | None:
    if whole:
        return "it is a whole number; use tm.Int"
    fault = _number_fault(value.low, whole=False) or _number_fault(value.high, whole=False)
    if fault:
        return fault
    if not isinstance(value.log, bool):
        return f"log is True or False, not {value.log!r:.80}"
    if value.low > value.high:
        return f"low ({value.low:g}) is above high ({value.high:g})"
    return "a logarithmic range starts above zero" if value.log and value.low <= 0 else None


def _choice_fault(value: Choice, *, whole: bool) -> str | None:
    if not 1 <= len(value.options) <= MAX_CHOICES:
        return f"1 to {MAX_CHOICES} options are possible"
    return next((fault for option in value.options if (fault := _number_fault(option, whole=whole))), None)
