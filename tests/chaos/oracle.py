"""What must hold after a run: every feature equals brute force over the log, every refused record lies in the dead
letters with its bytes, checkpoints and committed offsets are at the log's end."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.plan import compile_view
from tidemill_testkit.agreement import agree
from tidemill_testkit.brute_force import Answer, Logged, Wanted, brute_force, counted
from workload import POISON_HEADER

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FUNCTIONS = {
    value: name.removeprefix("AGGREGATION_FUNCTION_").lower() for name, value in definition.AggregationFunction.items()
}
_PREDICATES: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "amount > 1": lambda fields: fields["amount"] is not None and fields["amount"] > 1,
}
Place = tuple[int, int]


class WrongError(AssertionError):
    """An invariant does not hold."""


@dataclass
class StreamLog:
    """One stream's log, read by itself: what counts, and what must lie in the dead letters, by place."""

    stream: definition.Stream
    events: list[Logged] = field(default_factory=list)
    poison: dict[Place, bytes | None] = field(default_factory=dict)
    values: dict[Place, bytes | None] = field(default_factory=dict)

    @classmethod
    def read(cls, stream: definition.Stream, records: Iterable[Any]) -> "StreamLog":
        """Return what the records of a topic say, in plain Python."""
        log = cls(stream)
        for record in records:
            place, headers = (record.partition, record.offset), dict(record.headers)
            log.values[place] = record.value
            if POISON_HEADER in headers:
                log.poison[place] = record.value
            elif headers.get("ce_type") != b"tidemill.watermark.v1":
                fields = json.loads(record.value)
                at_us = round((datetime.fromisoformat(fields["at"]) - _EPOCH).total_seconds() * 1e6)
                identity = headers.get("ce_id", b"%d" % record.offset).decode()
                log.events.append(Logged(record.partition, record.offset, at_us, identity, fields))
        return log

    def counted(self, *, late_counts: bool | None = None) -> list[Logged]:
        """Return the events that count; `late_counts` overrides the stream's policy."""
        correct = self.stream.late_policy == definition.LATE_POLICY_CORRECT
        return counted(
            self.events,
            self.stream.dedup_window_ms * 1000,
            self.stream.lateness_ms * 1000,
            late_counts=correct if late_counts is None else late_counts,
        )

    def refused(self) -> dict[Place, bytes | None]:
        """Return the records that must lie in the dead letters."""
        refused = dict(self.poison)
        if self.stream.late_policy == definition.LATE_POLICY_DEAD_LETTER:
            late = {(e.partition, e.offset) for e in self.counted(late_counts=True)}
            late -= {(e.partition, e.offset) for e in self.counted(late_counts=False)}
            refused |= {place: self.values[place] for place in late}
        return refused

    def answers(self, view: definition.View, keys: Sequence[tuple[Any, ...]], as_of_us: int) -> list[list[Answer]]:
        """Return the features of each entity by brute force."""
        plan, wanted = compile_view(view, self.stream), wanted_of(view, self.stream)
        by_key: dict[tuple[Any, ...], list[Logged]] = {}
        for event in self.counted():
            by_key.setdefault(tuple(event.fields[name] for name in view.entity), []).append(event)
        return [[brute_force(one, by_key.get(key, []), as_of_us, plan.max_age_us) for one in wanted] for key in keys]


def wanted_of(view: definition.View, stream: definition.Stream) -> list[Wanted]:
    """Return a view's features as brute force takes them."""
    plan, by_name = compile_view(view, stream), {part.name: part for part in view.features}
    found = []
    for feature in plan.features:
        # Some aggregations have several features: name.0, name.1 …
        part, ring = by_name[feature.name.partition(".")[0]], plan.rings[feature.ring]
        found.append(
            Wanted(
                feature.name,
                _FUNCTIONS[part.function],
                feature.window_us,
                ring.hop_us,
                ring.slots,
                value=itemgetter(part.expression) if part.expression else None,
                where=_PREDICATES[part.where] if part.where else None,
                exact_age=not part.window_ms,
                element=feature.element,
                edges=tuple(part.edges),
                quantile=part.quantile,
                half_life_us=part.half_life_ms * 1000,
            )
        )
    return found


def compare(
    view: str, key: tuple[Any, ...], wanted: Sequence[Wanted], got: Iterable[tuple[str, Any]], want: Sequence[Answer]
) -> None:
    """Compare one entity's (status, value) pairs with brute force. Raises `WrongError`."""
    for one, (status, value), answer in zip(wanted, got, want, strict=True):
        if not agree(one, Answer(status, value), answer):
            raise WrongError(f"{view} {key} {one.name}: {status} {value!r}, but brute force says {answer}")


def check_letters(log: StreamLog, letters: Iterable[Any], *, recreated: bool) -> None:
    """Check that exactly the refused records lie in the dead letters, bytes untouched. Raises `WrongError`.

    Where the topic was `recreated`, there are letters of the log before too.
    """
    found: dict[Place, set[bytes | None]] = {}
    topic = events_topic(log.stream.name)
    for letter in letters:
        headers = dict(letter.headers)
        if headers["__connect.errors.topic"].decode() != topic:
            raise WrongError(f"a letter of {headers['__connect.errors.topic']!r} among those of {topic}")
        place = (int(headers["__connect.errors.partition"]), int(headers["__connect.errors.offset"]))
        found.setdefault(place, set()).add(letter.value)
    wanted = log.refused()
    missing = sorted(place for place, value in wanted.items() if value not in found.get(place, ()))
    needless = [] if recreated else sorted(place for place in found if found[place] != {wanted.get(place, b"none")})
    if missing or needless:
        raise WrongError(f"dead letters of {topic}: missing {missing}, needless {needless}")
