"""Files of an Iceberg table: merged, rewritten for a widened field, and deleted when nothing names them any more."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.io.fileformat import FileFormatFactory
from pyiceberg.io.pyarrow import ArrowScan, PyArrowFileIO, schema_to_pyarrow
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table, Transaction
from pyiceberg.table.locations import load_location_provider
from pyiceberg.typedef import Record
from pyiceberg.types import DoubleType, LongType

from tidemill_features.archive import Filter
from tidemill_features.log_table import expression_of
from tidemill_features.upkeep import Done, Upkeep, to_expire, to_merge

_PLACE = ("_partition", "_offset")
_ORDER = [(name, "ascending") for name in _PLACE]


def merge_small(table: Table, limits: Upkeep) -> int:
    """Merge one tier of small files and return how many they were; the offsets that the table holds stay as they are.

    Raises `CommitFailedException` where another writer commits first; nothing has changed then.
    """
    tasks = list(table.scan().plan_files())
    chosen = [tasks[place] for place in to_merge([task.file.file_size_in_bytes for task in tasks], limits.merge_bytes)]
    if chosen:
        with table.transaction() as transaction:
            _replace(table, transaction, [task.file for task in chosen], [_in_order(table, chosen, limits.piece_rows)])
    return len(chosen)


def widen(table: Table, names: Sequence[str]) -> None:
    """Turn integer columns into floats, in one commit: the format promotes no long in place, so files are rewritten.

    One file is in memory at a time. Raises `CommitFailedException` where another writer commits first.
    """
    tasks = list(table.scan().plan_files())
    with table.transaction() as transaction:
        with transaction.update_schema(allow_incompatible_changes=True) as schema:
            for name in names:
                schema.delete_column(name)
                schema.add_column(name, DoubleType())
        _replace(table, transaction, [task.file for task in tasks], ([_widened(table, task, names)] for task in tasks))


def expire(table: Table, now_ms: int, limits: Upkeep) -> int:
    """Let go of old snapshots and return how many they were."""
    old = to_expire([(one.timestamp_ms, one.snapshot_id) for one in table.metadata.snapshots], now_ms, limits)
    if old:
        table.maintenance.expire_snapshots().by_ids(old).commit()
    return len(old)


def sweep(table: Table, now_ms: int, limits: Upkeep) -> int:
    """Delete the table's files that no snapshot names and that are no commit under way; return how many they were.

    They come from merging, from snapshots let go, and from writers that died between writing and committing.
    """
    io = table.io
    if not isinstance(io, PyArrowFileIO):
        return 0
    named = {_path(path) for path in _named(table)}
    scheme, netloc, root = PyArrowFileIO.parse_location(table.location())
    files = io.fs_by_scheme(scheme, netloc)
    before = datetime.fromtimestamp(now_ms / 1000, UTC) - timedelta(seconds=limits.orphan_s)
    found = files.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    orphans = [
        info.path
        for info in found
        if info.type == FileType.File
        and info.path.endswith((".parquet", ".avro"))
        and info.mtime < before
        and info.path not in named
    ]
    return sum(_deleted(files, path) for path in orphans[: limits.most_deletions])


def keep_up(table: Table, now_ms: int, limits: Upkeep) -> Done:
    """Do one bounded round of upkeep."""
    merged = merge_small(table, limits)
    if merged:
        # Arrow's allocator would keep what the pieces took.
        pa.default_memory_pool().release_unused()
    expired = expire(table, now_ms, limits)
    return Done(merged, expired, sweep(table, now_ms, limits))


def _replace(
    table: Table, transaction: Transaction, old: Sequence[DataFile], new: Iterable[Iterable[pa.Table]]
) -> None:
    """Put rows in the place of files, in one snapshot whose summary says the same offsets as the one before.

    `new`: the pieces of each new file. Raises `RuntimeError` where rows would be lost.
    """
    held = table.current_snapshot()
    properties: dict[str, str] = {}
    if held is not None and held.summary is not None:
        own = held.summary.additional_properties
        properties = {name: value for name, value in own.items() if name.startswith("tidemill.")}
    with transaction.update_snapshot(snapshot_properties=properties).overwrite() as producer:
        for file in old:
            producer.delete_data_file(file)
        written = 0
        for number, pieces in enumerate(new):
            file = _written(table, transaction, f"00000-{number}-{producer.commit_uuid}.parquet", pieces)
            written += file.record_count
            producer.append_data_file(file)
        if written != sum(file.record_count for file in old):
            raise RuntimeError(f"{table.name()}: {written} rows in place of {sum(file.record_count for file in old)}")


def _written(table: Table, transaction: Transaction, name: str, pieces: Iterable[pa.Table]) -> DataFile:
    """Write one file as the library does, but piece by piece: a table of the whole would lie in memory twice."""
    metadata, model = transaction.table_metadata, FileFormatFactory.get(FileFormat.PARQUET)
    schema, arrow = metadata.schema(), schema_to_pyarrow(metadata.schema())
    where = load_location_provider(table_location=metadata.location, table_properties=metadata.properties)
    output = table.io.new_output(where.new_data_location(name))
    with model.create_writer(output, schema, metadata.properties) as writer:
        for piece in pieces:
            writer.write(piece.select(arrow.names).cast(arrow))
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=output.location,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        file_size_in_bytes=len(output),
        sort_order_id=None,
        spec_id=metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **writer.result().to_serialized_dict(),
    )


def _in_order(table: Table, tasks: Sequence[FileScanTask], piece_rows: int) -> Iterator[pa.Table]:
    """Yield the rows of files in the order of the log, so many at a time."""
    places = [_rows(table, [task], table.schema().select(*_PLACE)) for task in tasks]
    owner = np.repeat(np.arange(len(tasks)), [len(one) for one in places])
    partition, offset = (np.concatenate([one[name].to_numpy() for one in places]) for name in _PLACE)
    order = np.lexsort((offset, partition))
    for first in range(0, len(order), piece_rows):
        mine = order[first : first + piece_rows]
        spans = {}
        for number in np.unique(partition[mine]).tolist():
            offsets = offset[mine][partition[mine] == number]
            spans[number] = (int(offsets[0]), int(offsets[-1]) + 1)
        used = [tasks[place] for place in np.unique(owner[mine]).tolist()]
        yield _rows(table, used, table.schema(), expression_of(Filter(spans=spans))).sort_by(_ORDER)


def _rows(
    table: Table, tasks: Sequence[FileScanTask], schema: Schema, wanted: BooleanExpression | None = None
) -> pa.Table:
    return ArrowScan(table.metadata, table.io, schema, wanted or AlwaysTrue()).to_table(tasks)


def _widened(table: Table, task: FileScanTask, names: Sequence[str]) -> pa.Table:
    rows = _rows(table, [task], table.schema())
    for name in names:
        place = rows.column_names.index(name)
        rows = rows.set_column(place, pa.field(name, pa.float64()), rows[name].cast(pa.float64(), safe=False))
    return rows


def _named(table: Table) -> Iterable[str]:
    """Yield the path of every file that a snapshot of the table names."""
    seen: set[str] = set()
    for snapshot in table.metadata.snapshots:
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path in seen:
                continue
            seen.add(manifest.manifest_path)
            yield manifest.manifest_path
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
                yield entry.data_file.file_path


def _deleted(files: FileSystem, path: str) -> bool:
    """Delete a file and return whether it was there; another worker may have been faster."""
    try:
        files.delete_file(path)
    except FileNotFoundError:
        return False
    return True


def _path(location: str) -> str:
    return PyArrowFileIO.parse_location(location)[2]


def widened_names(table: Table, wanted: Iterable[tuple[str, bool]]) -> list[str]:
    """Return which of some (name, whether it is a float now) the table still keeps as integers."""
    types = {field.name: field.field_type for field in table.schema().fields}
    return [name for name, is_float in wanted if is_float and isinstance(types.get(name), LongType)]
