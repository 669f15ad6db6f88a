"""Dead letters as values, and what became of them: a fold of `ingestion.dead-letter-actions.v1`; pure.

A letter is open until somebody sends it again or discards it. Whoever sends it claims it first, with a record in the
actions' topic; a claim whose run ended without a word is void after `LEASE_US`.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill_contracts import dead_letters as wire
from tidemill_contracts.ingestion.v1 import dead_letters_pb2 as messages
from tidemill_contracts.instants import format_us

from tidemill.clients.decoding import Record, text_of

ACTIONS_TOPIC = "ingestion.dead-letter-actions.v1"
OPEN, REDRIVING, REDRIVEN, DISCARDED, DUPLICATE = "open", "redriving", "redriven", "discarded", "duplicate"
STATES = (OPEN, REDRIVING, REDRIVEN, DISCARDED, DUPLICATE)
_FINAL = (REDRIVEN, DISCARDED, DUPLICATE)
LEASE_US = 60_000_000

# Logical topic, partition, offset.
Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter; `origin` is None where its headers do not say where it comes from."""

    place: Place
    origin: Place | None
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    # Microseconds since the epoch, UTC.
    written_us: int

    @property
    def id(self) -> str:
        return "/".join(map(str, self.place))

    @property
    def reason(self) -> str:
        return self.text(wire.REASON)

    @property
    def group(self) -> str:
        return self.text(wire.GROUP)

    @property
    def attempt(self) -> int:
        """How often it was refused."""
        found = self.text(wire.ATTEMPT)
        return int(found) if found.isdecimal() else 1

    @property
    def size(self) -> int:
        return len(self.value or b"") + sum(len(value or b"") for _, value in self.headers)

    def text(self, name: str) -> str:
        """Return one of its headers as text; empty where it has none."""
        return text_of(dict(self.headers).get(name) or b"")


class Newest:
    """The newest letters of those added, so many and so many bytes at most; pure."""

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._size = size
        self._held = 0
        # The oldest first: no two letters share a place.
        self._heap: list[tuple[int, Place, Letter]] = []

    def add(self, letter: Letter) -> None:
        """Take a letter in, and let go of the oldest where there are too many."""
        heapq.heappush(self._heap, (letter.written_us, letter.place, letter))
        self._held += letter.size
        while len(self._heap) > self._count or (self._held > self._size and len(self._heap) > 1):
            self._held -= heapq.heappop(self._heap)[2].size

    @property
    def letters(self) -> list[Letter]:
        """The letters that are held, oldest first."""
        return [letter for _, _, letter in sorted(self._heap)]


def letter_of(topic: str, record: Record) -> Letter:
    """Return a record of a dead-letter topic (logical name)."""
    headers = dict(record.headers)
    source, number, offset = (text_of(headers.get(name) or b"") for name in (wire.TOPIC, wire.PARTITION, wire.OFFSET))
    origin = (source, int(number), int(offset)) if source and number.isdecimal() and offset.isdecimal() else None
    place = (topic, record.partition, record.offset)
    return Letter(place, origin, record.key, record.value, tuple(record.headers), record.timestamp * 1000)


def place_of(text: str) -> Place:
    """Return the place that a letter's id names. Raises `ValueError`."""
    topic, partition, offset = text.rsplit("/", 2)
    return topic, int(partition), int(offset)


def letter_place(letter: Letter) -> Place | None:
    """Return the place of the letter that a letter's record was sent again from; None where it was sent once."""
    first = letter.text(wire.LETTER).split(",")[0]
    try:
        return place_of(first)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Fate:
    """What was done about a letter last."""

    state: str
    actor: str = ""
    reason: str = ""
    at_us: int = 0
    run_id: str = ""
    # Where its record was sent to: partition and offset.
    sent: tuple[int, int] | None = None
    # Of a claim: where the partitions of the record's topic ended, by (topic, partition).
    before: Mapping[tuple[str, int], int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what a person wants to know of it."""
        found: dict[str, Any] = {"state": self.state}
        if self.state != OPEN:
            found |= {"actor": self.actor, "why": self.reason, "at": format_us(self.at_us)}
        if self.sent is not None:
            found |= {"sent_partition": self.sent[0], "sent_offset": self.sent[1]}
        return found


_OPEN = Fate(OPEN)


class Fates:
    """What became of every letter; `fold` takes the actions in the order of their topic."""

    def __init__(self) -> None:
        self._fates: dict[Place, Fate] = {}

    def of(self, place: Place) -> Fate:
        """Return a letter's fate."""
        return self._fates.get(place, _OPEN)

    def is_open(self, place: Place, now_us: int) -> bool:
        """Say whether a letter is nobody's: neither done with nor claimed a moment ago."""
        fate = self.of(place)
        return fate.state == OPEN or (fate.state == REDRIVING and now_us - fate.at_us > LEASE_US)

    def fold(self, action: messages.DeadLetterAction, at_us: int) -> None:
        """Take in the next action, written at `at_us`: the first claim holds, and what is done stays done."""
        before = {(end.topic, end.partition): end.next_offset for end in action.before}
        for letter in action.letters:
            place = (action.topic, letter.partition, letter.offset)
            known = self.of(place)
            held = action.action == REDRIVING and not self.is_open(place, at_us) and known.run_id != action.run_id
            if known.state in _FINAL or held:
                continue
            sent = (letter.sent_partition, letter.sent_offset) if letter.HasField("sent_offset") else None
            self._fates[place] = Fate(action.action, action.actor, action.reason, at_us, action.run_id, sent, before)

    def abandoned(self, now_us: int) -> dict[Place, Fate]:
        """Return the letters whose claim is void: they may have been sent, and may not."""
        return {
            place: fate
            for place, fate in self._fates.items()
            if fate.state == REDRIVING and now_us - fate.at_us > LEASE_US
        }


@dataclass(frozen=True, slots=True)
class Item:
    """A refused record with all of its letters: one for each consumer group that refused it."""

    letters: tuple[Letter, ...]

    @property
    def first(self) -> Letter:
        return self.letters[0]

    @property
    def origin(self) -> Place | None:
        return self.first.origin

    @property
    def groups(self) -> list[str]:
        return sorted({letter.group for letter in self.letters})

    @property
    def bridged(self) -> bool:
        """Whether it lay in a topic of its producer's own, which has no prefix."""
        return any(group.startswith(wire.BRIDGE_GROUP) for group in self.groups)

    @property
    def attempt(self) -> int:
        return max(letter.attempt for letter in self.letters)

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two records the same event."""
        return wire.identity_of(self.first.headers, self.origin or self.first.place)


def items_of(letters: Iterable[Letter]) -> list[Item]:
    """Return refused records in the order of their first letters; a letter without origin stands alone.

    A topic that was made anew has the old places again, so that a place alone does not say which record it was.
    """
    found: dict[tuple[Place, bytes | None, bytes | None], list[Letter]] = {}
    for letter in letters:
        found.setdefault((letter.origin or letter.place, letter.key, letter.value), []).append(letter)
    return [Item(tuple(together)) for together in found.values()]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant; what is empty or None selects everything."""

    topics: tuple[str, ...]
    reason: str | None = None
    group: str | None = None
    since_us: int | None = None
    places: frozenset[Place] = frozenset()

    def holds(self, letter: Letter) -> bool:
        """Say whether a letter is meant."""
        return (
            (self.reason is None or letter.reason == self.reason)
            and (self.group is None or letter.group == self.group)
            and (self.since_us is None or letter.written_us >= self.since_us)
            and (not self.places or letter.place in self.places)
        )
