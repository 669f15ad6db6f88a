"""Records of a partition as columns over the bytes in which Kafka sent them; pure.

A record of its own costs several objects per header; here a header that somebody asks for is a column of places in the
buffer, found for all records at once. A record is made where one is asked for.

Source of the layout: Apache Kafka protocol guide, "Messages: Record Batch", magic 2.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from tidemill_runtime.batches import Headed, PlainRecord

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

# An int64 takes ten bytes of seven bits; what takes more than nine is no length, and no distance in time either.
_LONGEST_SHIFT = 63
# The eighth bit says that the number goes on.
_NUMBER_BITS = 0x7F


class CorruptRecordsError(ValueError):
    """The bytes are not what the layout says."""


class Region(NamedTuple):
    """Where the records of one batch lie, uncompressed, and what they are counted from.

    `written_ms`: the time of all of them, where the broker sets it; else None, and each has its own after `first_ms`.
    """

    start: int
    end: int
    records: int
    base_offset: int
    first_ms: int
    written_ms: int | None


class Span(NamedTuple):
    """Where a field of each record lies; a negative size means that the record has none."""

    start: Ints
    size: Ints

    def take(self, rows: Any) -> "Span":
        """Return the places of some records."""
        return Span(self.start[rows], self.size[rows])


@dataclass(frozen=True, slots=True)
class RecordColumns(Headed[PlainRecord]):
    """Records of one partition, in offset order.

    `timestamp`: milliseconds since the epoch. `named`: the headers that were looked for; of a header that a record has
    twice, the last. `rest`: where a record's headers begin.
    """

    topic: str
    partition: int
    buffer: bytes
    offset: Ints
    timestamp: Ints
    key: Span
    value: Span
    rest: Ints
    named: Mapping[str, Span]

    def __len__(self) -> int:
        return len(self.offset)

    @overload
    def __getitem__(self, index: int) -> PlainRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "RecordColumns": ...
    def __getitem__(self, index: int | slice) -> "PlainRecord | RecordColumns":
        if isinstance(index, slice):
            return self.take(index)
        return PlainRecord(
            self.topic,
            self.partition,
            int(self.offset[index]),
            int(self.timestamp[index]),
            self._bytes(self.key, index),
            self._bytes(self.value, index),
            _headers(self.buffer, int(self.rest[index])),
        )

    def __iter__(self) -> Iterator[PlainRecord]:
        return map(self.__getitem__, range(len(self)))

    def take(self, rows: "slice | Bools") -> "RecordColumns":
        """Return some of the records; the bytes are shared."""
        return replace(
            self,
            offset=self.offset[rows],
            timestamp=self.timestamp[rows],
            key=self.key.take(rows),
            value=self.value.take(rows),
            rest=self.rest[rows],
            named={name: span.take(rows) for name, span in self.named.items()},
        )

    def values(self) -> list[bytes]:
        """Return the values; an absent one is empty."""
        return self._column(self.value)

    def header(self, name: str) -> list[bytes]:
        """Return a header of each record, empty where a record has none; `name` is one that was looked for."""
        span = self.named[name]
        if len(self) and self._equal(span, text := self._bytes(span, 0) or b"").all():
            return [text] * len(self)
        return self._column(span)

    def has(self, name: str) -> bool:
        """Return whether any record has a header."""
        return bool((self.named[name].size >= 0).any())

    def where(self, name: str, text: bytes) -> Bools:
        """Return which records have a header with this text."""
        return self._equal(self.named[name], text)

    def _equal(self, span: Span, text: bytes) -> Bools:
        return _reads(np.frombuffer(self.buffer, np.uint8), span.start, span.size == len(text), text)

    def _column(self, span: Span) -> list[bytes]:
        buffer, ends = self.buffer, (span.start + np.maximum(span.size, 0)).tolist()
        return [buffer[start:end] for start, end in zip(span.start.tolist(), ends, strict=True)]

    def _bytes(self, span: Span, index: int) -> bytes | None:
        start, size = int(span.start[index]), int(span.size[index])
        return None if size < 0 else self.buffer[start : start + size]


def columns_of(
    place: tuple[str, int], buffer: bytes, regions: Sequence[Region], from_offset: int, names: Sequence[str]
) -> RecordColumns:
    """Return the records in some regions of a buffer that lie at `from_offset` or behind, and places of named headers.

    Raises `CorruptRecordsError`.
    """
    starts, ends = _bounds(buffer, regions)
    data, counts = np.frombuffer(buffer, np.uint8), [region.records for region in regions]
    passed, at = _varints(data, starts + 1)
    distance, at = _varints(data, at)
    own = np.array([region.written_ms is None for region in regions], np.int64)
    from_ms = np.array(
        [region.first_ms if region.written_ms is None else region.written_ms for region in regions], np.int64
    )
    timestamp = np.repeat(from_ms, counts) + np.repeat(own, counts) * passed
    offset = np.repeat(np.array([region.base_offset for region in regions], np.int64), counts) + distance
    key, at = _field(data, at)
    value, at = _field(data, at)
    named, end = _named(data, at, names)
    if (end != ends).any():
        raise CorruptRecordsError("a record does not end where its length says")
    found = RecordColumns(*place, buffer, offset, timestamp, key, value, at, named)
    return found if not len(offset) or offset[0] >= from_offset else found.take(offset >= from_offset)


def _bounds(buffer: bytes, regions: Sequence[Region]) -> tuple[Ints, Ints]:
    """Return where each record begins behind its length, and where it ends."""
    starts: list[int] = []
    ends: list[int] = []
    for region in regions:
        at = region.start
        for _ in range(region.records):
            low, high = buffer[at], buffer[at + 1]
            # A record of 64 to 8,191 bytes, as nearly all are, has a length of two bytes.
            if low > _NUMBER_BITS >= high:
                length, at = (low & _NUMBER_BITS | high << 7) >> 1, at + 2
            else:
                length, at = _varint(buffer, at)
            starts.append(at)
            at += length
            ends.append(at)
        if at != region.end:
            raise CorruptRecordsError("a batch does not end where its records do")
    return np.array(starts, np.int64), np.array(ends, np.int64)


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    shift = raw = 0
    while True:
        byte = buffer[at]
        at += 1
        raw |= (byte & _NUMBER_BITS) << shift
        if byte <= _NUMBER_BITS:
            return (raw >> 1) ^ -(raw & 1), at
        shift += 7
        if shift > _LONGEST_SHIFT:
            raise CorruptRecordsError("a number does not end")


def _varints(data: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """Return the zigzag number at each place, and the place behind it."""
    byte = data.take(at, mode="clip").astype(np.int64)
    raw, at, shift = byte & _NUMBER_BITS, at + 1, 0
    more = byte > _NUMBER_BITS
    while more.any():
        shift += 7
        if shift >= _LONGEST_SHIFT:
            raise CorruptRecordsError("a number does not end")
        byte = data.take(at, mode="clip").astype(np.int64) * more
        raw |= (byte & _NUMBER_BITS) << shift
        at = at + more
        more = byte > _NUMBER_BITS
    return (raw >> 1) ^ -(raw & 1), at


def _field(data: Bytes, at: Ints) -> tuple[Span, Ints]:
    """Return where the field lies whose length stands at each place, and the place behind it."""
    size, start = _varints(data, at)
    return Span(start, size), start + np.maximum(size, 0)


def _named(data: Bytes, at: Ints, names: Sequence[str]) -> tuple[dict[str, Span], Ints]:
    """Return where the named headers lie, from where the headers begin, and where they end."""
    texts = {name: name.encode() for name in names}
    named = {name: Span(at.copy(), np.full(len(at), -1, np.int64)) for name in names}
    left, at = _varints(data, at)
    if (left < 0).any():
        raise CorruptRecordsError("a record has less than no headers")
    rows = np.flatnonzero(left)
    at = at.copy()
    while len(rows):
        name, behind = _field(data, at[rows])
        if (name.size < 0).any():
            raise CorruptRecordsError("a header has no name")
        value, behind = _field(data, behind)
        at[rows] = behind
        for wanted, text in texts.items():
            right = _reads(data, name.start, name.size == len(text), text)
            if right.any():
                named[wanted].start[rows[right]] = value.start[right]
                named[wanted].size[rows[right]] = value.size[right]
        left[rows] -= 1
        rows = rows[left[rows] > 0]
    return named, at


def _reads(data: Bytes, start: Ints, candidates: Bools, text: bytes) -> Bools:
    """Return at which of the candidates' places a text stands."""
    found = candidates.copy()
    rows = np.flatnonzero(candidates)
    if len(rows) and text:
        places = start[rows, None] + np.arange(len(text))
        found[rows] = (data.take(places, mode="clip") == np.frombuffer(text, np.uint8)).all(axis=1)
    return found


def _headers(buffer: bytes, at: int) -> list[tuple[str, bytes]]:
    """Return the headers that begin at a place; a null value stays None, as aiokafka has it."""
    count, at = _varint(buffer, at)
    headers: list[Any] = []
    for _ in range(count):
        size, at = _varint(buffer, at)
        name, at = buffer[at : at + size].decode(), at + size
        size, at = _varint(buffer, at)
        headers.append((name, buffer[at : at + size] if size >= 0 else None))
        at += max(size, 0)
    return headers
