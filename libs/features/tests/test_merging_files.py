"""Small files of the offline log become one, in the order of the log, a piece at a time."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.archive import NAMESPACE, event_columns
from tidemill_features.iceberg import Archive, arrow_schema
from tidemill_features.upkeep import FAN_IN, Upkeep

TOPIC, PARTITIONS, ROWS, PIECE = "events.paid", 3, 11, 7
STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=definition.FIELD_TYPE_STRING, nullable=True),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=PARTITIONS,
)
LIMITS = Upkeep(keep_s=0.0, keep_snapshots=1, orphan_s=0.0, piece_rows=PIECE)


def commit(archive: Archive, number: int) -> pa.Table:
    """Append some rows of every partition, partition by partition, as the offline role does."""
    places = [(partition, number * ROWS + row) for partition in range(PARTITIONS) for row in range(ROWS)]
    columns = event_columns(STREAM)
    values = {
        "_partition": [partition for partition, _ in places],
        "_offset": [offset for _, offset in places],
        "_identity": [f"{partition}/{offset}" for partition, offset in places],
        "_event_us": [offset for _, offset in places],
        "_available_us": [0] * len(places),
        "_schema_hash": ["s"] * len(places),
        "payer": [None if offset % 5 == 0 else f"payer-{offset % 4}" for _, offset in places],
        "at": [offset for _, offset in places],
    }
    table = pa.table({column.name: values[column.name] for column in columns}, arrow_schema(columns))
    archive.append(TOPIC, columns, table, dict.fromkeys(range(PARTITIONS), (number * ROWS, (number + 1) * ROWS)))
    return table


def test_merged_files_hold_every_row_in_order_and_no_more_than_a_piece_at_once(tmp_path: Path) -> None:
    catalogue = SqlCatalog(NAMESPACE, uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}")
    archive = Archive.over(catalogue)
    expected = pa.concat_tables([commit(archive, number) for number in range(FAN_IN)])
    held = archive.offsets(TOPIC)
    assert archive.keep_up(TOPIC, 2**42, LIMITS).merged_files == FAN_IN
    table = archive.table(TOPIC)
    assert table is not None
    found = table.read()
    assert found.num_rows == expected.num_rows
    order = [("_partition", "ascending"), ("_offset", "ascending")]
    assert found.to_pylist() == expected.sort_by(order).to_pylist(), "as read, not sorted again"
    assert (table.oldest("_offset"), table.newest("_offset")) == (0, FAN_IN * ROWS - 1)
    assert archive.offsets(TOPIC) == held == dict.fromkeys(range(PARTITIONS), FAN_IN * ROWS)
    (file,) = [one for one in tmp_path.rglob("*.parquet") if pq.read_metadata(one).num_rows == found.num_rows]
    meta = pq.read_metadata(file)
    assert {meta.row_group(place).num_rows for place in range(meta.num_row_groups)} <= {*range(1, PIECE + 1)}
    assert [meta.schema.to_arrow_schema().field(n).metadata[b"PARQUET:field_id"] for n in ("_partition", "at")] == [
        b"1",
        b"8",
    ]


def test_a_merged_file_is_merged_again_with_files_that_lie_between(tmp_path: Path) -> None:
    catalogue = SqlCatalog(NAMESPACE, uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}")
    archive = Archive.over(catalogue)
    for number in range(3 * FAN_IN):
        commit(archive, number)
        archive.keep_up(TOPIC, 2**42, LIMITS)
    table = archive.table(TOPIC)
    assert table is not None
    found = table.read(["_partition", "_offset"])
    places = np.lexsort((found["_offset"].to_numpy(), found["_partition"].to_numpy()))
    assert found["_offset"].to_numpy()[places].tolist() == [*range(3 * FAN_IN * ROWS)] * PARTITIONS
