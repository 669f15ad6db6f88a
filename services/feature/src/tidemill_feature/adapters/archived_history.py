"""What of a stream the offline log holds, chunk by chunk, for building views that Kafka can no longer feed."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import pyarrow as pa
from sqlalchemy.exc import OperationalError
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.admission import rules_of
from tidemill_features.columns import Coded
from tidemill_features.expressions import Column
from tidemill_features.iceberg import Archive
from tidemill_features.log_columns import LogRows, Recent, Strings
from tidemill_features.log_table import LogPartition, LogTable
from tidemill_runtime.errors import Retryable

from tidemill_feature.replaying import Chunk

P = ParamSpec("P")
R = TypeVar("R")

# What lies in memory at once: rows of one partition within so many offsets.
CHUNK_OFFSETS = 65_536
# Chunks that are read while one is folded: reading one takes about as long as folding it, and mostly without the GIL.
READ_AHEAD = 2
_PLACE = ("_partition", "_offset", "_event_us", "_identity")


class ArchivedHistory:
    """Reads tables as they were when reading began; blocks in threads of its own."""

    def __init__(self, dsn: str, warehouse: str) -> None:
        self._dsn = dsn
        self._warehouse = warehouse

    async def chunks(
        self, stream: definition.Stream, names: Sequence[str], partition: int, span: tuple[int, int], *, topic_id: bytes
    ) -> AsyncIterator[Chunk]:
        """Yield what the table holds of a span of offsets, in their order; the next chunks are read meanwhile.

        Nothing where the table is of another topic of that name: whoever archives has not set it aside yet.
        """
        table = await _translated(self._open, stream)
        if table is None or table.topic_id not in (None, topic_id):
            return
        kinds = {field.name: field.type for field in stream.fields if field.name in names}
        rows = await _translated(table.partition, (*_PLACE, *kinds), partition, span)
        reader = _Reader(rows, kinds, Recent(rules_of(stream)))
        first, end = span
        ahead: deque[asyncio.Task[Chunk]] = deque()
        newest: asyncio.Task[Chunk] | None = None
        try:
            for at in range(first, end, CHUNK_OFFSETS):
                chunk = await ahead.popleft() if len(ahead) == READ_AHEAD else None
                newest = reader.start((at, min(end, at + CHUNK_OFFSETS)), newest)
                ahead.append(newest)
                if chunk is not None:
                    yield chunk
            while ahead:
                yield await ahead.popleft()
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    def _open(self, stream: definition.Stream) -> LogTable | None:
        return Archive(self._dsn, self._warehouse).table(events_topic(stream.name))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one partition, chunk after chunk. `kinds`: the fields that are wanted."""

    rows: LogPartition
    kinds: Mapping[str, int]
    recent: Recent

    def start(self, span: tuple[int, int], before: "asyncio.Task[Chunk] | None") -> "asyncio.Task[Chunk]":
        """Read a chunk; `before`: the one that repeats are looked for after."""
        return asyncio.create_task(self._chunk(span, before))

    async def _chunk(self, span: tuple[int, int], before: "asyncio.Task[Chunk] | None") -> Chunk:
        chunk, identities = await _translated(self._read, span)
        if before is not None:
            await asyncio.wait([before])
        repeats = await asyncio.to_thread(self.recent.follow, identities, chunk.offset, chunk.event_us)
        return replace(chunk, repeats=repeats)

    def _read(self, span: tuple[int, int]) -> tuple[Chunk, pa.Array]:
        """Return a chunk whose repeats are not known yet, and its identities."""
        rows = LogRows.before(self.rows.read(*span), {})
        offset, event_us, identities = rows.ints("_offset"), rows.ints("_event_us"), rows.raw("_identity")
        columns, coded = dict[str, Column](), dict[str, Coded]()
        for name, kind in self.kinds.items():
            if kind != definition.FIELD_TYPE_STRING:
                columns[name] = rows.column(name, kind)
                continue
            columns[name], words = rows.texts(name)
            if words is not None:
                coded[name] = words
        return Chunk(offset, event_us, Strings(identities), columns, span[1], coded=coded), identities


async def _translated(call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call in a thread of its own.

    Raises `Retryable` while the catalogue or a file is away: one that was read for long may have been merged meanwhile.
    """
    try:
        return await asyncio.to_thread(call, *arguments, **named)
    except OperationalError as error:
        raise Retryable(f"PostgreSQL (Iceberg catalogue): {error.orig!r}") from error
    except OSError as error:
        raise Retryable(f"the offline log's files: {error}") from error
