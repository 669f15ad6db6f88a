"""What of a stream the offline log holds, chunk by chunk, for building views that Kafka can no longer feed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import OperationalError
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.admission import rules_of
from tidemill_features.archive import Filter
from tidemill_features.columns import Coded
from tidemill_features.expressions import Column
from tidemill_features.iceberg import Archive
from tidemill_features.log_columns import LogRows, Recent, Strings
from tidemill_features.log_table import LogTable
from tidemill_runtime.errors import Retryable

from tidemill_feature.replaying import Chunk

P = ParamSpec("P")
R = TypeVar("R")

# What lies in memory at once: rows of one partition within so many offsets.
CHUNK_OFFSETS = 65_536
_PLACE = ("_partition", "_offset", "_event_us", "_identity")


class ArchivedHistory:
    """Reads tables as they were when reading began; blocks in threads of its own."""

    def __init__(self, dsn: str, warehouse: str) -> None:
        self._dsn = dsn
        self._warehouse = warehouse

    async def chunks(
        self, stream: definition.Stream, names: Sequence[str], partition: int, span: tuple[int, int]
    ) -> AsyncIterator[Chunk]:
        """Yield what the table holds of a span of offsets, in their order; the next chunk is read meanwhile."""
        table = await _translated(self._open, stream)
        if table is None:
            return
        reader = _Reader(
            table,
            {field.name: field.type for field in stream.fields if field.name in names},
            partition,
            Recent(rules_of(stream)),
        )
        first, end = span
        spans = [(at, min(end, at + CHUNK_OFFSETS)) for at in range(first, end, CHUNK_OFFSETS)]
        ahead: asyncio.Task[Chunk] | None = None
        try:
            for place in range(len(spans)):
                chunk = await (ahead or reader.start(spans[place]))
                ahead = reader.start(spans[place + 1]) if place + 1 < len(spans) else None
                yield chunk
        finally:
            if ahead is not None:
                ahead.cancel()

    def _open(self, stream: definition.Stream) -> LogTable | None:
        return Archive(self._dsn, self._warehouse).table(events_topic(stream.name))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one partition, chunk after chunk. `kinds`: the fields that are wanted."""

    table: LogTable
    kinds: Mapping[str, int]
    partition: int
    recent: Recent

    def start(self, span: tuple[int, int]) -> "asyncio.Task[Chunk]":
        return asyncio.create_task(_translated(self._read, span))

    def _read(self, span: tuple[int, int]) -> Chunk:
        found = self.table.read((*_PLACE, *self.kinds), Filter(spans={self.partition: span}))
        rows = LogRows.before(found, {})
        offset, event_us, identities = rows.ints("_offset"), rows.ints("_event_us"), rows.raw("_identity")
        columns, coded = dict[str, Column](), dict[str, Coded]()
        for name, kind in self.kinds.items():
            if kind != definition.FIELD_TYPE_STRING:
                columns[name] = rows.column(name, kind)
                continue
            columns[name], words = rows.texts(name)
            if words is not None:
                coded[name] = words
        repeats = self.recent.follow(identities, offset, event_us)
        return Chunk(offset, event_us, Strings(identities), columns, span[1], repeats, coded)


async def _translated(call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call in a thread of its own. Raises `Retryable` while the catalogue is away."""
    try:
        return await asyncio.to_thread(call, *arguments, **named)
    except OperationalError as error:
        raise Retryable(f"PostgreSQL (Iceberg catalogue): {error.orig!r}") from error
