"""Logged predictions as rows of a training set: what was asked, when, and up to which offsets it saw; pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us
from tidemill_contracts.topics import events_topic
from tidemill_features.columns import column_of
from tidemill_features.expressions import Column

from tidemill_training.dataset import Asked

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Logged:
    """Columns of the archived predictions of one pipeline, in the order of the log.

    `positions_code[i]` is the place in `positions` of row i's: JSON, topic to {partition: next offset}; rows that read
    the rings together share one.
    """

    prediction_id: Sequence[str]
    join_key: Sequence[str]
    as_of_us: Ints
    request_json: Sequence[str]
    positions: Sequence[str]
    positions_code: Ints


def predicted(
    logged: Logged, request: definition.Stream, streams: Sequence[definition.Stream], names: Sequence[str]
) -> Asked:
    """Return each logged prediction once (the first record of its id), with the named fields of its request.

    A partition that a prediction's positions do not name was not seen: its cut is 0.
    """
    once = list({name: place for place, name in reversed(list(enumerate(logged.prediction_id)))}.values())
    rows = np.sort(np.array(once, dtype=np.int64))
    parsed = [json.loads(logged.request_json[row]) for row in rows]
    kinds = {field.name: field.type for field in request.fields}
    return Asked(
        join_key=np.array([logged.join_key[row] for row in rows], dtype=np.object_),
        as_of_us=logged.as_of_us[rows],
        columns={name: _column(parsed, name, kinds[name]) for name in names},
        cuts={stream.name: _cuts(logged, stream)[logged.positions_code[rows]] for stream in streams},
    )


def _column(parsed: Sequence[Mapping[str, Any]], name: str, kind: "definition.FieldType.ValueType") -> Column:
    values = [row.get(name) for row in parsed]
    if kind == definition.FIELD_TYPE_TIMESTAMP:
        values = [None if value is None else parse_us(value) for value in values]
    return column_of(values, kind)


def _cuts(logged: Logged, stream: definition.Stream) -> Ints:
    """Return int64[positions, partitions]."""
    topic = events_topic(stream.name)
    cuts = np.zeros((len(logged.positions), stream.partitions), dtype=np.int64)
    for place, text in enumerate(logged.positions):
        for number, offset in json.loads(text).get(topic, {}).items():
            if int(number) < stream.partitions:
                cuts[place, int(number)] = offset
    return cuts
