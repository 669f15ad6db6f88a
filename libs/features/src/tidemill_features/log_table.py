"""One table of the offline log as it was at one snapshot, read through pyiceberg; no catalogue is needed to read it.

Extra `offline`. Everything blocks.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Protocol

import pyarrow as pa
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import (
    AlwaysFalse,
    AlwaysTrue,
    And,
    BooleanExpression,
    EqualTo,
    GreaterThanOrEqual,
    In,
    LessThan,
    Or,
    Reference,
)
from pyiceberg.expressions.literals import literal
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.table import DataScan, StaticTable, Table
from pyiceberg.types import LongType

from tidemill_features.archive import ARRIVAL, ARRIVAL_PROPERTY, TOPIC_ID_PROPERTY, Filter, table_name


class LogTable:
    """A table as it was at one snapshot; whatever is committed later, every read gives the same rows."""

    def __init__(self, table: Table, snapshot_id: int) -> None:
        self._table = table
        self.snapshot_id = snapshot_id
        snapshot = table.snapshot_by_id(snapshot_id)
        made_with = None if snapshot is None else snapshot.schema_id
        # A column may have been added since.
        self._schema = table.schema() if made_with is None else table.schemas()[made_with]

    def read(self, names: Sequence[str] | None = None, wanted: Filter | None = None) -> pa.Table:
        """Return rows with the named columns, or all; a column that the table does not have is left out."""
        return self._scan(names, wanted).to_arrow()

    def _scan(self, names: Sequence[str] | None, wanted: Filter | None) -> DataScan:
        known = {field.name for field in self._schema.fields}
        fields = ("*",) if names is None else tuple(name for name in names if name in known)
        chosen = AlwaysTrue() if wanted is None else expression_of(wanted)
        return self._table.scan(chosen, fields, snapshot_id=self.snapshot_id)

    def partition(self, names: Sequence[str], number: int, span: tuple[int, int]) -> "LogPartition":
        """Return what reads the named columns, `_offset` among them, of a span of offsets piece by piece."""
        return LogPartition(self._scan(names, Filter(spans={number: span})), number)

    def rows_at_most(self, wanted: Filter) -> int:
        """Return how many rows the files have of which some may be wanted."""
        tasks = self._table.scan(expression_of(wanted), snapshot_id=self.snapshot_id).plan_files()
        return sum(task.file.record_count for task in tasks)

    def oldest(self, name: str) -> int | None:
        """Return a lower bound of an integer column, from what the files say of themselves; None without rows."""
        return min(self._bounds(name, "lower_bounds"), default=None)

    @property
    def topic_id(self) -> bytes | None:
        """The id that Kafka gave the topic; None of a table that does not know it."""
        known = self._table.properties.get(TOPIC_ID_PROPERTY)
        return None if known is None else bytes.fromhex(known)

    @property
    def knows_arrival(self) -> bool:
        """Whether `_available_us` is when records came to the log."""
        return self._table.properties.get(ARRIVAL_PROPERTY) == ARRIVAL

    def first_arrival_us(self) -> int | None:
        """Return when the first record came to the log; None without rows, and for a table that does not know."""
        return self.oldest("_available_us") if self.knows_arrival else None

    def newest(self, name: str) -> int | None:
        """Return an upper bound of an integer column, from what the files say of themselves; None without rows."""
        return max(self._bounds(name, "upper_bounds"), default=None)

    def _bounds(self, name: str, which: str) -> list[int]:
        number = self._schema.find_field(name).field_id
        tasks = self._table.scan(snapshot_id=self.snapshot_id).plan_files()
        raw = [getattr(task.file, which)[number] for task in tasks if task.file.record_count]
        return [_whole(bound) for bound in raw]


class LogPartition:
    """Reads one partition piece by piece; which files hold what is looked up once, not for every piece."""

    def __init__(self, scan: DataScan, number: int) -> None:
        self._scan = scan
        self._number = number
        field = scan.projection().find_field("_offset").field_id
        # The lowest and the highest offset of each file, of any partition.
        self._tasks = [
            (_whole(task.file.lower_bounds[field]), _whole(task.file.upper_bounds[field]), task)
            for task in scan.plan_files()
            if task.file.record_count
        ]

    def read(self, first: int, end: int) -> pa.Table:
        """Return the rows of some of the offsets; from several threads at once, if wanted."""
        scan, wanted = self._scan, expression_of(Filter(spans={self._number: (first, end)}))
        tasks = [task for lowest, highest, task in self._tasks if lowest < end and first <= highest]
        return ArrowScan(scan.table_metadata, scan.io, scan.projection(), wanted).to_table(tasks)


def _whole(bound: bytes) -> int:
    return int(from_bytes(LongType(), bound))


class LogTables(Protocol):
    """Finds tables by topic."""

    def table(self, topic: str) -> LogTable | None:
        """Return a table as of now; None where there is none, or nothing was ever committed to it."""


class PlacedTables:
    """Tables whose metadata somebody has looked up: table name to the address of the metadata."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def table(self, topic: str) -> LogTable | None:
        """Return a table as its metadata says; None where it was not found, or nothing was ever committed to it."""
        place = self._places.get(table_name(topic))
        return None if place is None else at_newest(StaticTable.from_metadata(place))


def at_newest(table: Table) -> LogTable | None:
    """Return a table at its newest snapshot; None where nothing was ever committed to it."""
    snapshot = table.current_snapshot()
    return None if snapshot is None else LogTable(table, snapshot.snapshot_id)


def expression_of(wanted: Filter) -> BooleanExpression:
    """Return a filter as the library takes it."""
    parts: list[BooleanExpression] = [_at_least(name, value) for name, value in wanted.at_least.items()]
    parts += [EqualTo(term=Reference(name), value=literal(value)) for name, value in wanted.equal.items()]
    parts += [In(term=Reference(name), values=set(map(literal, values))) for name, values in wanted.among.items()]
    if wanted.spans is not None:
        spans = [_span(number, first, end) for number, (first, end) in wanted.spans.items()]
        parts.append(reduce(Or, spans) if spans else AlwaysFalse())
    return reduce(And, parts) if parts else AlwaysTrue()


def _span(partition: int, first: int, end: int | None) -> BooleanExpression:
    begun = And(EqualTo(term=Reference("_partition"), value=literal(partition)), _at_least("_offset", first))
    return begun if end is None else And(begun, LessThan(term=Reference("_offset"), value=literal(end)))


def _at_least(name: str, value: int) -> BooleanExpression:
    return GreaterThanOrEqual(term=Reference(name), value=literal(value))
