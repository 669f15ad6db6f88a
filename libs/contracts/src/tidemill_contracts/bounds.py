"""What the numbers, lists and texts of a definition may be at most, whoever wrote it.

The SDK holds a file to these bounds and names the line. A definition may come from any other client, so the registry
holds what it is given to them too: no service that follows it meets a duration that overflows its clock.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

Range = tuple[float, float]

MAX_MS = 3_660 * 86_400_000
MAX_NAME_CHARS = 100
MAX_TEXT_CHARS = 4_096
MAX_OBJECTS = 1_000
MAX_FIELDS = 500
MAX_PARTITIONS = 256
MAX_EVENT_BYTES = 1_000_000
MAX_FEATURES = 200
MAX_ENTITY_FIELDS = 4
MAX_EDGES = 64
MAX_K = 32
MAX_EDGE_EVENTS = 10_000
MAX_BUDGET_BYTES = 1 << 40
MAX_COLUMNS = 500
MAX_PARAMETERS = 100
MAX_CHOICES = 50
MAX_ROWS = 100_000_000
MAX_TRIALS = 200
MAX_SEED = 2**31 - 1
MAX_ITEMS = 50
MAX_METRIC = 1e6
MIN_LIMIT, MAX_LIMIT = 0.001, 10
MIN_SHARE, MAX_SHARE = 0.001, 0.999
MAX_LABELS = 1_000_000
MAX_COUNT = 999_999

_DURATION = (0, MAX_MS)
_PERIOD = (1, MAX_MS)
_INT64 = (-(2**63), 2**63 - 1)
_FINITE = (-math.inf, math.inf)

# Both ends included; 0 where a number may be left out.
RANGES: Mapping[str, Range] = {
    "Stream.partitions": (1, MAX_PARTITIONS),
    "Stream.lateness_ms": _DURATION,
    "Stream.dedup_window_ms": _DURATION,
    "Stream.max_future_ms": _DURATION,
    "Stream.max_event_bytes": (0, MAX_EVENT_BYTES),
    "Aggregation.window_ms": _DURATION,
    "Aggregation.edges": _FINITE,
    "Aggregation.quantile": (0, 1),
    "Aggregation.k": (0, MAX_K),
    "Aggregation.half_life_ms": _DURATION,
    "View.max_age_ms": _DURATION,
    "View.budget_bytes": (0, MAX_BUDGET_BYTES),
    "View.edge_events": (0, MAX_EDGE_EVENTS),
    "Label.wait_ms": _DURATION,
    "IntRange.low": _INT64,
    "IntRange.high": _INT64,
    "FloatRange.low": _FINITE,
    "FloatRange.high": _FINITE,
    "Value.number_value": _FINITE,
    "Train.window_ms": _DURATION,
    "Train.min_rows": (0, MAX_ROWS),
    "Train.trials": (0, MAX_TRIALS),
    "Train.seed": (0, MAX_SEED),
    "Bound.value": (0, MAX_METRIC),
    "Slices.max_regression": (0, MAX_METRIC),
    "RolloutStep.share": (0, MAX_SHARE),
    "RolloutStep.duration_ms": _DURATION,
    "RolloutStep.min_labels": (0, MAX_LABELS),
    "PerformanceMonitor.limit": (MIN_LIMIT, MAX_LIMIT),
    "ScheduleTrigger.period_ms": _PERIOD,
    "RetrainPolicy.cooldown_ms": _DURATION,
    "Budget.count": (1, MAX_COUNT),
    "Budget.period_ms": _PERIOD,
}
LENGTHS: Mapping[str, int] = {
    "Definition.streams": MAX_OBJECTS,
    "Definition.views": MAX_OBJECTS,
    "Definition.pipelines": MAX_OBJECTS,
    "Stream.fields": MAX_FIELDS,
    "View.entity": MAX_ENTITY_FIELDS,
    "View.features": MAX_FEATURES,
    "Aggregation.edges": MAX_EDGES,
    "ViewLookup.on": MAX_ENTITY_FIELDS,
    "Choice.options": MAX_CHOICES,
    "ListValue.values": MAX_CHOICES,
    "Struct.fields": MAX_CHOICES,
    "Learner.parameters": MAX_PARAMETERS,
    "Pipeline.features": MAX_COLUMNS,
    "Pipeline.gates": MAX_ITEMS,
    "Pipeline.rollout": MAX_ITEMS,
    "Pipeline.monitors": MAX_ITEMS,
    "RetrainPolicy.on": MAX_ITEMS,
}
# Without which nobody knows what is meant; of the others, nothing said is a value of its own.
_SAID = frozenset({"Field.type", "Aggregation.function", "RolloutStep.kind"})


def faults(message: Message, path: str = "") -> Iterator[str]:
    """Yield a sentence for everything within a definition's message that is out of bounds, each with its place."""
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        name = f"{message.DESCRIPTOR.name}.{field.name}"
        place = f"{path}.{field.name}" if path else field.name
        value = getattr(message, field.name)
        if not field.is_repeated:
            yield from _of_value(name, field.enum_type, value, place)
            continue
        if (count := len(value)) > (most := LENGTHS[name]):
            yield f"{place} holds {count:,}; at most {most:,} are possible"
            continue
        # A Struct's fields are the one map.
        items = value.items() if hasattr(value, "items") else enumerate(value)
        for key, item in items:
            yield from _of_value(name, field.enum_type, item, f"{place}[{key}]")


def _of_value(name: str, kinds: Any, value: Any, place: str) -> Iterator[str]:
    if isinstance(value, Message):
        yield from faults(value, place)
    elif isinstance(value, str):
        if len(value) > MAX_TEXT_CHARS:
            yield f"{place} is longer than {MAX_TEXT_CHARS:,} characters"
        if "\0" in value:
            yield f"{place} holds a NUL character"
    elif kinds is not None:
        if value not in kinds.values_by_number or (not value and name in _SAID):
            known = ", ".join(one.name for one in kinds.values if one.number)
            yield f"{place} must be one of {known}, not {value}"
    elif not isinstance(value, bool):
        low, high = RANGES[name]
        if not (math.isfinite(value) and low <= value <= high):
            wanted = "a finite number" if (low, high) == _FINITE else f"{low:,} to {high:,}"
            yield f"{place} must be {wanted}, not {value:,}"
