"""Learners with their parameters checked against what each library's learner takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.struct_pb2 import Value
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill.declarations.learners import Choice, Float, Int, Learner
from tidemill.declarations.origin import Origin
from tidemill.declarations.unsupported import Unsupported
from tidemill.definition.report import Report, unknown
from tidemill.definition.source import line_of_keyword, line_of_text

MAX_CHOICES = 50


@dataclass(frozen=True, slots=True)
class Known:
    """What one learner takes; `whole` and `real` name its parameters."""

    algorithms: tuple[str, ...]
    whole: frozenset[str]
    real: frozenset[str]

    @property
    def parameters(self) -> frozenset[str]:
        return self.whole | self.real


LEARNERS: Mapping[str, Known] = {
    "xgboost": Known(
        algorithms=("",),
        whole=frozenset({"n_estimators", "max_depth", "max_leaves", "max_bin"}),
        real=frozenset(
            {
                "colsample_bytree",
                "gamma",
                "learning_rate",
                "max_delta_step",
                "min_child_weight",
                "reg_alpha",
                "reg_lambda",
                "subsample",
            }
        ),
    ),
    "river": Known(
        algorithms=("linear_model.LogisticRegression",),
        whole=frozenset(),
        real=frozenset({"learning_rate", "l1", "l2", "intercept_lr", "clip_gradient"}),
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
        fault = _fault(value, whole=name in known.whole)
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
        return None if good else f"tm.Int takes whole numbers, low to high, not {value.low!r} and {value.high!r}"
    if isinstance(value, Float):
        return _float_fault(value, whole=whole)
    return _choice_fault(value, whole=whole) if isinstance(value, Choice) else _number_fault(value, whole=whole)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _number_fault(value: object, *, whole: bool) -> str | None:
    if whole:
        return None if _whole(value) else f"a whole number is needed, not {value!r}"
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return None if good else f"a finite number is needed, not {value!r}"


def _float_fault(value: Float, *, whole: bool) -> str | None:
    if whole:
        return "it is a whole number; use tm.Int"
    fault = _number_fault(value.low, whole=False) or _number_fault(value.high, whole=False)
    if fault:
        return fault
    if value.low > value.high:
        return f"low ({value.low:g}) is above high ({value.high:g})"
    return "a logarithmic range starts above zero" if value.log and value.low <= 0 else None


def _choice_fault(value: Choice, *, whole: bool) -> str | None:
    if not 1 <= len(value.options) <= MAX_CHOICES:
        return f"1 to {MAX_CHOICES} options are possible"
    return next((fault for option in value.options if (fault := _number_fault(option, whole=whole))), None)
