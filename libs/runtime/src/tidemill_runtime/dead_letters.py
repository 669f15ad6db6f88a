"""Dead letters: the original record, bytes untouched, with headers that say who refused it and why.

A letter that its topic would not take as it is goes compressed, and where that is not enough without its value: one
record must not end a service at every start.
"""

import asyncio
import zlib
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from operator import attrgetter
from time import time_ns

import structlog
from tidemill_contracts.dead_letters import (
    ATTEMPT,
    FIELD,
    FIRST_FAILED_AT,
    GROUP,
    MAX_LETTER_BYTES,
    MESSAGE,
    OFFSET,
    PARTITION,
    REASON,
    TOPIC,
    VALUE_BYTES,
    VALUE_SHA256,
    left_out,
)
from tidemill_contracts.instants import format_us
from tidemill_contracts.topics import dead_letter_topic

from tidemill_runtime import metrics
from tidemill_runtime.batches import Record, Refused
from tidemill_runtime.errors import Fatal, Poison
from tidemill_runtime.outgoing import Outgoing
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Producer
from tidemill_runtime.settings import KafkaSettings

_MAX_TEXT_CHARS = 1_000
_MAX_ATTEMPT_DIGITS = 9
# What Kafka adds to a record and its batch stays well below the difference.
_WHOLE_BYTES = MAX_LETTER_BYTES - 64 * 1024
# Compressing more would hold up the loop for seconds.
_MAX_COMPRESSED_BYTES = 4 * 1024 * 1024
# Of a letter without its value: how large its key and the record's own headers may be.
_KEPT_BYTES = 512 * 1024

# The records that were judged, by partition and in its order.
Judged = Mapping[Partition, Sequence[Record]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DeadLetterLimit:
    """How much may be refused before it is our fault and not the input's.

    `share` of the last `window` records (or more, after the first `window`), or `run` records refused one after
    another, in one partition or in whole batches, stop the service rather than drain its topic into the dead letters.
    """

    share: float = 0.5
    window: int = 10_000
    run: int = 1_000


@dataclass(frozen=True, slots=True)
class Tally:
    """What was seen and refused in the current window, and the refusals in a row.

    `since`: refused since a batch of which any record passed; `rows`: the refusals with which partitions ended, where
    there are any; `longest`: the longest row of which the last batch held a part.
    """

    seen: int = 0
    refused: int = 0
    since: int = 0
    rows: Mapping[Partition, int] = field(default_factory=dict)
    longest: int = 0

    def add(self, count: int, refused: Mapping[Partition, Collection[int]], judged: Judged, window: int) -> "Tally":
        """Return the tally after a batch of `count`; the past is halved once a window is full.

        `refused`: offsets by partition.
        """
        bad = sum(map(len, refused.values()))
        since = self.since + bad if bad == count else 0
        rows, longest = dict(self.rows), since
        for place, records in judged.items():
            before = rows.pop(place, 0)
            row, most = row_of(records, refused.get(place, ()), before)
            longest = max(longest, most)
            if row:
                rows[place] = row
        seen, total = self.seen + count, self.refused + bad
        if seen >= 2 * window:
            seen, total = seen // 2, total // 2
        return Tally(seen, total, since, rows, longest)

    def exceeds(self, limit: DeadLetterLimit) -> bool:
        """Whether the service should stop."""
        return self.longest >= limit.run or (self.seen >= limit.window and self.refused > limit.share * self.seen)


def row_of(records: Sequence[Record], refused: Collection[int], before: int = 0) -> tuple[int, int]:
    """Return how many refusals records end with, and the longest row among them; `before` precede the first record.

    `refused`: offsets; those of other records count for nothing.
    """
    row, longest, last = before, 0, -1
    for offset in sorted(refused):
        place = bisect_left(records, offset, key=attrgetter("offset"))
        if place == len(records) or records[place].offset != offset:
            continue
        row = row + 1 if place == last + 1 else 1
        longest, last = max(longest, row), place
    return (row if last == len(records) - 1 else 0), longest


def letter_headers(record: Record, refused: Refused, *, topic: str, group: str, now_us: int) -> list[tuple[str, bytes]]:
    """Return the original headers, untouched and first, followed by ours; a redriven record counts up."""
    # A header may be null.
    earlier: Mapping[str, bytes | None] = dict(record.headers)
    before = earlier.get(ATTEMPT) or b""
    attempt = int(before) + 1 if before.isdigit() and len(before) <= _MAX_ATTEMPT_DIGITS else 1
    ours = {
        TOPIC: topic.encode(),
        PARTITION: str(record.partition).encode(),
        OFFSET: str(record.offset).encode(),
        MESSAGE: _text(str(refused.poison)),
        REASON: refused.poison.reason.encode(),
        FIELD: _text(refused.poison.field),
        GROUP: group.encode(),
        ATTEMPT: str(attempt).encode(),
        FIRST_FAILED_AT: earlier.get(FIRST_FAILED_AT) or format_us(now_us).encode(),
    }
    return [*record.headers, *ours.items()]


def _text(text: str) -> bytes:
    # What it quotes of a record may be long, and half of a surrogate pair.
    return text[:_MAX_TEXT_CHARS].encode(errors="backslashreplace")


def _bytes(letter: Outgoing) -> int:
    headers = sum(len(name.encode()) + len(value or b"") for name, value in letter.headers)
    return len(letter.value or b"") + len(letter.key or b"") + headers


def _compressed_bytes(letter: Outgoing) -> int:
    """Return what is left of a letter at the least effort, which is no less than at the client's."""
    parts = [letter.key or b"", letter.value or b"", *(value or b"" for _, value in letter.headers)]
    return len(zlib.compress(b"".join(parts), level=1))


def without_value(letter: Outgoing, record: Record) -> Outgoing:
    """Return the letter with its value's length and SHA-256 instead; a large key and large headers are left out too."""
    value = record.value or b""
    facts = [(VALUE_BYTES, str(len(value)).encode()), (VALUE_SHA256, sha256(value).hexdigest().encode())]
    cut = replace(letter, value=None, headers=[*letter.headers, *facts])
    if _bytes(cut) > _KEPT_BYTES:
        cut = replace(cut, key=None, headers=cut.headers[len(record.headers) :])
    return cut


class DeadLetters:
    """Writes refused records and returns once Kafka has acknowledged them; given to the stream runner."""

    def __init__(
        self,
        producer: Producer,
        kafka: KafkaSettings,
        group: str,
        *,
        limit: DeadLetterLimit | None = None,
        topic: str | None = None,
    ) -> None:
        """Take the group that refuses; `topic` (logical): where letters go, whatever topic their records lay in."""
        self._producer = producer
        self._kafka = kafka
        self._group = group
        self._limit = limit or DeadLetterLimit()
        self._topic = topic
        self._tally = Tally()

    async def send(self, refused: Sequence[Refused], count: int, judged: Judged | None = None) -> None:
        """Write the refused records of a batch of `count`, none of them too.

        `judged`: those records, where it is known in which order they came. Raises `Fatal` past the limit, `Retryable`
        from Kafka.
        """
        offsets: dict[Partition, set[int]] = {}
        for record, _ in refused:
            place = Partition(self._kafka.logical(record.topic), record.partition)
            offsets.setdefault(place, set()).add(record.offset)
        tally = self._tally.add(count, offsets, judged or {}, self._limit.window)
        if refused and tally.exceeds(self._limit):
            raise Fatal(
                f"{tally.refused} of the last {tally.seen} records refused, {tally.longest} in a row: "
                f"the last for {refused[-1].poison.reason} ({refused[-1].poison})"
            )
        await self.write(refused)
        self._tally = tally

    async def write(self, refused: Sequence[Refused]) -> None:
        """Write refused records, however many. Raises `Retryable` from Kafka, `Fatal` where their topic takes none."""
        if not refused:
            return
        letters = [await self._letter(one) for one in refused]
        try:
            await self._producer.send_all(letters)
        except Poison as error:
            raise Fatal(
                f"{letters[0].topic} does not take a dead letter: {error}; "
                f"its max.message.bytes should be {MAX_LETTER_BYTES}"
            ) from error
        for one, letter in zip(refused, letters, strict=True):
            metrics.dead_letters.labels(self._group, letter.topic, one.poison.reason).inc()
            if left_out(letter.headers) is not None:
                metrics.dead_letters_cut.labels(self._group, letter.topic).inc()

    async def _letter(self, refused: Refused) -> Outgoing:
        record = refused.record
        origin = self._kafka.logical(record.topic)
        letter = Outgoing(
            topic=self._topic or dead_letter_topic(origin),
            value=record.value,
            key=record.key,
            headers=letter_headers(record, refused, topic=origin, group=self._group, now_us=time_ns() // 1000),
        )
        size = _bytes(letter)
        if size <= _WHOLE_BYTES:
            return letter
        if size <= _MAX_COMPRESSED_BYTES and await asyncio.to_thread(_compressed_bytes, letter) <= _WHOLE_BYTES:
            return replace(letter, compress=True)
        place = f"{origin}/{record.partition}/{record.offset}"
        log.warning("letter_without_value", group=self._group, place=place, bytes=size)
        return without_value(letter, record)
