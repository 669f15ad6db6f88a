"""What of a stream the offline log holds, chunk by chunk, for building views that Kafka can no longer feed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
from sqlalchemy.exc import OperationalError
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.archive import Filter
from tidemill_features.expressions import Column
from tidemill_features.iceberg import Archive
from tidemill_features.log_columns import LogRows
from tidemill_features.log_table import LogTable
from tidemill_runtime.errors import Retryable

from tidemill_feature.replaying import Bools, Chunk

P = ParamSpec("P")
R = TypeVar("R")

# What lies in memory at once: rows of one partition within so many offsets.
CHUNK_OFFSETS = 50_000
_PLACE = ("_partition", "_offset", "_event_us", "_identity")


class ArchivedHistory:
    """Reads tables as they were when reading began; blocks in threads of its own."""

    def __init__(self, dsn: str, warehouse: str) -> None:
        self._dsn = dsn
        self._warehouse = warehouse

    async def chunks(self, stream: definition.Stream, partition: int, first: int, end: int) -> AsyncIterator[Chunk]:
        """Yield what the table holds of `[first, end)`, in offset order; the next chunk is read meanwhile."""
        table = await _translated(self._open, stream)
        if table is None:
            return
        spans = [(at, min(end, at + CHUNK_OFFSETS)) for at in range(first, end, CHUNK_OFFSETS)]
        ahead: asyncio.Task[Chunk] | None = None
        try:
            for place in range(len(spans)):
                chunk = await (ahead or _reading(table, stream, partition, spans[place]))
                ahead = _reading(table, stream, partition, spans[place + 1]) if place + 1 < len(spans) else None
                yield chunk
        finally:
            if ahead is not None:
                ahead.cancel()

    def _open(self, stream: definition.Stream) -> LogTable | None:
        return Archive(self._dsn, self._warehouse).table(events_topic(stream.name))


def _reading(
    table: LogTable, stream: definition.Stream, partition: int, span: tuple[int, int]
) -> "asyncio.Task[Chunk]":
    return asyncio.create_task(_translated(_read, table, stream, partition, span))


async def _translated(call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call in a thread of its own. Raises `Retryable` while the catalogue is away."""
    try:
        return await asyncio.to_thread(call, *arguments, **named)
    except OperationalError as error:
        raise Retryable(f"PostgreSQL (Iceberg catalogue): {error.orig!r}") from error


def _read(table: LogTable, stream: definition.Stream, partition: int, span: tuple[int, int]) -> Chunk:
    kinds = {field.name: field.type for field in stream.fields}
    names = (*_PLACE, *kinds)
    rows = LogRows.before(table.read(names, Filter(spans={partition: span})), {})
    read = {name: rows.column(name, kind) for name, kind in kinds.items()}

    def columns(keep: Bools, wanted: Sequence[str]) -> Mapping[str, Column]:
        if keep.all():
            return {name: read[name] for name in wanted}
        at = np.flatnonzero(keep)
        return {name: Column(read[name].values[at], read[name].nulls[at]) for name in wanted}

    return Chunk(rows.ints("_offset"), rows.ints("_event_us"), rows.strings("_identity"), columns, span[1])
