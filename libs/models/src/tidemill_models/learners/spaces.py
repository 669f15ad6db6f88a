"""Search spaces of a definition's learner, sampled by a seeded generator."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition

Parameters = dict[str, Any]


def trials(parameters: Iterable[definition.Parameter], count: int, rng: np.random.Generator) -> Iterator[Parameters]:
    """Yield up to `count` distinct points: first the centre of the space, then uniform samples.

    A space with fewer points than asked for ends early; without any space there is one point.
    """
    space = list(parameters)
    seen: set[str] = set()
    # Repeats of a small space are drawn again, a bounded number of times.
    for attempt in range(max(1, count) * 20):
        point = {item.name: _centre(item) if attempt == 0 else _sample(item, rng) for item in space}
        if repr(point) not in seen:
            seen.add(repr(point))
            yield point
        if len(seen) >= max(1, count):
            return


def _value(raw: Any) -> Any:
    """Return the Python value of a protobuf `Value`; a whole number becomes an int."""
    kind = raw.WhichOneof("kind")
    if kind in {"string_value", "bool_value"}:
        return getattr(raw, kind)
    if kind == "number_value":
        number = float(raw.number_value)
        return int(number) if number.is_integer() else number
    raise ValueError("a parameter's value is a string, a number or a boolean")


def _centre(item: definition.Parameter) -> Any:
    match item.WhichOneof("value"):
        case "fixed":
            return _value(item.fixed)
        case "int_range":
            return (item.int_range.low + item.int_range.high) // 2
        case "float_range":
            return _between(item.float_range, 0.5)
        case "choice":
            return _value(item.choice.options[0])
        case _:
            raise ValueError(f"parameter {item.name!r} has no value")


def _sample(item: definition.Parameter, rng: np.random.Generator) -> Any:
    match item.WhichOneof("value"):
        case "int_range":
            return int(rng.integers(item.int_range.low, item.int_range.high, endpoint=True))
        case "float_range":
            return _between(item.float_range, float(rng.random()))
        case "choice":
            return _value(item.choice.options[int(rng.integers(len(item.choice.options)))])
        case _:
            return _centre(item)


def _between(span: definition.FloatRange, share: float) -> float:
    if span.log:
        return math.exp(math.log(span.low) * (1.0 - share) + math.log(span.high) * share)
    return span.low * (1.0 - share) + span.high * share
