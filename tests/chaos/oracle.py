"""What must hold after a run: every feature equals brute force over the log, every refused record lies in the dead
letters with its bytes, checkpoints and committed offsets are at the log's end."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tidemill_contracts.dead_letters import LETTER, OFFSET, PARTITION, REASON, TOPIC
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.finalise import FeatureValues
from tidemill_features.plan import compile_view
from tidemill_testkit.agreement import agree
from tidemill_testkit.brute_force import Answer, Logged, Wanted, brute_force, counted
from tidemill_testkit.ring_agreement import Meanings, wanted_of
from workload import POISON_HEADER

STATUSES = {1: "PRESENT", 2: "NULL", 3: "NOT_FOUND", 4: "OUTSIDE_MAX_AGE", 5: "BEYOND_KEPT"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MEANINGS: Meanings = {"amount > 1": lambda fields: fields["amount"] is not None and fields["amount"] > 1}
Place = tuple[int, int]


class WrongError(AssertionError):
    """An invariant does not hold."""


@dataclass
class StreamLog:
    """One stream's log, read by itself: what counts, and what must or may lie in the dead letters, by place.

    `definitions`: every one that the stream has had. What one refused, and a later one would not, lies in the dead
    letters for good where it was refused in time; sent again, it counts at its new place.
    """

    definitions: Sequence[definition.Stream]
    letters: Mapping[Place, set[bytes | None]] = field(default_factory=dict)
    events: list[Logged] = field(default_factory=list)
    poison: dict[Place, bytes | None] = field(default_factory=dict)
    # What one definition or another allows, but not the first.
    large: set[Place] = field(default_factory=set)
    values: dict[Place, bytes | None] = field(default_factory=dict)

    @property
    def stream(self) -> definition.Stream:
        """What is registered now."""
        return self.definitions[-1]

    @classmethod
    def read(
        cls, definitions: Sequence[definition.Stream], records: Iterable[Any], letters: Sequence[Any] = ()
    ) -> "StreamLog":
        """Return what the records of a topic say, in plain Python, and which of them its dead letters are of."""
        topic = events_topic(definitions[-1].name)
        log = cls(definitions, _by_place(topic, letters))
        # What came too late counts where it lies, once it is not too late any more.
        final = _by_place(topic, (letter for letter in letters if dict(letter.headers)[REASON] != b"too_late"))
        redriven: set[bytes] = set()
        for record in records:
            place, headers = (record.partition, record.offset), dict(record.headers)
            log.values[place] = record.value
            for letter in filter(None, headers.get(LETTER, b"").split(b",")):
                if letter in redriven:
                    raise WrongError(f"dead letter {letter!r} was sent again twice")
                redriven.add(letter)
            size = len(record.value or b"")
            if POISON_HEADER in headers or size > log.stream.max_event_bytes:
                log.poison[place] = record.value
                continue
            if size > definitions[0].max_event_bytes:
                log.large.add(place)
                if record.value in final.get(place, ()):
                    continue
            if headers.get("ce_type") != b"tidemill.watermark.v1":
                fields = json.loads(record.value)
                at_us = round((datetime.fromisoformat(fields["at"]) - _EPOCH).total_seconds() * 1e6)
                identity = headers.get("ce_id", b"%d" % record.offset).decode()
                log.events.append(Logged(record.partition, record.offset, at_us, identity, fields))
        return log

    def counted(self) -> list[Logged]:
        """Return the events that count."""
        return self._counted(self.stream, late_counts=self.stream.late_policy == definition.LATE_POLICY_CORRECT)

    def _counted(self, stream: definition.Stream, *, late_counts: bool) -> list[Logged]:
        window_us, lateness_us = stream.dedup_window_ms * 1000, stream.lateness_ms * 1000
        return counted(self.events, window_us, lateness_us, late_counts=late_counts)

    def refused(self) -> dict[Place, bytes | None]:
        """Return the records that must lie in the dead letters."""
        return self.poison | self._late(self.stream)

    def refused_once(self) -> dict[Place, bytes | None]:
        """Return the records that may lie in the dead letters, since some definition refuses them."""
        refused = self.poison | {place: self.values[place] for place in self.large}
        for stream in self.definitions:
            refused |= self._late(stream)
        return refused

    def _late(self, stream: definition.Stream) -> dict[Place, bytes | None]:
        if stream.late_policy != definition.LATE_POLICY_DEAD_LETTER:
            return {}
        late = {(event.partition, event.offset) for event in self._counted(stream, late_counts=True)}
        late -= {(event.partition, event.offset) for event in self._counted(stream, late_counts=False)}
        return {place: self.values[place] for place in late}

    def answers(self, view: definition.View, keys: Sequence[tuple[Any, ...]], as_of_us: int) -> list[list[Answer]]:
        """Return the features of each entity by brute force."""
        plan, wanted = compile_view(view, self.stream), wanted_of(view, self.stream, MEANINGS)
        by_key: dict[tuple[Any, ...], list[Logged]] = {}
        for event in self.counted():
            by_key.setdefault(tuple(event.fields[name] for name in view.entity), []).append(event)
        return [[brute_force(one, by_key.get(key, []), as_of_us, plan.max_age_us) for one in wanted] for key in keys]


def computed(features: Sequence[FeatureValues], row: int) -> Iterator[Answer]:
    """Yield one row's answers of the engine."""
    for feature in features:
        value = None if feature.nulls[row] else feature.values[row]
        coarse = feature.coarse is not None and bool(feature.coarse[row])
        yield Answer(STATUSES[int(feature.status[row])], value, coarse=coarse)


def compare(
    view: str, key: tuple[Any, ...], wanted: Sequence[Wanted], got: Iterable[Answer], want: Sequence[Answer]
) -> None:
    """Compare one entity's answers with brute force. Raises `WrongError`."""
    for one, given, answer in zip(wanted, got, want, strict=True):
        if not agree(one, given, answer):
            raise WrongError(f"{view} {key} {one.name}: {given}, but brute force says {answer}")


def check_letters(log: StreamLog, *, recreated: bool) -> None:
    """Check that the refused records lie in the dead letters, and no others, bytes untouched. Raises `WrongError`.

    Where the topic was `recreated`, there are letters of the log before too.
    """
    wanted, allowed, found = log.refused(), log.refused_once(), log.letters
    missing = sorted(place for place, value in wanted.items() if value not in found.get(place, ()))
    needless = [] if recreated else sorted(place for place in found if found[place] != {allowed.get(place, b"none")})
    if missing or needless:
        raise WrongError(f"dead letters of {log.stream.name}: missing {missing}, needless {needless}")


def _by_place(topic: str, letters: Iterable[Any]) -> dict[Place, set[bytes | None]]:
    """Return what was refused at each place."""
    found: dict[Place, set[bytes | None]] = {}
    for letter in letters:
        headers = dict(letter.headers)
        if headers[TOPIC].decode() != topic:
            raise WrongError(f"a letter of {headers[TOPIC]!r} among those of {topic}")
        found.setdefault((int(headers[PARTITION]), int(headers[OFFSET])), set()).add(letter.value)
    return found
