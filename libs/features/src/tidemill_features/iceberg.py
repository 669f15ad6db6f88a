"""The offline log in Apache Iceberg, through pyiceberg: catalogue in PostgreSQL, data in a warehouse folder or store.

Extra `offline`. Everything blocks.
"""

from collections.abc import Mapping, Sequence
from select import POLLIN, POLLOUT, poll
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import pyarrow as pa
from psycopg2.extensions import POLL_OK, POLL_WRITE, set_wait_callback
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.exceptions import TableAlreadyExistsError as TableExistsError
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import BooleanType, DoubleType, IcebergType, LongType, NestedField, StringType, TimestamptzType
from sqlalchemy import create_engine, text

from tidemill_features.archive import (
    ARRIVAL,
    ARRIVAL_PROPERTY,
    BOOL,
    DOUBLE,
    INSTANT,
    LONG,
    NAMESPACE,
    STRING,
    TOPIC_ID_PROPERTY,
    Filter,
    TableColumn,
    offsets_of,
    summary_of,
    table_name,
)
from tidemill_features.iceberg_files import keep_up, widen, widened_names
from tidemill_features.log_table import LogTable, at_newest, expression_of
from tidemill_features.upkeep import Done, Upkeep

_TYPES: Mapping[str, IcebergType] = {
    BOOL: BooleanType(),
    LONG: LongType(),
    DOUBLE: DoubleType(),
    STRING: StringType(),
    INSTANT: TimestamptzType(),
}
_ARROW: Mapping[str, pa.DataType] = {
    BOOL: pa.bool_(),
    LONG: pa.int64(),
    DOUBLE: pa.float64(),
    STRING: pa.string(),
    INSTANT: pa.timestamp("us", tz="UTC"),
}
# A commit must never be repeated by the library: whether it happened is read from the table.
_PROPERTIES = {
    "commit.retry.num-retries": "0",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
    # Small row groups, in the order of the log: a read of the newest part passes over the rest of a large file.
    "write.parquet.row-group-limit": "65536",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "8",
    ARRIVAL_PROPERTY: ARRIVAL,
}
# The catalogue's tables lie in a schema of their own.
_CATALOGUE_SCHEMA = "iceberg"
# Shorter than a consumer may stand still: the other roles of its process would end with it.
_SILENCE_S = 30.0


class ArchiveMovedError(Exception):
    """Another writer has moved the table on: what is buffered may be in it already."""


def _await_server(connection: Any) -> None:
    """Wait for PostgreSQL's answer; the client alone would wait for ever for a server that is frozen or cut off."""
    while (state := connection.poll()) != POLL_OK:
        ready = poll()
        ready.register(connection.fileno(), POLLOUT if state == POLL_WRITE else POLLIN)
        if not ready.poll(_SILENCE_S * 1000):
            raise psycopg2.OperationalError(f"the server says nothing for {_SILENCE_S:g} s")


# Of the whole process, where nothing else speaks to PostgreSQL through this client.
set_wait_callback(_await_server)


def catalogue_uri(dsn: str) -> str:
    """Return SQLAlchemy's form of a PostgreSQL DSN, confined to the catalogue's schema."""
    parts = urlsplit(dsn)
    query = "&".join(filter(None, (parts.query, f"options=-csearch_path%3D{_CATALOGUE_SCHEMA}")))
    return urlunsplit(parts._replace(scheme="postgresql+psycopg2", query=query))


def arrow_schema(columns: Sequence[TableColumn]) -> pa.Schema:
    """Return the Arrow schema of a table's rows."""
    return pa.schema([pa.field(column.name, _ARROW[column.kind], not column.required) for column in columns])


def iceberg_schema(columns: Sequence[TableColumn]) -> Schema:
    """Return the Iceberg schema of a table, with field numbers in the order of the columns."""
    return Schema(
        *(
            NestedField(number, column.name, _TYPES[column.kind], required=column.required)
            for number, column in enumerate(columns, 1)
        )
    )


class Archive:
    """The tables of one warehouse; not safe for use from several threads at once."""

    def __init__(self, dsn: str, warehouse: str) -> None:
        uri = catalogue_uri(dsn)
        engine = create_engine(uri)
        with engine.begin() as connection:
            # Two processes that create it at once would collide in PostgreSQL's own catalogue.
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('tidemill.iceberg'))"))
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {_CATALOGUE_SCHEMA}"))
        engine.dispose()
        location = warehouse if "://" in warehouse else f"file://{warehouse}"
        self._catalogue: Catalog = SqlCatalog(NAMESPACE, uri=uri, warehouse=location)
        self._tables: dict[str, Table] = {}
        # What Kafka says of topics, in hexadecimal.
        self._topic_ids: dict[str, str] = {}

    @classmethod
    def over(cls, catalogue: Catalog) -> "Archive":
        """Return the tables of a catalogue that is open already."""
        archive = cls.__new__(cls)
        archive._catalogue = catalogue
        archive._tables, archive._topic_ids = {}, {}
        return archive

    def follow(self, topic: str, topic_id: bytes) -> str | None:
        """Hold a topic's table to the log that Kafka gave this id; a table that knows of none is taken to be of it.

        The table of another log is set aside, under a name with that log's id, which is returned: a topic that was
        made anew has the offsets of the former again. Where one was set aside that is of this log, it is taken back.
        Raises `ArchiveMovedError` where another writer is doing so.
        """
        known = self._topic_ids[topic] = topic_id.hex()
        name = table_name(topic)
        aside: str | None = None
        try:
            if self._catalogue.table_exists((NAMESPACE, name)):
                table = self._catalogue.load_table((NAMESPACE, name))
                was = table.properties.get(TOPIC_ID_PROPERTY)
                if was is None:
                    with table.transaction() as transaction:
                        transaction.set_properties({TOPIC_ID_PROPERTY: known})
                if was in (None, known):
                    return None
                aside = f"{name}_{was}"
                self._catalogue.rename_table((NAMESPACE, name), (NAMESPACE, aside))
            self._tables.pop(topic, None)
            if self._catalogue.table_exists((NAMESPACE, f"{name}_{known}")):
                self._catalogue.rename_table((NAMESPACE, f"{name}_{known}"), (NAMESPACE, name))
        except (CommitFailedException, NoSuchTableError, TableExistsError) as error:
            raise ArchiveMovedError(f"{topic}: {error}") from error
        return aside

    def cut(self, topic: str, ends: Mapping[int, int]) -> int:
        """Give up what lies at some offsets and after them, by partition, and return how many rows that were.

        Raises `ArchiveMovedError` where another writer commits first.
        """
        table = self._catalogue.load_table((NAMESPACE, table_name(topic)))
        beyond = expression_of(Filter(spans={number: (end, None) for number, end in ends.items()}))
        rows: int = table.scan(beyond, ("_offset",)).to_arrow().num_rows
        summary = summary_of({**_held(table), **ends})
        try:
            with table.transaction() as transaction:
                if rows:
                    transaction.delete(beyond, snapshot_properties=summary)
                # What was read there may have brought no row.
                transaction.append(table.schema().as_arrow().empty_table(), snapshot_properties=summary)
        except CommitFailedException as error:
            raise ArchiveMovedError(f"{topic}: {error}") from error
        self._tables[topic] = table
        return rows

    def offsets(self, topic: str) -> dict[int, int]:
        """Return next offset by partition of what the topic's table holds, read anew; empty without a table."""
        try:
            table = self._catalogue.load_table((NAMESPACE, table_name(topic)))
        except NoSuchTableError:
            self._tables.pop(topic, None)
            return {}
        self._tables[topic] = table
        return _held(table)

    def snapshots(self, topic: str) -> int:
        """Return how many snapshots the topic's table keeps."""
        return len(self._catalogue.load_table((NAMESPACE, table_name(topic))).metadata.snapshots)

    def append(
        self, topic: str, columns: Sequence[TableColumn], rows: pa.Table, read: Mapping[int, tuple[int, int]]
    ) -> None:
        """Append rows in one commit that also says up to which offsets the table now reaches.

        `read`: by partition, the offset from which and up to which (exclusive) records were read. Raises
        `ArchiveMovedError` where the table does not end at the former, or where another writer commits first.
        """
        table = self._tables.get(topic) or self._create(topic, columns)
        held = _held(table)
        moved = [number for number, (first, _) in read.items() if held.get(number, 0) > first]
        if moved:
            raise ArchiveMovedError(f"{topic}: partitions {moved} already hold later offsets")
        offsets = held | {number: following for number, (_, following) in read.items()}
        try:
            _evolve(table, columns)
            table.append(rows, snapshot_properties=summary_of(offsets))
        except CommitFailedException as error:
            raise ArchiveMovedError(f"{topic}: {error}") from error

    def keep_up(self, topic: str, now_ms: int, limits: Upkeep) -> Done:
        """Merge small files, let old snapshots go and delete what nothing names; bounded by `limits`.

        Raises `ArchiveMovedError` where another writer commits first; the table is as that writer left it.
        """
        table = self._tables.get(topic)
        if table is None:
            return Done()
        try:
            return keep_up(table, now_ms, limits)
        except CommitFailedException as error:
            self._tables[topic] = self._catalogue.load_table((NAMESPACE, table_name(topic)))
            raise ArchiveMovedError(f"{topic}: {error}") from error

    def table(self, topic: str) -> LogTable | None:
        """Return a table as of now; None where there is none, or nothing was ever committed to it."""
        try:
            table = self._catalogue.load_table((NAMESPACE, table_name(topic)))
        except NoSuchTableError:
            return None
        return at_newest(table)

    def read(
        self, topic: str, *, names: Sequence[str] | None = None, at_least: tuple[str, int] | None = None
    ) -> tuple[pa.Table | None, int]:
        """Return a table's rows as of now and the snapshot they belong to; None without any.

        `at_least`: a column and its smallest wanted value, by which whole files are passed over.
        """
        table = self.table(topic)
        if table is None:
            return None, 0
        return table.read(names, Filter(at_least=dict([at_least] if at_least else []))), table.snapshot_id

    def _create(self, topic: str, columns: Sequence[TableColumn]) -> Table:
        name, properties, location = table_name(topic), _PROPERTIES, None
        if (topic_id := self._topic_ids.get(topic)) is not None:
            properties = {**properties, TOPIC_ID_PROPERTY: topic_id}
            # Not where a table lies that was set aside: upkeep deletes what its own table does not name.
            location = f"{self._catalogue.properties['warehouse']}/{NAMESPACE}/{name}_{topic_id}"
        self._catalogue.create_namespace_if_not_exists(NAMESPACE)
        try:
            table = self._catalogue.create_table(
                (NAMESPACE, name), iceberg_schema(columns), location, properties=properties
            )
        except TableExistsError as error:
            raise ArchiveMovedError(f"{topic}: made by another writer") from error
        self._tables[topic] = table
        return table


def _evolve(table: Table, columns: Sequence[TableColumn]) -> None:
    """Give the table the columns that a stream has gained or has otherwise than before, and floats for integers."""
    if names := widened_names(table, [(column.name, column.kind == DOUBLE) for column in columns]):
        widen(table, names)
    held = {field.name: field.field_type for field in table.schema().fields}
    wanted = {column.name: _TYPES[column.kind] for column in columns}
    if others := [name for name, kind in held.items() if wanted.get(name, kind) != kind]:
        # A name that was removed has come back as another type: what it meant before stays under a name of its own.
        number = table.schema().schema_id
        with table.update_schema() as schema:
            for name in others:
                schema.rename_column(name, f"{name}_{held[name]}_{number}")
    known = {field.name for field in table.schema().fields}
    if added := [column for column in columns if column.name not in known]:
        with table.update_schema() as schema:
            for column in added:
                # Rows that are there have no value for it, whatever the definition says of new ones.
                schema.add_column(column.name, _TYPES[column.kind])


def _held(table: Table) -> dict[int, int]:
    snapshot = table.current_snapshot()
    if snapshot is None or snapshot.summary is None:
        return {}
    summary: Mapping[str, Any] = snapshot.summary.additional_properties
    return offsets_of(summary)
