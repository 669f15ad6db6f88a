"""The offline log's tables as data: names, columns, and which archived records count; pure.

One append-only table per topic. Columns that begin with an underscore say where a row comes from; the rest is the
event. The offsets that a table holds stand in the summary of its newest snapshot, written by the same commit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic

from tidemill_features.admission import Rules, duplicate_mask, late_mask, newest_so_far
from tidemill_features.plan import ViewPlan

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

NAMESPACE = "tidemill"
# Where the catalogue in PostgreSQL says the newest metadata of each table of a namespace, $1, is.
CATALOGUE_QUERY = """
SELECT table_name, metadata_location FROM iceberg.iceberg_tables WHERE catalog_name = $1 AND table_namespace = $1
"""
PREDICTIONS_TOPIC = "serving.predictions.v1"
OUTCOMES_TOPIC = "monitoring.outcomes.v1"
# Key of the snapshot summary: JSON, partition to next offset.
OFFSETS_PROPERTY = "tidemill.offsets"
# Property of a table whose `_available_us` is when records came to the log; in older tables it is the pipeline clock at
# a commit, which may be weeks later.
ARRIVAL_PROPERTY, ARRIVAL = "tidemill.available", "log"
# Property of a table: the id that Kafka gave its topic, in hexadecimal.
TOPIC_ID_PROPERTY = "tidemill.topic-id"
# Between source and id of an identity; and what begins one whose parts are in hexadecimal.
_JOINER, _SPELT = b"\x1f", b"\x1e"

BOOL, LONG, DOUBLE, STRING, INSTANT = "bool", "long", "double", "string", "instant"
KINDS: Mapping[int, str] = {
    definition.FIELD_TYPE_BOOL: BOOL,
    definition.FIELD_TYPE_INT64: LONG,
    definition.FIELD_TYPE_FLOAT64: DOUBLE,
    definition.FIELD_TYPE_STRING: STRING,
    definition.FIELD_TYPE_TIMESTAMP: INSTANT,
}


@dataclass(frozen=True, slots=True)
class TableColumn:
    """One column; `kind` is one of the constants of this module."""

    name: str
    kind: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows of a table are wanted; whole files and row groups are passed over by what they say of themselves.

    `at_least`: smallest wanted value by column; `equal`: the one wanted value by column; `among`: the wanted values by
    column; `spans`: by partition the offsets from which and up to which (exclusive, None without end); a partition that
    is not named is not wanted.
    """

    at_least: Mapping[str, int] = field(default_factory=dict)
    equal: Mapping[str, str] = field(default_factory=dict)
    among: Mapping[str, Sequence[str]] = field(default_factory=dict)
    spans: Mapping[int, tuple[int, int | None]] | None = None


# Where a row comes from. `_identity` names the event: equal for two records of the same one.
ORIGIN = (
    TableColumn("_partition", LONG, required=True),
    TableColumn("_offset", LONG, required=True),
    TableColumn("_identity", STRING, required=True),
    TableColumn("_event_us", LONG, required=True),
    # When the record was in the log at the latest, by Kafka's time for it.
    TableColumn("_available_us", LONG, required=True),
    TableColumn("_schema_hash", STRING),
)
PREDICTION_COLUMNS = (
    TableColumn("prediction_id", STRING, required=True),
    TableColumn("pipeline", STRING, required=True),
    TableColumn("join_key", STRING, required=True),
    TableColumn("as_of_us", LONG, required=True),
    TableColumn("model_version", LONG, required=True),
    TableColumn("probability", DOUBLE, required=True),
    # JSON: logical topic to {partition: next offset}, what the rings held when they were read.
    TableColumn("positions", STRING, required=True),
    TableColumn("request_json", STRING, required=True),
    TableColumn("definition_hash", STRING),
    # JSON of ServedFeatures: numbers (null for NaN; infinities as strings), categories ("" for null), statuses.
    TableColumn("features", STRING),
)
OUTCOME_COLUMNS = (
    TableColumn("prediction_id", STRING, required=True),
    TableColumn("revision", LONG, required=True),
    TableColumn("state", LONG, required=True),
    TableColumn("label", DOUBLE),
    TableColumn("label_time_us", LONG, required=True),
    TableColumn("pipeline", STRING, required=True),
    TableColumn("join_key", STRING, required=True),
    TableColumn("as_of_us", LONG, required=True),
    TableColumn("model_version", LONG, required=True),
    TableColumn("probability", DOUBLE, required=True),
)


def table_name(topic: str) -> str:
    """Return a topic's table within the namespace.

    >>> table_name("events.flight-arrived"), table_name("serving.predictions.v1")
    ('events_flight_arrived', 'serving_predictions_v1')
    """
    return topic.replace(".", "_").replace("-", "_")


def event_columns(stream: definition.Stream) -> tuple[TableColumn, ...]:
    """Return the columns of a stream's table; every field is optional, so that one may be added or widened later."""
    return ORIGIN + tuple(TableColumn(field.name, KINDS[field.type]) for field in stream.fields)


def columns_of(topic: str, streams: Mapping[str, definition.Stream]) -> tuple[TableColumn, ...]:
    """Return the columns of a topic's table. Raises `KeyError` for a topic that is not archived."""
    by_topic: dict[str, tuple[TableColumn, ...]] = {
        PREDICTIONS_TOPIC: ORIGIN + PREDICTION_COLUMNS,
        OUTCOMES_TOPIC: ORIGIN + OUTCOME_COLUMNS,
    }
    by_topic.update((events_topic(name), event_columns(stream)) for name, stream in streams.items())
    return by_topic[topic]


def summary_of(offsets: Mapping[int, int]) -> dict[str, str]:
    """Return the snapshot property that says which offsets a table holds."""
    return {OFFSETS_PROPERTY: json.dumps({str(number): offset for number, offset in sorted(offsets.items())})}


def offsets_of(summary: Mapping[str, str]) -> dict[int, int]:
    """Return next offset by partition from a snapshot's properties; empty where they name none."""
    return {int(number): int(offset) for number, offset in json.loads(summary.get(OFFSETS_PROPERTY, "{}")).items()}


def available_us(timestamp_ms: int) -> int:
    """Return the last microsecond of Kafka's time for a record: somewhere in that millisecond it came to the log.

    >>> available_us(7)
    7999
    """
    return timestamp_ms * 1000 + 999


def identity_text(identity: tuple[bytes, bytes] | int) -> str:
    """Return an identity as one string, another one for every other: (source, id), or the record's own offset.

    What is no UTF-8, or could be read as another pair, is spelt in hexadecimal.

    >>> identity_text((b"pos-7", b"1")), identity_text(7), identity_text((b"pos-7", bytes([255])))
    ('pos-7\\x1f1', '#7', '\\x1e706f732d37\\x1fff')
    """
    if isinstance(identity, int):
        return f"#{identity}"
    raw = _JOINER.join(identity)
    if raw.count(_JOINER) > 1 or raw.startswith(_SPELT):
        return _spelt(identity)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _spelt(identity)


def _spelt(identity: tuple[bytes, bytes]) -> str:
    return _SPELT.decode() + _JOINER.decode().join(part.hex() for part in identity)


def counting(partition: Ints, offset: Ints, identity: Ints, event_us: Ints, rules: Rules) -> Bools:
    """Return which archived records count, as the online role decided: no duplicate, and not late unless corrected.

    Rows in offset order within each partition; `identity`: equal numbers for equal identities.
    """
    counts = np.zeros(len(event_us), np.bool_)
    for number in np.unique(partition):
        mine = np.flatnonzero(partition == number)
        times = event_us[mine]
        newest = newest_so_far(times)
        refused = duplicate_mask(identity[mine], offset[mine], times, newest, rules)
        if not rules.late_counts:
            refused |= late_mask(times, newest, rules.lateness_us)
        counts[mine] = ~refused
    return counts


def reach_us(plan: ViewPlan) -> int:
    """Return how far behind a row's `as_of` the events of a view may lie that its values depend on."""
    longest_us = max([ring.hop_us * ring.slots for ring in plan.rings], default=0)
    return max(longest_us, plan.max_age_us)
