"""What the stream runner hands to a pipeline and takes back; pure values."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from tidemill_runtime.errors import Poison
from tidemill_runtime.positions import Offsets, Partition

S = TypeVar("S")
E = TypeVar("E")
D = TypeVar("D")
P = TypeVar("P")

_POLL_MS = 200


class Record(Protocol):
    """An aiokafka ConsumerRecord, unmodified: bytes as they lay in the log.

    `topic` is the physical name (with the prefix); `timestamp` is milliseconds since the epoch.
    """

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


@dataclass(frozen=True, slots=True)
class PlainRecord:
    """One record by itself, where no aiokafka ConsumerRecord was made of it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Headed(Sequence[D]):
    """Records that know their headers without being looked at one by one."""

    __slots__ = ()

    def has(self, name: str) -> bool:
        """Return whether any record has a header."""
        raise NotImplementedError


class Refused(NamedTuple):
    """A record that will never be right, and why; the runner dead-letters it before it commits."""

    record: Record
    poison: Poison


@dataclass(frozen=True, slots=True)
class Batch:
    """Records by partition, each list in offset order and not empty.

    `read`: the offset after the last record that was read, where it was kept from the group.
    """

    partitions: Mapping[Partition, Sequence[Record]]
    read: Offsets = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(len(records) for records in self.partitions.values())

    @property
    def next_offsets(self) -> dict[Partition, int]:
        """The offset after the last record that was read of each partition."""
        ends = {partition: records[-1].offset + 1 for partition, records in self.partitions.items()}
        return {**ends, **self.read}

    def __iter__(self) -> Iterator[Record]:
        for records in self.partitions.values():
            yield from records

    def decode(self, decoder: Callable[[Record], D]) -> tuple[dict[Partition, list[D]], list[Refused]]:
        """Return what `decoder` makes of the records, by partition, and those for which it raised `Poison`."""
        decoded: dict[Partition, list[D]] = {}
        refused: list[Refused] = []
        for partition, records in self.partitions.items():
            values = decoded.setdefault(partition, [])
            for record in records:
                try:
                    values.append(decoder(record))
                except Poison as poison:
                    refused.append(Refused(record, poison))
        return decoded, refused


def portions(fetched: Mapping[P, Sequence[Record]], limit: int) -> Iterator[dict[P, Sequence[Record]]]:
    """Cut what was fetched into parts of at most so many records, each partition's in their order.

    >>> list(portions({"a": "12345", "b": "6"}, 2))
    [{'a': '12'}, {'a': '34'}, {'a': '5', 'b': '6'}]
    """
    part: dict[P, Sequence[Record]] = {}
    room = limit
    for place, records in fetched.items():
        first = 0
        while first < len(records):
            part[place] = records[first : first + room]
            first += len(part[place])
            room -= len(part[place])
            if not room:
                yield part
                part, room = {}, limit
    if part:
        yield part


@dataclass(frozen=True, slots=True)
class Step(Generic[S, E]):
    """What one batch led to: the new state, effects to apply, records refused before any of their effects."""

    state: S
    effects: E
    refused: Sequence[Refused] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """The partitions that this worker now holds, all of them.

    `start`: where reading would begin (the committed offset, else the log's beginning); `begin` and `end`: what the log
    holds now.
    """

    start: Offsets
    begin: Offsets
    end: Offsets


@dataclass(frozen=True, slots=True)
class Restored(Generic[S]):
    """State for an assignment; `offsets` overrides where reading starts, for the partitions it names."""

    state: S
    offsets: Offsets = field(default_factory=dict)


# Waits up to so many milliseconds for about so many records, and returns what is there by partition.
Fetch = Callable[[int, int], Awaitable[Mapping[Any, Sequence[Record]]]]


class Pipeline(Generic[S, E]):
    """What a service gives the runner; `step` is pure, the rest touches the world.

    Effects must be idempotent: after a crash, a batch whose effects were applied may come again.
    """

    # Whether `restore` says for every partition where to read from; the group's own offsets are then not believed.
    keeps_offsets = False
    # Whether a log that ends before what the group has read is read from its beginning: it is another one, or has lost
    # its end, and what is read twice changes nothing. Else the service ends, for somebody to say what to do.
    begins_anew = False

    def fetch_from(self, consumer: Any) -> Fetch:
        """Return how records are fetched from a consumer that has just been started."""
        return lambda timeout_ms, max_records: consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)

    def released(self) -> None:
        """Take note that what `restore` returned is no longer held: the partitions may be another worker's by now."""

    async def restore(self, assignment: Assignment) -> Restored[S]:
        """Build the state for these partitions; called at every assignment and after `StateLost`.

        What was held before is gone: another worker may have moved it on.
        """
        raise NotImplementedError

    def step(self, state: S, batch: Batch, now_us: int) -> Step[S, E]:
        """Fold one batch; no clock, no I/O, no await. Anything raised here ends the process."""
        raise NotImplementedError

    async def apply(self, effects: E) -> None:
        """Write the effects. Raise `Retryable` to be called again with the same ones."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Make everything applied so far durable; offsets are committed only after this returned."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Bounds and timing of one consumer group.

    `fetch_wait_ms`: how long the broker holds an idle fetch; it answers as soon as there are `fetch_min_bytes`, so that
    only how often an idle consumer asks hangs on it. `flush_every_ms`: 0 flushes after every batch; otherwise by
    interval, on request, on rebalance and at the end. `behind_flush_ms`: how long a flush is put off while there is
    more to read. `retry_limit_s`: how long `Retryable` is retried before it is fatal. `letters_of`: the group whose
    dead letters this one shares, where it decides alike; its own unless told.
    """

    group: str
    letters_of: str = ""
    max_records: int = 5_000
    fetch_wait_ms: int = 500
    fetch_min_bytes: int = 1
    fetch_partition_bytes: int = 4 * 1024 * 1024
    flush_every_ms: int = 0
    behind_flush_ms: int = 0
    commit_every_ms: int = 500
    retry_limit_s: float = 300.0
    stall_s: float = 45.0
    session_ms: int = 10_000
    hop_delay_ms: int = 0
    seed: int = 0

    @property
    def poll_ms(self) -> int:
        """How long one wait for records lasts; a stop and a due flush are noticed after at most this."""
        return min(_POLL_MS, self.flush_every_ms or _POLL_MS)

    def consumer_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of the aiokafka consumer, the group aside."""
        return {
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "fetch_max_wait_ms": self.fetch_wait_ms,
            "fetch_min_bytes": self.fetch_min_bytes,
            "max_partition_fetch_bytes": self.fetch_partition_bytes,
            "session_timeout_ms": self.session_ms,
            "heartbeat_interval_ms": self.session_ms // 4,
            "rebalance_timeout_ms": 2 * self.session_ms,
            "metadata_max_age_ms": 5_000,
        }
