"""Logged predictions as rows of a training set: what was asked, when, and up to which offsets it saw; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us
from tidemill_contracts.topics import events_topic

from tidemill_features.columns import column_of
from tidemill_features.expressions import Column
from tidemill_features.training_set import Asked

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Logged:
    """Columns of the archived predictions of one pipeline, in the order of the log.

    `positions_code[i]` is the place in `positions` of row i's: JSON, topic to {partition: next offset}; rows that read
    the rings together share one. `logged_us`: when they came to the log, None where that is not known.
    """

    prediction_id: Sequence[str]
    join_key: Sequence[str]
    as_of_us: Ints
    request_json: Sequence[str]
    positions: Sequence[str]
    positions_code: Ints
    logged_us: Ints | None = None


def predicted(
    logged: Logged, request: definition.Stream, streams: Sequence[definition.Stream], names: Sequence[str]
) -> Asked:
    """Return each logged prediction once (the first record of its id), with the named fields of its request.

    A partition that a prediction's positions do not name was not seen: its cut is 0.
    """
    ids = logged.prediction_id
    # The last assignment of an id is that of its first record.
    first = dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))
    rows = np.sort(np.fromiter(first.values(), np.int64, len(first)))
    parsed = _parsed([logged.request_json[row] for row in rows.tolist()], names)
    kinds = {field.name: field.type for field in request.fields}
    return Asked(
        join_key=np.array([logged.join_key[row] for row in rows.tolist()], dtype=np.object_),
        as_of_us=logged.as_of_us[rows],
        columns={
            name: _column(list(map(attrgetter(f"f{place}"), parsed)), kinds[name]) for place, name in enumerate(names)
        },
        cuts={stream.name: _cuts(logged, stream)[logged.positions_code[rows]] for stream in streams},
        logged_us=None if logged.logged_us is None else logged.logged_us[rows],
    )


def _parsed(texts: Sequence[str], names: Sequence[str]) -> list[Any]:
    """Return every text's object with attributes f0, f1 … for the named fields, None where there is none."""
    fields = [(f"f{place}", Any, None) for place in range(len(names))]
    kind = msgspec.defstruct("Fields", fields, rename={f"f{place}": name for place, name in enumerate(names)})
    # One call for all: a tenth of what a call per row takes.
    found: list[Any] = msgspec.json.decode("[" + ",".join(texts) + "]", type=list[kind])  # type: ignore[valid-type]
    return found


# What JSON's values of each type are to Python, to which a boolean is an integer, too.
_WRITTEN_AS: Mapping[int, frozenset[type]] = {
    definition.FIELD_TYPE_BOOL: frozenset({bool}),
    definition.FIELD_TYPE_INT64: frozenset({int}),
    definition.FIELD_TYPE_FLOAT64: frozenset({float, int}),
    definition.FIELD_TYPE_STRING: frozenset({str}),
    definition.FIELD_TYPE_TIMESTAMP: frozenset({str}),
}


def _column(values: list[Any], kind: "definition.FieldType.ValueType") -> Column:
    """Return a field's values; one that was logged when the field had another type is null."""
    fitting = _WRITTEN_AS[kind]
    values = [value if type(value) in fitting else None for value in values]
    if kind == definition.FIELD_TYPE_TIMESTAMP:
        values = [None if value is None else _instant(value) for value in values]
    return column_of(values, kind)


def _instant(text: str) -> int | None:
    try:
        return parse_us(text)
    except ValueError:
        return None


def _cuts(logged: Logged, stream: definition.Stream) -> Ints:
    """Return int64[positions, partitions], as many partitions as the stream has or a prediction names."""
    topic = events_topic(stream.name)
    named = [
        {int(number): offset for number, offset in msgspec.json.decode(text).get(topic, {}).items()}
        for text in logged.positions
    ]
    width = max([stream.partitions, *(number + 1 for positions in named for number in positions)])
    cuts = np.zeros((len(named), width), dtype=np.int64)
    for place, positions in enumerate(named):
        cuts[place, list(positions)] = list(positions.values())
    return cuts
