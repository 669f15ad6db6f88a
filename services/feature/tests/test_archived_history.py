"""The offline log is read chunk by chunk, some of them at a time, as if it were read at once."""

import asyncio
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_feature.adapters import archived_history
from tidemill_feature.adapters.archived_history import ArchivedHistory
from tidemill_feature.replaying import Chunk
from tidemill_features.archive import event_columns
from tidemill_features.iceberg import Archive, arrow_schema
from tidemill_features.upkeep import FAN_IN, Upkeep
from tidemill_runtime.errors import Retryable

pytestmark = pytest.mark.servers

STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=definition.FIELD_TYPE_STRING, nullable=True),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=2,
    dedup_window_ms=1_000,
)
COLUMNS = event_columns(STREAM)
ID = bytes(range(16))
FILES, ROWS = 4, 11
SPAN = (3, FILES * ROWS - 2)


def archive(dsn: str, warehouse: str, files: int = FILES) -> None:
    """Write files of two partitions, where every seventh record repeats the one nine before it."""
    table = Archive(dsn, warehouse)
    for number in range(files):
        places = [(partition, number * ROWS + row) for partition in range(2) for row in range(ROWS)]
        values = {
            "_partition": [partition for partition, _ in places],
            "_offset": [offset for _, offset in places],
            "_identity": [f"{partition}/{offset - 9 * (offset % 7 == 0)}" for partition, offset in places],
            "_event_us": [offset * 10_000 for _, offset in places],
            "_available_us": [0] * len(places),
            "_schema_hash": ["s"] * len(places),
            "payer": [None if offset % 5 == 0 else f"payer-{offset % 4}" for _, offset in places],
            "at": [offset for _, offset in places],
        }
        rows = pa.table({column.name: values[column.name] for column in COLUMNS}, arrow_schema(COLUMNS))
        table.append("events.paid", COLUMNS, rows, dict.fromkeys(range(2), (number * ROWS, (number + 1) * ROWS)))


def read(history: ArchivedHistory, offsets: int, monkeypatch: pytest.MonkeyPatch) -> list[Chunk]:
    """Return partition 1, so many offsets at once."""
    monkeypatch.setattr(archived_history, "CHUNK_OFFSETS", offsets)

    async def chunks() -> list[Chunk]:
        return [chunk async for chunk in history.chunks(STREAM, ("payer",), 1, SPAN, topic_id=ID)]

    return asyncio.run(chunks())


def joined(chunks: list[Chunk]) -> dict[str, list[Any]]:
    """Return what chunks hold, one behind the other."""
    repeats = [chunk.repeats for chunk in chunks if chunk.repeats is not None]
    return {
        "offset": np.concatenate([chunk.offset for chunk in chunks]).tolist(),
        "identity": [identity for chunk in chunks for identity in chunk.identities],
        "payer": [value for chunk in chunks for value in chunk.columns["payer"].values.tolist()],
        "null": [value for chunk in chunks for value in chunk.columns["payer"].nulls.tolist()],
        "word": [chunk.coded["payer"].words[code] for chunk in chunks for code in chunk.coded["payer"].codes.tolist()],
        "repeated": np.concatenate([one.offset for one in repeats]).tolist(),
    }


@pytest.mark.parametrize("offsets", [1, 5, 16])
def test_chunks_of_any_size_say_the_same_in_order(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offsets: int
) -> None:
    archive(database, str(tmp_path))
    history = ArchivedHistory(database, str(tmp_path))
    (whole,) = read(history, FILES * ROWS, monkeypatch)
    chunks = read(history, offsets, monkeypatch)
    assert [chunk.end for chunk in chunks] == [*range(SPAN[0] + offsets, SPAN[1], offsets), SPAN[1]]
    found = joined(chunks)
    assert found == joined([whole])
    assert found["offset"] == [*range(*SPAN)]
    # Also of records in the chunk before, or in one before that.
    assert [after for after, before in zip(found["offset"], found["repeated"], strict=True) if before >= 0] == [
        offset for offset in range(*SPAN) if offset % 7 == 0 and offset - 9 >= SPAN[0]
    ]


def test_files_that_upkeep_takes_away_from_a_long_reading_are_read_again_where_they_were_merged_into(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archived_history, "CHUNK_OFFSETS", 5)
    archive(database, str(tmp_path), files=2 * FAN_IN)
    history = ArchivedHistory(database, str(tmp_path))
    span = (0, 2 * FAN_IN * ROWS)

    async def interrupted() -> int:
        count = 0
        async for chunk in history.chunks(STREAM, ("payer",), 1, span, topic_id=ID):
            count += len(chunk.offset)
            if count == 5:
                keep_up(database, str(tmp_path))
        return count

    with pytest.raises(Retryable, match=r"offline log.*\.parquet"):
        asyncio.run(interrupted())

    async def again() -> list[int]:
        return [
            offset
            async for chunk in history.chunks(STREAM, ("payer",), 1, span, topic_id=ID)
            for offset in chunk.offset.tolist()
        ]

    assert asyncio.run(again()) == [*range(*span)]


def keep_up(dsn: str, warehouse: str) -> None:
    """Merge the table's files and let everything else go."""
    table = Archive(dsn, warehouse)
    table.offsets("events.paid")
    in_an_hour_ms = time_ns() // 1_000_000 + 3_600_000
    done = table.keep_up("events.paid", in_an_hour_ms, Upkeep(keep_snapshots=1, keep_s=0.0, orphan_s=0.0))
    assert done.merged_files
    assert done.deleted_files
