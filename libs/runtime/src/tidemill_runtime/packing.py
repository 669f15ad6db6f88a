"""Packing many records into one batch per partition: a future and a call per record would cost most of sending it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from random import choice
from typing import Any

from aiokafka.partitioner import murmur2

from tidemill_runtime.outgoing import Outgoing

# Fewer records are handed over one by one: they then share batches with those of other callers.
PACKED_FROM = 32


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of one partition (an aiokafka BatchBuilder) and which records, by number, lie in it."""

    topic: str
    partition: int
    builder: Any
    numbers: list[int] = field(default_factory=list)

    def add(self, number: int, record: Outgoing) -> bool:
        """Put a record in; False where the batch is full."""
        taken = self.builder.append(
            timestamp=record.timestamp_ms, key=record.key, value=record.value, headers=list(record.headers)
        )
        if taken is not None:
            self.numbers.append(number)
        return taken is not None


@lru_cache(maxsize=65_536)
def _hash(key: bytes) -> int:
    # The client's is plain Python, and keys come again and again.
    return int(murmur2(key)) & 0x7FFFFFFF


def partition_of(key: bytes | None, partitions: Sequence[int], available: Sequence[int]) -> int:
    """Return the partition of a key as Kafka's own clients choose it (murmur2); without a key any that is available."""
    if key is None:
        return choice(available or partitions)
    return partitions[_hash(key) % len(partitions)]


def packable(records: Sequence[Outgoing], max_batch_bytes: int) -> bool:
    """Return whether packing pays, no record is to go alone, and none could be too large for a batch."""
    largest = max_batch_bytes // 4
    return len(records) >= PACKED_FROM and all(
        len(record.value or b"") <= largest and not record.compress for record in records
    )


def pack(
    records: Sequence[Outgoing], partitions: Mapping[str, Sequence[int]], new_batch: Callable[[], Any]
) -> Iterator[Packed]:
    """Yield the records as batches, those of one partition in order; a full batch is followed by another.

    `partitions`: by topic, every partition's number, ascending.
    """
    batches: dict[tuple[str, int], list[Packed]] = {}
    for number, record in enumerate(records):
        known = partitions[record.topic]
        chosen = partition_of(record.key, known, known) if record.partition is None else record.partition
        begun = batches.setdefault((record.topic, chosen), [])
        if not begun or not begun[-1].add(number, record):
            begun.append(Packed(record.topic, chosen, new_batch()))
            begun[-1].add(number, record)
    # The first of every partition first: the client takes a partition's next one only when its last is under way.
    for turn in zip_longest(*batches.values()):
        yield from filter(None, turn)
