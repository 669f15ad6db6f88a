"""Whether dead letters would be accepted now, and why not."""

import asyncio
import base64
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from tidemill_contracts import dead_letters as wire
from tidemill_contracts.canonical import from_json
from tidemill_contracts.cloudevents import WATERMARK_TYPE
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2
from tidemill_contracts.instants import parse_us
from tidemill_contracts.reasons import Reason

from tidemill.clients.decoding import Decoder, Record
from tidemill.clients.letters import Item, Letter, Place, letter_place
from tidemill.clients.topics import KafkaTarget, read_from

# How many of a partition's newest records tell its newest event time.
TAIL_RECORDS = 100
_EVENTS = "events."

# Asks ingestion: stream and events in, a verdict for each.
Check = Callable[[str, Sequence[ingestion_pb2.Event]], Sequence[ingestion_pb2.Verdict]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What would become of one refused record; `reason` is empty where it would be accepted."""

    item: Item
    reason: str = ""
    field: str = ""
    message: str = ""


class Judge:
    """Judges records by what is registered now."""

    def __init__(
        self,
        target: KafkaTarget,
        check: Check,
        stream: Callable[[str], definition.Stream],
        *,
        max_attempts: int,
        allow_late: bool,
        check_bridged: Check | None = None,
    ) -> None:
        """Take what asks ingestion and what finds a registered stream; both are only called for users' streams.

        `check_bridged` asks what a bridge would do; without it records of bridged topics are left alone.
        """
        self._target = target
        self._check = check
        self._check_bridged = check_bridged
        self._stream = stream
        self._max_attempts = max_attempts
        self._allow_late = allow_late
        self._newest: dict[str, dict[int, int]] = {}

    async def judge(self, items: Sequence[Item]) -> list[Judgement]:
        """Return a judgement for each, in order."""
        found: dict[int, Judgement] = {}
        by_stream: dict[tuple[str, bool], list[int]] = {}
        for index, item in enumerate(items):
            judgement, topic = self._at_once(item), _stream_topic(item)
            if judgement is None and topic.startswith(_EVENTS):
                by_stream.setdefault((topic.removeprefix(_EVENTS), item.bridged), []).append(index)
            else:
                found[index] = judgement or _decoded(item, topic)
        for (stream, bridged), indices in by_stream.items():
            check = self._check_bridged if bridged else self._check
            assert check is not None
            judged = await self._events(stream, [items[index] for index in indices], check)
            found.update(zip(indices, judged, strict=True))
        return [found[index] for index in range(len(items))]

    def _at_once(self, item: Item) -> Judgement | None:
        if item.origin is None:
            message = "its headers do not say which record it was: discard it"
            return Judgement(item, Reason.MISSING_FIELD, "", message)
        if item.first.key is None and item.first.value is None and wire.left_out(item.first.headers) is None:
            return Judgement(item, Reason.EMPTY, "", "a record without key and value says nothing: discard it")
        if wire.left_out(item.first.headers) is not None:
            place = "/".join(map(str, item.origin))
            message = f"its value did not fit into a letter: send what lies at {place} again yourself, or discard it"
            return Judgement(item, Reason.OVERSIZED, "", message)
        if item.bridged and self._check_bridged is None:
            message = f"it lay in {item.origin[0]}, a topic of its producer's own: --bridged sends it there again"
            return Judgement(item, Reason.UNSUPPORTED, "", message)
        if item.first.reason == Reason.TOO_LATE:
            message = (
                "sent again it would be later still: raise the stream's lateness and apply it, "
                "and views that are built anew count it where it lies"
            )
            return Judgement(item, Reason.TOO_LATE, "", message)
        if item.attempt >= self._max_attempts:
            message = f"refused {item.attempt} times already: discard it, or raise --max-attempts"
            return Judgement(item, Reason.TOO_MANY_ATTEMPTS, "", message)
        return None

    async def _events(self, stream: str, items: Sequence[Item], check: Check) -> list[Judgement]:
        declared = await asyncio.to_thread(self._stream, stream)
        events = [ingestion_pb2.Event(data=_data(item.first)) for item in items]
        verdicts = await asyncio.to_thread(check, stream, events)
        newest = await self._newest_of(stream, declared)
        return [
            Judgement(item, verdict.reason, verdict.field, verdict.message)
            if verdict.outcome != ingestion_pb2.OUTCOME_ACCEPTED
            else self._late(item, declared, newest)
            for item, verdict in zip(items, verdicts, strict=True)
        ]

    def _late(self, item: Item, stream: definition.Stream, newest: Mapping[int, int]) -> Judgement:
        assert item.origin is not None
        event_us = event_time_us(item.first, stream.time_field)
        # A bridge chooses the partition: the foremost one decides.
        last_us = max(newest.values(), default=None) if item.bridged else newest.get(item.origin[1])
        corrects = stream.late_policy == definition.LATE_POLICY_CORRECT
        if event_us is None or last_us is None or corrects or self._allow_late:
            return Judgement(item)
        behind_us = last_us - event_us
        if behind_us <= stream.lateness_ms * 1000:
            return Judgement(item)
        policy = "drop it" if stream.late_policy != definition.LATE_POLICY_DEAD_LETTER else "refuse it again"
        message = (
            f"it lies {behind_us / 3_600_000_000:,.1f} h behind its partition's newest event, "
            f"so that features would {policy}: raise the stream's lateness or declare it "
            'late="correct" and apply it; --late sends it for those who do not mind'
        )
        return Judgement(item, Reason.TOO_LATE, stream.time_field, message)

    async def _newest_of(self, stream: str, declared: definition.Stream) -> dict[int, int]:
        """Return each partition's newest event time, as far as its last records tell."""
        if stream not in self._newest:
            newest: dict[int, int] = {}
            reading = read_from(self._target, _EVENTS + stream, lambda _, end: end - TAIL_RECORDS)
            async with aclosing(reading) as records:
                async for record in records:
                    if dict(record.headers).get("ce_type") == WATERMARK_TYPE.encode():
                        continue
                    time_us = event_time_us(record, declared.time_field)
                    if time_us is not None:
                        newest[record.partition] = max(time_us, newest.get(record.partition, time_us))
            self._newest[stream] = newest
        return self._newest[stream]


def event_time_us(record: Record | Letter, time_field: str) -> int | None:
    """Return when an event happened: what its body says; None where it says nothing readable."""
    try:
        return parse_us(json.loads(_data(record))[time_field])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _stream_topic(item: Item) -> str:
    """Return the topic that a record is for: its own, or that of the stream into which it is bridged."""
    if item.bridged:
        return item.first.place[0].removesuffix(".dlq")
    return item.origin[0] if item.origin else ""


def _data(record: Record | Letter) -> bytes:
    """Return an event's data, out of its envelope where it is a structured CloudEvent."""
    value = record.value or b""
    kind = {name.lower(): raw for name, raw in record.headers}.get("content-type") or b""
    if not kind.strip().lower().startswith(b"application/cloudevents+json"):
        return value
    try:
        envelope = json.loads(value)
        if "data_base64" in envelope:
            return base64.b64decode(envelope["data_base64"], validate=True)
        return json.dumps(envelope["data"], ensure_ascii=False).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return value


def _decoded(item: Item, topic: str) -> Judgement:
    """Judge a record of Tidemill's own topics: whether it is such a message."""
    known, raw = Decoder.of(topic).topic, item.first.value or b""
    if known is None or known.encoding not in ("protobuf", "json") or known.message == "cloudevents.json":
        return Judgement(item)
    descriptor = descriptor_pool.Default().FindMessageTypeByName(known.message)
    message = message_factory.GetMessageClass(descriptor)()
    try:
        if known.encoding == "protobuf":
            message.ParseFromString(raw)
        else:
            from_json(raw, message)
    except (ValueError, DecodeError) as error:
        return Judgement(item, Reason.UNDECODABLE, "", f"no {known.message}: {error}")
    return Judgement(item)


class Repeats:
    """Finds the same event among dead letters: a producer's repeat, refused like the first.

    What was redriven and refused once more is no repeat; it is told apart by the letter that it came from.
    """

    def __init__(self) -> None:
        self._redriven: dict[tuple[str, tuple[str, str], str], set[Place]] = {}
        self._origins: dict[Place, Place] = {}
        self._parents: dict[Place, Place] = {}

    def know(self, letter: Letter) -> None:
        """Take in a letter, whatever became of it."""
        if letter.origin is not None:
            self._origins[letter.place] = letter.origin
            if (parent := letter_place(letter)) is not None:
                self._parents[letter.origin] = parent

    def sent(self, item: Item) -> None:
        """Take in what was redriven, or is about to be."""
        for key in self._keys(item):
            assert item.origin is not None
            self._redriven.setdefault(key, set()).add(item.origin)

    def holds(self, item: Item) -> bool:
        """Say whether the same event was redriven from other letters, for all the groups of this one."""
        own: set[Place] = set()
        place = item.origin
        while place is not None and place not in own:
            own.add(place)
            parent = self._parents.get(place)
            place = self._origins.get(parent) if parent else None
        keys = self._keys(item)
        return bool(keys) and all(self._redriven.get(key, set()) - own for key in keys)

    @staticmethod
    def _keys(item: Item) -> Collection[tuple[str, tuple[str, str], str]]:
        return [] if item.origin is None else [(item.origin[0], item.identity, group) for group in item.groups]
