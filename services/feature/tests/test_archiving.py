"""What the offline role makes of records, and that the log holds each of them once whatever happens to the worker."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.cloudevents import Attributes, to_headers, watermark
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1.progress_pb2 import TopicPartitionOffset
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_contracts.topics import events_topic, stream_topics
from tidemill_feature.adapters.archive import ArchivePipeline, Limits
from tidemill_feature.archiving import Buffer, event_rows, prediction_rows
from tidemill_features.admission import Rules
from tidemill_features.archive import PREDICTIONS_TOPIC, counting, identity_text, offsets_of, summary_of, table_name
from tidemill_features.iceberg import Archive, catalogue_uri
from tidemill_features.log_columns import LogRows
from tidemill_features.log_table import LogTable
from tidemill_features.upkeep import FAN_IN, Upkeep
from tidemill_runtime.batches import Assignment, Batch, Refused
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.errors import Poison, StateLost
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.sieve import Sieve
from tidemill_testkit.plugin import Servers

NOW_MS = 1_900_000_000_000


@dataclass(frozen=True)
class Row:
    """A Kafka record."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: int = NOW_MS


def stream(name: str = "clicks") -> definition.Stream:
    return definition.Stream(
        name=name,
        fields=[
            definition.Field(name="user", type=definition.FIELD_TYPE_STRING),
            definition.Field(name="amount", type=definition.FIELD_TYPE_FLOAT64, nullable=True),
            definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
        ],
        key_field="user",
        time_field="at",
        partitions=2,
        lateness_ms=60_000,
        dedup_window_ms=60_000,
        late_policy=definition.LATE_POLICY_DROP,
        max_event_bytes=1_000,
    )


def event(
    topic: str,
    offset: int,
    *,
    amount: float | None = 1.0,
    name: str | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Row:
    at_us = 1_000_000_000_000_000 + offset * 1_000_000
    body = json.dumps({"user": "u", "amount": amount, "at": format_us(at_us), **(fields or {})}).encode()
    attributes = Attributes(id=name or str(offset), source="s", type="tidemill.event.v1", time_us=at_us)
    return Row(topic, 0, offset, b"u", body, to_headers(attributes))


def test_rows_carry_origin_identity_and_typed_fields_and_leave_out_watermarks() -> None:
    records = [
        event("t", 5),
        event("t", 6, amount=None, name="again"),
        Row("t", 0, 7, None, b"", watermark("clicks", 1)),
    ]
    rows = event_rows(stream(), {0: records})
    assert rows.columns["_offset"] == [5, 6]
    assert rows.columns["_identity"] == ["s\x1f5", "s\x1fagain"]
    assert rows.columns["amount"] == [1.0, None]
    # Kafka tells milliseconds: the record came before the end of its one.
    assert rows.columns["_available_us"] == [NOW_MS * 1000 + 999] * 2
    assert rows.columns["at"] == rows.columns["_event_us"]
    assert not rows.refused


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff", b'{"user": null, "at": "2013-01-01T00:00:00Z"}'])
def test_poison_is_left_out_and_named(value: bytes | None) -> None:
    rows = event_rows(stream(), {0: [event("t", 1), Row("t", 0, 2, b"u", value, [])]})
    assert rows.columns["_offset"] == [1]
    assert [refused.record.offset for refused in rows.refused] == [2]


def test_predictions_name_their_positions_by_topic() -> None:
    prediction = serving.PredictionRecord(
        prediction_id="p",
        pipeline="x",
        join_key="k",
        as_of_us=3,
        positions=[TopicPartitionOffset(topic="events.a", partition=n, next_offset=7 + n) for n in (0, 1)],
        request_json=b'{"user":"u"}',
    )
    rows = prediction_rows({0: [Row("t", 0, 1, b"k", prediction.SerializeToString(), [])]})
    assert json.loads(rows.columns["positions"][0]) == {"events.a": {"0": 7, "1": 8}}
    assert rows.columns["_event_us"] == rows.columns["as_of_us"] == [3]


def test_a_buffer_is_full_by_bytes_and_empty_after_a_commit() -> None:
    buffer = Buffer(max_bytes=2_600)
    place = Partition("t", 0)
    for offset in range(5):
        assert not buffer.full
        buffer.add(Batch({place: [event("t", offset)]}))
    assert buffer.full
    assert buffer.read[place] == (0, 5)
    buffer.clear()
    assert not buffer.full
    assert not buffer.topics()


def test_a_buffer_knows_how_far_was_read_where_the_last_records_were_kept_back() -> None:
    buffer, place, other = Buffer(max_bytes=10_000), Partition("t", 0), Partition("t", 1)
    buffer.add(Batch({place: [event("t", 3)]}, {place: 6}))
    buffer.add(Batch({}, {place: 8, other: 2}))
    assert (buffer.read, buffer.rows) == ({place: (3, 8), other: (2, 2)}, 1)


def test_offsets_survive_the_snapshot_summary() -> None:
    assert offsets_of(summary_of({1: 5, 0: 2**40})) == {0: 2**40, 1: 5}
    assert offsets_of({}) == {}


def test_identities_of_events_and_of_nameless_records_never_meet() -> None:
    assert identity_text((b"s", b"7")) != identity_text(7)


def test_what_counts_is_what_the_online_role_would_fold() -> None:
    partition = np.zeros(5, np.int64)
    event_us = np.array([0, 100, 100, 10, 101]) * 1_000_000
    identity = np.array([0, 1, 1, 2, 3])
    rules = Rules(60_000_000, 60_000_000, definition.LATE_POLICY_DROP)
    assert counting(partition, np.arange(5), identity, event_us, rules).tolist() == [True, True, False, False, True]
    corrected = Rules(60_000_000, 60_000_000, definition.LATE_POLICY_CORRECT)
    assert counting(partition, np.arange(5), identity, event_us, corrected).tolist() == [True, True, False, True, True]


LIMITS = Limits(10_000_000)
# Look after the tables at every commit, keep the newest snapshot only, and delete at once what nothing names.
EAGER = Limits(10_000_000, 1e-9, Upkeep(keep_snapshots=1, keep_s=0.0, orphan_s=-60.0))


class Worker:
    """One offline worker over a stream of its own; `Worker` again is the same one after a crash."""

    def __init__(
        self, dsn: str, warehouse: Path, name: str, limits: Limits = LIMITS, sieve: Sieve | None = None
    ) -> None:
        self.topic = events_topic(name)
        self.place = Partition(self.topic, 0)
        self.name = name
        catalogue = Catalogue(streams={name: stream(name)})
        self.streams = catalogue.streams
        self.pipeline = ArchivePipeline(dsn, str(warehouse), catalogue, limits, sieve)

    async def restored(self) -> int:
        """Restore, and return from where the log is read."""
        assignment = Assignment({self.place: 0}, {self.place: 0}, {self.place: 0})
        return (await self.pipeline.restore(assignment)).offsets[self.place]

    async def take(self, first: int, end: int, **fields: Any) -> None:
        records = [event(self.topic, offset, fields=fields) for offset in range(first, end)]
        await self.pipeline.apply(Batch({self.place: records}))


def held(dsn: str, warehouse: Path, topic: str) -> list[Any]:
    rows, _ = Archive(dsn, str(warehouse)).read(topic)
    return [] if rows is None else sorted(rows["_offset"].to_pylist())


@pytest.fixture
def name() -> str:
    return f"clicks-{uuid.uuid4().hex[:8]}"


@pytest.mark.servers
async def test_a_worker_resumes_from_what_the_table_holds(database: str, tmp_path: Path, name: str) -> None:
    dsn = database
    first = Worker(dsn, tmp_path, name)
    assert await first.restored() == 0
    await first.take(0, 10)
    await first.pipeline.flush()
    await first.take(10, 20)
    # Killed here: the second batch was never committed, and Kafka's own offset is older still.
    second = Worker(dsn, tmp_path, name)
    assert await second.restored() == 10
    await second.take(10, 20)
    await second.pipeline.flush()
    assert held(dsn, tmp_path, first.topic) == list(range(20))


@pytest.mark.servers
async def test_what_was_refused_by_the_definition_before_is_no_row_by_the_next(
    servers: Servers, topic_prefix: str, database: str, tmp_path: Path, name: str
) -> None:
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    await create_topics(kafka.client_kwargs(), stream_topics([(name, 1)]), topic_prefix)
    worker = Worker(database, tmp_path, name, sieve=Sieve(kafka, "feature-online"))
    await worker.restored()
    await worker.take(0, 10)
    async with Producer(kafka) as producer:
        # By the online role, after the records were read here; one of them is read here only later.
        refused = [Refused(event(worker.topic, offset), Poison(Reason.OVERSIZED, "too large")) for offset in (3, 11)]
        await DeadLetters(producer, kafka, "feature-online").send(refused, 12)
    mended = stream(name)
    mended.max_event_bytes *= 4
    worker.streams[name] = mended
    await worker.pipeline.flush()
    await worker.take(10, 13)
    await worker.pipeline.flush()
    assert held(database, tmp_path, worker.topic) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 12]


@pytest.mark.servers
async def test_a_zombie_never_doubles_rows(database: str, tmp_path: Path, name: str) -> None:
    dsn = database
    zombie, heir = Worker(dsn, tmp_path, name), Worker(dsn, tmp_path, name)
    await zombie.restored()
    await zombie.take(0, 10)
    assert await heir.restored() == 0
    await heir.take(0, 10)
    await heir.pipeline.flush()
    with pytest.raises(StateLost):
        await zombie.pipeline.flush()
    assert await zombie.restored() == 10
    await zombie.take(10, 12)
    await zombie.pipeline.flush()
    await heir.take(10, 12)
    with pytest.raises(StateLost):
        await heir.pipeline.flush()
    assert held(dsn, tmp_path, heir.topic) == list(range(12))


def files(warehouse: Path, topic: str, suffix: str = "*.parquet") -> list[Path]:
    return sorted((warehouse / "tidemill" / table_name(topic)).rglob(suffix))


def table_of(dsn: str, warehouse: Path, topic: str) -> LogTable:
    found = Archive(dsn, str(warehouse)).table(topic)
    assert found is not None
    return found


@pytest.mark.servers
async def test_small_files_are_merged_old_snapshots_expire_and_every_row_stays(
    database: str, tmp_path: Path, name: str
) -> None:
    worker = Worker(database, tmp_path, name, EAGER)
    await worker.restored()
    commits = 2 * FAN_IN + 3
    for offset in range(commits):
        await worker.take(offset, offset + 1)
        await worker.pipeline.flush()
    archive = Archive(database, str(tmp_path))
    # Merging keeps the offsets that the table holds, which is where the next worker begins.
    assert archive.offsets(worker.topic) == {0: commits}
    assert archive.snapshots(worker.topic) == 1
    assert len(files(tmp_path, worker.topic)) < FAN_IN
    assert held(database, tmp_path, worker.topic) == list(range(commits))
    rows = table_of(database, tmp_path, worker.topic).read()
    assert rows.num_rows == commits


@pytest.mark.servers
async def test_a_file_whose_commit_never_came_is_no_row_and_is_deleted_later(
    database: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Worker(database, tmp_path, name)
    await killed.restored()
    await killed.take(0, 5)
    await killed.pipeline.flush()
    await killed.take(5, 9)

    class KilledError(BaseException):
        """The worker dies with its file written and its commit not sent."""

    def die(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", die)
        with pytest.raises(KilledError):
            await killed.pipeline.flush()
    assert len(files(tmp_path, killed.topic)) == 2
    assert held(database, tmp_path, killed.topic) == list(range(5))
    heir = Worker(database, tmp_path, name, EAGER)
    assert await heir.restored() == 5
    await heir.take(5, 9)
    await heir.pipeline.flush()
    assert held(database, tmp_path, heir.topic) == list(range(9))
    assert len(files(tmp_path, heir.topic)) == 2


@pytest.mark.servers
async def test_a_read_that_began_before_a_merge_reads_on(database: str, tmp_path: Path, name: str) -> None:
    worker = Worker(database, tmp_path, name, Limits(10_000_000, 1e-9, Upkeep()))
    await worker.restored()
    for offset in range(FAN_IN - 1):
        await worker.take(offset, offset + 1)
        await worker.pipeline.flush()
    before = table_of(database, tmp_path, worker.topic)
    await worker.take(FAN_IN - 1, FAN_IN)
    await worker.pipeline.flush()
    after = table_of(database, tmp_path, worker.topic)
    assert before.snapshot_id != after.snapshot_id
    assert sorted(before.read(["_offset"])["_offset"].to_pylist()) == list(range(FAN_IN - 1))
    assert sorted(after.read(["_offset"])["_offset"].to_pylist()) == list(range(FAN_IN))


@pytest.mark.servers
async def test_an_added_and_a_widened_field_read_as_the_new_schema_says_in_old_rows_too(
    database: str, tmp_path: Path, name: str
) -> None:
    worker = Worker(database, tmp_path, name)
    described = worker.streams[name]
    described.fields.add(name="items", type=definition.FIELD_TYPE_INT64, nullable=True)
    await worker.restored()
    await worker.take(0, 3, items=2)
    await worker.pipeline.flush()
    next(field for field in described.fields if field.name == "items").type = definition.FIELD_TYPE_FLOAT64
    described.fields.add(name="note", type=definition.FIELD_TYPE_STRING, nullable=True)
    # Before the first commit under the new schema a reader already asks for it.
    early = LogRows.before(table_of(database, tmp_path, worker.topic).read(["_partition", "_offset", "items"]), {})
    assert early.column("items", definition.FIELD_TYPE_FLOAT64).values.tolist() == [2.0] * 3
    assert early.column("note", definition.FIELD_TYPE_STRING).nulls.all()
    await worker.take(3, 5, items=2.5, note="new")
    await worker.pipeline.flush()
    rows = LogRows.before(table_of(database, tmp_path, worker.topic).read(), {})
    assert rows.column("items", definition.FIELD_TYPE_FLOAT64).values.tolist() == [2.0] * 3 + [2.5] * 2
    assert rows.column("note", definition.FIELD_TYPE_STRING).nulls.tolist() == [True] * 3 + [False] * 2
    again = Worker(database, tmp_path, name)
    assert await again.restored() == 5


@pytest.mark.servers
async def test_a_field_that_is_removed_and_comes_back_as_another_type_begins_a_column_anew(
    database: str, tmp_path: Path, name: str
) -> None:
    worker = Worker(database, tmp_path, name)
    described = worker.streams[name]
    described.fields.add(name="tip", type=definition.FIELD_TYPE_FLOAT64, nullable=True)
    await worker.restored()
    await worker.take(0, 2, tip=0.5)
    await worker.pipeline.flush()
    del described.fields[-1]
    await worker.take(2, 4)
    await worker.pipeline.flush()
    described.fields.add(name="tip", type=definition.FIELD_TYPE_STRING, nullable=True)
    await worker.take(4, 6, tip="cash")
    await worker.pipeline.flush()
    rows = table_of(database, tmp_path, worker.topic).read().sort_by("_offset")
    assert rows["tip"].to_pylist() == [None] * 4 + ["cash"] * 2
    (old,) = (column for column in rows.column_names if column.startswith("tip_double_"))
    assert rows[old].to_pylist() == [0.5] * 2 + [None] * 4


@pytest.mark.servers
async def test_duckdb_reads_a_table_as_it_is_before_and_after_its_files_were_merged(
    database: str, tmp_path: Path, name: str
) -> None:
    worker = Worker(database, tmp_path, name, Limits(10_000_000, 1e-9, Upkeep()))
    await worker.restored()
    catalogue = SqlCatalog("tidemill", uri=catalogue_uri(database), warehouse=f"file://{tmp_path}")
    for offset in range(FAN_IN):
        await worker.take(offset, offset + 1)
        await worker.pipeline.flush()
        table = catalogue.load_table(f"tidemill.{table_name(worker.topic)}")
        rows = table.scan().to_duckdb("clicks")
        found = rows.execute('SELECT count(*), sum(amount), max("at") FROM clicks').fetchone()
        assert found is not None
        assert found[:2] == (offset + 1, offset + 1.0)
        assert found[2].tzinfo is not None
    chosen = table.scan(f"_offset >= {FAN_IN - 2}", ("user",)).to_duckdb("clicks")
    assert chosen.execute("SELECT * FROM clicks").fetchall() == [("u",), ("u",)]
    # What was merged lies there still, for those who read it: the folder's files are not the table.
    paths = [str(path) for path in files(tmp_path, worker.topic)]
    assert duckdb.execute("SELECT count(*) FROM read_parquet(?)", [paths]).fetchone() == (2 * FAN_IN,)


@pytest.mark.servers
async def test_the_predictions_table_reads_as_it_is(database: str, tmp_path: Path, name: str) -> None:
    pipeline = ArchivePipeline(database, str(tmp_path), Catalogue(), LIMITS)
    place = Partition(PREDICTIONS_TOPIC, 0)
    await pipeline.restore(Assignment({place: 0}, {place: 0}, {place: 0}))
    record = serving.PredictionRecord(prediction_id=name, pipeline="x", join_key="k", as_of_us=3)
    await pipeline.apply(Batch({place: [Row("t", 0, 0, b"k", record.SerializeToString(), [])]}))
    await pipeline.flush()
    rows, snapshot = Archive(database, str(tmp_path)).read(PREDICTIONS_TOPIC)
    assert rows is not None
    assert snapshot
    assert name in rows["prediction_id"].to_pylist()
