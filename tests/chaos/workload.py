"""Streams, views and records of one run: hot and rare keys, retries, late events, poison, gaps in time."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

from tidemill_contracts.cloudevents import EVENT_TYPE, Attributes, to_headers, watermark
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us
from tidemill_contracts.topics import events_topic
from tidemill_runtime.outgoing import Outgoing

SECOND_US = 1_000_000
# 2013-06-04T12:00:00Z
NOON_US = 1_370_347_200 * SECOND_US
POISON_HEADER = "chaos-poison"
_INT, _FLOAT, _TEXT = definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_STRING
FIELDS = {"id": _TEXT, "who": _TEXT, "zone": _INT, "amount": _FLOAT, "units": _INT, "label": _TEXT}
POLICIES = (definition.LATE_POLICY_DROP, definition.LATE_POLICY_CORRECT, definition.LATE_POLICY_DEAD_LETTER)
_NUMBERS, _ANY = ("amount", "units"), ("amount", "units", "label")


class Kind(NamedTuple):
    """Of an aggregate: the expressions it may take, the type of its result (None: the expression's), its options."""

    expressions: Sequence[str]
    result: Any = None
    options: Mapping[str, Any] = MappingProxyType({})


AGGREGATES = {
    "COUNT": Kind(("", "amount"), _INT),
    "SUM": Kind(_NUMBERS),
    "MEAN": Kind(_NUMBERS, _FLOAT),
    "MIN": Kind(_NUMBERS),
    "MAX": Kind(_NUMBERS),
    "LAST": Kind(_ANY),
    "FIRST": Kind(_ANY),
    "RATE": Kind(("",), _FLOAT),
    "TIME_SINCE_LAST": Kind(("",), _FLOAT),
    "HISTOGRAM": Kind(_NUMBERS, _INT, {"edges": [-1.0, 0.15, 2.0]}),
    "VARIANCE": Kind(("units",), _FLOAT),
    "STD": Kind(_NUMBERS, _FLOAT),
    "SKEW": Kind(("units",), _FLOAT),
    "DECAYED_SUM": Kind(_NUMBERS, _FLOAT, {"half_life_ms": 10_000}),
    "EWMA": Kind(_NUMBERS, _FLOAT, {"half_life_ms": 7_300}),
    "LAST_K": Kind(_ANY, None, {"k": 3}),
    "APPROX_DISTINCT": Kind(_ANY, _INT),
    "QUANTILE": Kind(_NUMBERS, _FLOAT, {"quantile": 0.9}),
    "TOP_K": Kind(("label", "units"), None, {"k": 2}),
}
WINDOWS_S = (12, 20, 60, 90, 600)
ENTITIES = (["who"], ["who"], ["zone"], ["who", "zone"])
HOT, RARE = "hot", [f"rare-{number}" for number in range(6)]
ZONES = (1, 2, 3)
POISONS = (b"", b"\xff\xfe", b'{"id": ', b'["no object"]', b'{"id": "x", "zone": "no number"}')


@dataclass(frozen=True)
class Shape:
    """The streams and views of a run."""

    streams: Sequence[definition.Stream]
    views: Sequence[definition.View]


def random_shape(chance: Random, seed: int) -> Shape:
    """Draw one or two streams and one or two views on each."""
    streams = [_stream(chance, name) for name in ("paid", "seen")[: chance.choice([1, 1, 2])]]
    views = [_view(chance, stream.name, number) for stream in streams for number in range(chance.choice([1, 2]))]
    _sharpen(Random(f"edges of {seed}"), views)
    return Shape(streams, views)


def _sharpen(chance: Random, views: Sequence[definition.View]) -> None:
    """Make some views exact; where the number of events alone decides about a slot's room, some of them overflow."""
    for view in views:
        exact, room = chance.random() < 0.5, chance.choice([1, 1, 2, 0])
        if exact:
            view.accuracy = definition.ACCURACY_EXACT
            view.edge_events = 0 if any(one.expression == "label" for one in view.features) else room


def _stream(chance: Random, name: str) -> definition.Stream:
    return definition.Stream(
        name=name,
        fields=[
            *(definition.Field(name=n, type=kind, nullable=n != "id") for n, kind in FIELDS.items()),
            definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
        ],
        key_field="id",
        time_field="at",
        partitions=chance.choice([1, 2, 3]),
        lateness_ms=chance.choice([5, 20, 60]) * 1000,
        late_policy=chance.choice(POLICIES),
        dedup_window_ms=chance.choice([10, 60, 300]) * 1000,
        max_event_bytes=4_096,
    )


def _view(chance: Random, stream: str, number: int) -> definition.View:
    return definition.View(
        name=f"{stream}-view-{number}",
        stream=stream,
        entity=chance.choice(ENTITIES),
        max_age_ms=chance.choice([0, 40_000, 400_000]),
        accuracy=definition.ACCURACY_HOP,
        budget_bytes=4_000_000,
        features=[_aggregation(chance, place) for place in range(chance.randint(2, 5))],
    )


def _aggregation(chance: Random, place: int) -> definition.Aggregation:
    # The plain ones are drawn more often.
    name = chance.choice(list(AGGREGATES)[: chance.choice([6, len(AGGREGATES)])])
    expressions, result, options = AGGREGATES[name]
    expression = chance.choice(expressions)
    return definition.Aggregation(
        name=f"{name.lower()}_{place}",
        function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{name}"),
        window_ms=chance.choice(WINDOWS_S) * 1000,
        expression=expression,
        where=chance.choice(["", "", "amount > 1"]),
        type=result or FIELDS[expression],
        **options,
    )


class Producing:
    """Makes the records of a run, one after another, by its own chance; keeps what producers may send again."""

    def __init__(self, seed: int, streams: Sequence[definition.Stream]) -> None:
        self._chance = Random(f"records of {seed}")
        self._streams = streams
        self._number = 0
        self._now_us = {stream.name: NOON_US for stream in streams}
        self._sent: list[Outgoing] = []
        # Of every event, for reads.
        self.times: list[int] = [NOON_US]
        self._partitions = {stream.name: stream.partitions for stream in streams}

    def records(self, count: int) -> list[Outgoing]:
        """Return the next records."""
        return [record for _ in range(count) for record in self._next()]

    def grow(self, stream: str, partitions: int) -> None:
        """Send to so many partitions from now on."""
        self._partitions[stream] = partitions

    def forget(self) -> None:
        """Send nothing again that lies in a log that is gone."""
        self._sent.clear()

    def _next(self) -> Iterator[Outgoing]:
        chance, stream = self._chance, self._chance.choice(self._streams)
        kind = chance.random()
        partition = chance.randrange(self._partitions[stream.name])
        topic = events_topic(stream.name)
        if kind < 0.04:
            yield Outgoing(topic, chance.choice(POISONS), headers=[(POISON_HEADER, b"1")], partition=partition)
        elif kind < 0.06:
            headers = watermark(stream.name, self._now_us[stream.name])
            yield Outgoing(topic, b"", headers=headers, partition=partition)
        elif kind < 0.2 and self._sent:
            # A producer that retries, soon or late, to the partition that its key names.
            yield chance.choice(self._sent[-20:] if chance.random() < 0.8 else self._sent)
        else:
            record = self._event(stream, partition)
            self._sent.append(record)
            yield record

    def _event(self, stream: definition.Stream, partition: int) -> Outgoing:
        chance, name = self._chance, stream.name
        self._now_us[name] += chance.choice([0, 1, 1, 1, 2, 3]) * SECOND_US + chance.choice([0, 0, 1, 500_000])
        if chance.random() < 0.01:
            self._now_us[name] += 700 * SECOND_US
        late_us = chance.choice([0] * 8 + [1, 3, 15, 50, 200]) * SECOND_US
        at_us = self._now_us[name] - late_us
        self.times.append(at_us)
        self._number += 1
        fields = {
            "id": f"{name}-{self._number}",
            "who": chance.choice([HOT, HOT, HOT, *RARE[:2], chance.choice(RARE), None]),
            "zone": chance.choice([*ZONES, None]),
            "amount": chance.choice([None, 0.1, 0.2, -0.0, 1e16, -1e16, chance.uniform(-9, 9)]),
            "units": chance.choice([None, chance.randint(-5, 5)]),
            "label": chance.choice([None, "", "a", "bé", "a long text " * 5]),
        }
        headers = to_headers(Attributes(str(fields["id"]), "chaos", EVENT_TYPE, at_us))
        if chance.random() < 0.1:
            # Without an identity of its own, an event is its place in the log.
            headers = []
        value = json.dumps({**fields, "at": format_us(at_us)}).encode()
        if chance.random() < 0.1:
            # More than the stream allows at first.
            value += b" " * chance.choice([4_096, 4_096, 20_000])
        return Outgoing(events_topic(name), value, key=b"k", headers=headers, partition=partition)


def keys_of(view: definition.View) -> list[tuple[Any, ...]]:
    """Return every entity of a view, and one that has no events."""
    values: dict[str, list[Any]] = {"who": [HOT, *RARE, "nobody"], "zone": [*ZONES]}
    found: list[tuple[Any, ...]] = [()]
    for name in view.entity:
        found = [(*key, value) for key in found for value in values[name]]
    return found


def moments(seed: int, times: Sequence[int]) -> list[int]:
    """Return instants to read at: after all, in the middle, on edges of buckets, where exact windows cut full ones."""
    chance, newest = Random(f"moments of {seed}"), max(times)
    middle = chance.choice(times)
    # Rings hold little of the past: where the newest events crowd.
    crowded, _ = Counter(time // (5 * SECOND_US) for time in times[-20:]).most_common(1)[0]
    cut = crowded * 5 * SECOND_US + 2_500_000
    return [
        newest,
        newest + chance.choice([10, 50, 300, 5_000]) * SECOND_US,
        middle,
        middle // (5 * SECOND_US) * 5 * SECOND_US,
        cut,
        cut + chance.choice(WINDOWS_S) * SECOND_US,
    ]
