"""Has an aiokafka consumer hand over what it fetched as columns, instead of making an object of every record.

aiokafka offers no way to reach the bytes of a fetch. So the consumer's own method that reads an answer is run with
other names for the two classes that it makes records with; `docs/decisions/0030` says why. Which release of aiokafka
this fits is pinned, and tests compare with what the consumer says without it.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any, Self

from aiokafka import TopicPartition
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from tidemill_runtime.batches import Fetch, Record

from tidemill_feature.decode import HEADERS
from tidemill_feature.record_columns import CorruptRecordsError, Region, columns_of

# Fewer are made into objects: a column has its price too.
FEW = 128
# base offset, length, leader epoch, magic, checksum, attributes, last offset, first and newest time, producer's id,
# epoch and sequence, count
_HEAD = struct.Struct(">qiibIhiqqqhii")
_LENGTH_END, _CHECKED_FROM, _MAGIC = 12, 21, 2
_CODEC, _APPEND_TIME, _CONTROL = 0x07, 0x08, 0x20
_DECODERS = {1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: zstd_decode}


def column_fetch(consumer: Any) -> Fetch:
    """Return how columns are fetched from a started consumer, which reads uncommitted and decodes nothing itself.

    What a partition has ready comes at once, whatever the number of records that is asked for.
    """
    names = {**vars(fetcher), "MemoryRecords": _Fetched, "PartitionRecords": _Sequences}
    own = consumer._fetcher
    own._proc_fetch_request = MethodType(FunctionType(type(own)._proc_fetch_request.__code__, names), own)

    async def fetch(timeout_ms: int, max_records: int) -> Mapping[Any, Sequence[Record]]:
        ready = await consumer.getmany(timeout_ms=timeout_ms)
        return {place: records for place, (records,) in ready.items()}

    return fetch


class _Fetched:
    """Stands for aiokafka's MemoryRecords: the bytes of one partition in an answer."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def has_next(self) -> bool:
        return bool(MemoryRecords(self.data).has_next())

    def size_in_bytes(self) -> int:
        return len(self.data)


class _Sequences:
    """Stands for aiokafka's PartitionRecords: an iterator over at most one sequence of records."""

    def __init__(self, place: TopicPartition, fetched: _Fetched, aborted: Any, fetch_offset: int, *rest: Any) -> None:
        self.next_fetch_offset = fetch_offset
        self._place, self._fetched, self._rest = place, fetched, (aborted, *rest)
        self._read = self._sequences()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Sequence[Record]:
        return next(self._read)

    def _sequences(self) -> Iterator[Sequence[Record]]:
        place, first = self._place, self.next_fetch_offset
        batches = _batches(self._fetched.data)
        if batches is None:
            aborted, *rest = self._rest
            plain = fetcher.PartitionRecords(place, MemoryRecords(self._fetched.data), aborted, first, *rest)
            records: Sequence[Record] = list(plain)
            self.next_fetch_offset = plain.next_fetch_offset
        else:
            buffer, regions, self.next_fetch_offset = batches
            try:
                records = columns_of((place.topic, place.partition), buffer, regions, first, HEADERS)
            except (CorruptRecordsError, IndexError) as error:
                raise CorruptRecordException(f"{place}: {error}") from error
        if records:
            yield records


def _batches(data: bytes) -> tuple[bytes, list[Region], int] | None:
    """Return the records' bytes without compression, where they lie, and the offset behind them.

    None where there are few, or where they are of an older layout. Raises `CorruptRecordException`.
    """
    heads = []
    at = records = 0
    while at + _HEAD.size <= len(data):
        head = _HEAD.unpack_from(data, at)
        end = at + _LENGTH_END + head[1]
        # A fetch may break off within a batch.
        if end > len(data):
            break
        if head[3] != _MAGIC:
            return None
        heads.append((head, at, end))
        records += head[12]
        at = end
    if records < FEW:
        return None
    whole, regions = memoryview(data), []
    # Where a batch is compressed, all are put together anew; else they stay where they lie.
    unpacked = bytearray() if any(head[5] & _CODEC for head, _, _ in heads) else None
    for head, at, end in heads:
        if calc_crc32c(whole[at + _CHECKED_FROM : end]) != head[4]:
            raise CorruptRecordException("a batch's checksum is not that of its bytes")
        base, attributes, first_ms, newest_ms, count = head[0], head[5], head[7], head[8], head[12]
        if attributes & _CONTROL:
            continue
        start, stop = at + _HEAD.size, end
        if unpacked is not None:
            part = bytes(whole[start:end])
            start = len(unpacked)
            unpacked += _DECODERS[attributes & _CODEC](part) if attributes & _CODEC else part
            stop = len(unpacked)
        regions.append(Region(start, stop, count, base, first_ms, newest_ms if attributes & _APPEND_TIME else None))
    last = heads[-1][0]
    return data if unpacked is None else bytes(unpacked), regions, last[0] + last[6] + 1
