"""That the offline log holds each record once whatever happens to the worker, and what becomes of its tables."""

import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import duckdb_extension_avro
import duckdb_extension_iceberg
import psycopg2
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from pyiceberg.catalog.sql import SqlCatalog
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_contracts.topics import events_topic, fixed_topics, stream_topics
from tidemill_feature.adapters.archive import ArchivePipeline, Limits
from tidemill_feature.adapters.online_role import OnlineRole
from tidemill_features import iceberg
from tidemill_features.archive import PREDICTIONS_TOPIC, table_name
from tidemill_features.iceberg import Archive, catalogue_uri
from tidemill_features.log_columns import LogRows
from tidemill_features.log_table import LogTable
from tidemill_features.upkeep import FAN_IN, Upkeep
from tidemill_runtime.batches import Assignment, Batch, Refused
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.errors import Poison, Retryable, StateLost
from tidemill_runtime.positions import Offsets, Partition
from tidemill_runtime.producer import Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.topic_ids import Topic, TopicLook
from tidemill_testkit.click_world import Row, event, stream
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.plugin import Servers
from tidemill_testkit.topic_deletion import delete_topics

LIMITS = Limits(10_000_000)
# The end of a log that holds whatever a test takes from it.
LONG = 1_000_000
# Look after the tables at every commit, keep the newest snapshot only, and delete at once what nothing names.
EAGER = Limits(10_000_000, 1e-9, Upkeep(keep_snapshots=1, keep_s=0.0, orphan_s=-60.0))


class Worker:
    """One offline worker over a stream of its own; `Worker` again is the same one after a crash."""

    def __init__(
        self,
        dsn: str,
        warehouse: Path,
        name: str,
        limits: Limits = LIMITS,
        online: OnlineRole | None = None,
        look: TopicLook | None = None,
    ) -> None:
        self.topic = events_topic(name)
        self.place = Partition(self.topic, 0)
        self.name = name
        catalogue = Catalogue(streams={name: stream(name)})
        self.streams = catalogue.streams
        self.pipeline = ArchivePipeline(dsn, str(warehouse), catalogue, limits, online, look)

    async def restored(self, end: int = LONG) -> int:
        """Restore where the log ends so, and return from where it is read."""
        assignment = Assignment({self.place: 0}, {self.place: 0}, {self.place: end})
        return (await self.pipeline.restore(assignment)).offsets[self.place]

    async def take(self, first: int, end: int, **fields: Any) -> None:
        records = [event(self.topic, offset, fields=fields) for offset in range(first, end)]
        await self.pipeline.apply(Batch({self.place: records}))


def held(dsn: str, warehouse: Path, topic: str) -> list[Any]:
    rows, _ = Archive(dsn, str(warehouse)).read(topic)
    return [] if rows is None else sorted(rows["_offset"].to_pylist())


async def make_anew(kafka: KafkaSettings, name: str, look: TopicLook) -> None:
    """Delete a stream's topic and create it again, and return once Kafka tells of the new one."""
    await delete_topics(kafka.client_kwargs(), [kafka.physical(events_topic(name))])
    await create_topics(kafka.client_kwargs(), stream_topics([(name, 1)]), kafka.topic_prefix)

    async def told() -> bool:
        return bool(await look.known([events_topic(name)]))

    await aeventually(told, claim=f"Kafka knows {name} again")


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
async def test_a_topic_that_is_made_anew_gets_a_table_of_its_own(
    servers: Servers, topic_prefix: str, database: str, tmp_path: Path, name: str
) -> None:
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    await create_topics(kafka.client_kwargs(), stream_topics([(name, 1)]), topic_prefix)
    look = TopicLook(kafka)
    worker = Worker(database, tmp_path, name, EAGER, look=look)
    await worker.restored()
    await worker.take(0, 10)
    await worker.pipeline.flush()
    await worker.take(10, 12)
    first = (await look.topics([worker.topic]))[worker.topic].id.hex()
    await make_anew(kafka, name, look)
    # What is buffered may be of either topic.
    with pytest.raises(StateLost, match="is another topic than before"):
        await worker.pipeline.flush()
    assert await worker.restored(4) == 0, "its offsets are others'"
    await worker.take(0, 4, user="new")
    await worker.pipeline.flush()
    await make_anew(kafka, name, look)
    # This time while nobody looks, and so long that the former offsets are there again.
    second = Worker(database, tmp_path, name, EAGER, look=look)
    assert await second.restored(20) == 0
    await second.take(0, 20, user="newest")
    await second.pipeline.flush()
    assert held(database, tmp_path, worker.topic) == list(range(20))
    assert await second.restored(20) == 20, "it is the same topic as before"
    # What was archived of the first is there, though upkeep has deleted since what the other tables do not name.
    aside = catalogue_of(database, tmp_path).load_table(("tidemill", f"{table_name(worker.topic)}_{first}"))
    assert sorted(aside.scan().to_arrow()["_offset"].to_pylist()) == list(range(10))
    await worker.pipeline.close()


@dataclass
class OneTopic:
    """Stands for a Kafka that gives every topic this id; another one may be asked later, or a backup be restored."""

    id: bytes

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        return {name: Topic(self.id, 1) for name in names}

    known = topics


@pytest.mark.servers
async def test_a_log_that_comes_back_gets_its_table_back(database: str, tmp_path: Path, name: str) -> None:
    look: Any = OneTopic(bytes([1] * 16))
    worker = Worker(database, tmp_path, name, EAGER, look=look)
    await worker.restored()
    await worker.take(0, 10)
    await worker.pipeline.flush()
    look.id = bytes([2] * 16)
    assert await worker.restored() == 0
    await worker.take(0, 4)
    await worker.pipeline.flush()
    for number, rows in ((1, 10), (2, 4), (1, 10)):
        look.id = bytes([number] * 16)
        assert await worker.restored() == rows
        await worker.pipeline.flush()
        assert held(database, tmp_path, worker.topic) == list(range(rows))
    await worker.take(10, 12)
    await worker.pipeline.flush()
    assert held(database, tmp_path, worker.topic) == list(range(12))


@pytest.mark.servers
async def test_a_log_that_begins_again_under_a_full_buffer_doubles_no_row(
    database: str, tmp_path: Path, name: str
) -> None:
    worker = Worker(database, tmp_path, name)
    await worker.restored()
    await worker.take(0, 10)
    await worker.pipeline.flush()
    await worker.take(10, 14)
    # Where Kafka has lost the end, the client goes on at the beginning.
    with pytest.raises(StateLost, match="its offsets went backwards"):
        await worker.take(0, 12)
    with pytest.raises(StateLost, match="moved on, or lost its end"):
        await worker.restored(8)
    assert await worker.restored(8) == 8
    await worker.take(8, 12)
    await worker.pipeline.flush()
    assert held(database, tmp_path, worker.topic) == list(range(12))


@pytest.mark.servers
async def test_records_that_kafka_has_lost_are_given_up_and_those_in_their_place_are_rows(
    database: str, tmp_path: Path, name: str
) -> None:
    worker = Worker(database, tmp_path, name)
    await worker.restored()
    await worker.take(0, 10, user="before")
    await worker.pipeline.flush()
    # The end may have been asked for before another worker moved both on.
    with pytest.raises(StateLost, match="moved on, or lost its end"):
        await worker.restored(7)
    assert await worker.restored(10) == 10
    assert held(database, tmp_path, worker.topic) == list(range(10))
    with pytest.raises(StateLost, match="moved on, or lost its end"):
        await worker.restored(7)
    assert await worker.restored(7) == 7
    assert held(database, tmp_path, worker.topic) == list(range(7))
    await worker.take(7, 9, user="after")
    await worker.pipeline.flush()
    rows = table_of(database, tmp_path, worker.topic).read(["_offset", "user"]).to_pylist()
    assert sorted((row["_offset"], row["user"]) for row in rows) == [
        *((offset, "before") for offset in range(7)),
        (7, "after"),
        (8, "after"),
    ]


@pytest.mark.servers
async def test_what_was_refused_by_the_definition_before_is_no_row_by_the_next(
    servers: Servers, topic_prefix: str, database: str, tmp_path: Path, name: str
) -> None:
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    await create_topics(kafka.client_kwargs(), [*fixed_topics(), *stream_topics([(name, 1)])], topic_prefix)
    worker = Worker(database, tmp_path, name, online=OnlineRole(kafka, "feature-online", _known))
    await worker.restored()
    await online_is_at(kafka, worker.place, 5)
    await worker.take(0, 10)
    async with Producer(kafka) as producer:
        # By the online role, after the records were read here; one of them is read here only later.
        refused = [Refused(event(worker.topic, offset), Poison(Reason.OVERSIZED, "too large")) for offset in (3, 11)]
        await DeadLetters(producer, kafka, "feature-online").send(refused, 12)
    mended = stream(name)
    mended.max_event_bytes *= 4
    worker.streams[name] = mended
    with pytest.raises(Retryable, match="not decided"):
        await worker.pipeline.flush()
    assert held(database, tmp_path, worker.topic) == []
    await online_is_at(kafka, worker.place, 10)
    await worker.pipeline.flush()
    await worker.take(10, 13)
    await worker.pipeline.flush()
    assert held(database, tmp_path, worker.topic) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 12]


@pytest.mark.servers
async def test_what_it_would_refuse_waits_for_an_online_role_that_has_said_nothing_yet(
    servers: Servers, topic_prefix: str, database: str, tmp_path: Path, name: str
) -> None:
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    await create_topics(kafka.client_kwargs(), [*fixed_topics(), *stream_topics([(name, 1)])], topic_prefix)
    worker = Worker(database, tmp_path, name, online=OnlineRole(kafka, "feature-online", _known))
    await worker.restored()
    await worker.take(0, 3)
    await worker.take(3, 4, user="u" * 2_000)
    with pytest.raises(Retryable, match="not decided"):
        await worker.pipeline.flush()
    assert held(database, tmp_path, worker.topic) == []
    await online_is_at(kafka, worker.place, 4)
    await worker.pipeline.flush()
    assert held(database, tmp_path, worker.topic) == [0, 1, 2]


async def _known(_offsets: Offsets) -> None:
    """Whoever changes the catalogue by hand need not be waited for."""


async def online_is_at(kafka: KafkaSettings, place: Partition, offset: int) -> None:
    """Say to Kafka what the online role says once it has decided of what lies before an offset."""
    there = TopicPartition(kafka.physical(place.topic), place.number)
    async with AIOKafkaConsumer(**kafka.client_kwargs(), **kafka.group("feature-online")) as consumer:
        consumer.assign([there])
        await consumer.commit({there: offset})


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


@pytest.mark.servers
async def test_files_that_are_away_are_named_and_waited_for(database: str, tmp_path: Path, name: str) -> None:
    worker, warehouse = Worker(database, tmp_path / "log", name), tmp_path / "log"
    await worker.restored()
    await worker.take(0, 3)
    await worker.pipeline.flush()
    warehouse.rename(tmp_path / "unmounted")
    heir = Worker(database, warehouse, name)
    with pytest.raises(Retryable, match=f"the offline log's files in {warehouse}"):
        await heir.restored()
    (tmp_path / "unmounted").rename(warehouse)
    assert await heir.restored() == 3


def files(warehouse: Path, topic: str, suffix: str = "*.parquet") -> list[Path]:
    return sorted((warehouse / "tidemill" / table_name(topic)).rglob(suffix))


def catalogue_of(dsn: str, warehouse: Path) -> SqlCatalog:
    """The catalogue as a stranger opens it."""
    return SqlCatalog("tidemill", uri=catalogue_uri(dsn), warehouse=f"file://{warehouse}")


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
    database: str, tmp_path: Path, name: str, lakehouse: duckdb.DuckDBPyConnection
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
    location = catalogue_of(database, tmp_path).load_table(f"tidemill.{table_name(worker.topic)}").metadata_location
    query = "SELECT items, note FROM iceberg_scan(?) ORDER BY _offset"
    assert lakehouse.execute(query, [location]).fetchall() == [(2.0, None)] * 3 + [(2.5, "new")] * 2
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
    # Before the first commit under the new type a reader already asks for it: what is there means something else.
    early = LogRows.before(table_of(database, tmp_path, worker.topic).read(["_partition", "_offset", "tip"]), {})
    assert early.column("tip", definition.FIELD_TYPE_STRING).nulls.tolist() == [True] * 4
    assert early.texts("tip")[0].nulls.tolist() == [True] * 4
    assert early.column("tip", definition.FIELD_TYPE_INT64).nulls.tolist() == [True] * 4
    await worker.take(4, 6, tip="cash")
    await worker.pipeline.flush()
    rows = table_of(database, tmp_path, worker.topic).read().sort_by("_offset")
    assert rows["tip"].to_pylist() == [None] * 4 + ["cash"] * 2
    (old,) = (column for column in rows.column_names if column.startswith("tip_double_"))
    assert rows[old].to_pylist() == [0.5] * 2 + [None] * 4


@pytest.fixture
def lakehouse() -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with its own reader of Iceberg, which knows nothing of pyiceberg."""
    with duckdb.connect() as connection:
        for package in (duckdb_extension_avro, duckdb_extension_iceberg):
            (extension,) = Path(package.__path__[0]).rglob("*.duckdb_extension")
            connection.load_extension(str(extension))
        yield connection


@pytest.mark.servers
async def test_duckdb_reads_a_table_as_it_is_before_and_after_its_files_were_merged(
    database: str, tmp_path: Path, name: str, lakehouse: duckdb.DuckDBPyConnection
) -> None:
    worker = Worker(database, tmp_path, name, Limits(10_000_000, 1e-9, Upkeep()))
    await worker.restored()
    catalogue = catalogue_of(database, tmp_path)
    for offset in range(FAN_IN):
        await worker.take(offset, offset + 1)
        await worker.pipeline.flush()
        table = catalogue.load_table(f"tidemill.{table_name(worker.topic)}")
        rows = table.scan().to_duckdb("clicks")
        found = rows.execute('SELECT count(*), sum(amount), max("at") FROM clicks').fetchone()
        assert found is not None
        assert found[:2] == (offset + 1, offset + 1.0)
        assert found[2].tzinfo is not None
        query = 'SELECT count(*), sum(amount), max("at") FROM iceberg_scan(?)'
        assert lakehouse.execute(query, [table.metadata_location]).fetchone() == found
    chosen = table.scan(f"_offset >= {FAN_IN - 2}", ("user",)).to_duckdb("clicks")
    assert chosen.execute("SELECT * FROM clicks").fetchall() == [("u",), ("u",)]
    # What was merged lies there still, for those who read it: the folder's files are not the table.
    paths = [str(path) for path in files(tmp_path, worker.topic)]
    assert duckdb.execute("SELECT count(*) FROM read_parquet(?)", [paths]).fetchone() == (2 * FAN_IN,)


@pytest.mark.servers
async def test_the_predictions_table_reads_as_it_is(database: str, tmp_path: Path, name: str) -> None:
    pipeline = ArchivePipeline(database, str(tmp_path), Catalogue(), LIMITS)
    place = Partition(PREDICTIONS_TOPIC, 0)
    await pipeline.restore(Assignment({place: 0}, {place: 0}, {place: LONG}))
    record = serving.PredictionRecord(prediction_id=name, pipeline="x", join_key="k", as_of_us=3)
    await pipeline.apply(Batch({place: [Row("t", 0, 0, b"k", record.SerializeToString(), [])]}))
    await pipeline.flush()
    rows, snapshot = Archive(database, str(tmp_path)).read(PREDICTIONS_TOPIC)
    assert rows is not None
    assert snapshot
    assert name in rows["prediction_id"].to_pylist()


@pytest.mark.servers
async def test_a_catalogue_that_says_nothing_is_waited_for_and_not_for_ever(
    database: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL on a machine that froze, or behind a network that swallows packets, refuses nothing."""
    worker = Worker(database, tmp_path, name)
    await worker.restored()
    await worker.take(0, 3)
    await worker.pipeline.flush()
    await worker.take(3, 5)
    monkeypatch.setattr(iceberg, "_SILENCE_S", 0.5)
    with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE iceberg.iceberg_tables")
        with pytest.raises(StateLost, match="says nothing"):
            await worker.pipeline.flush()
        with pytest.raises(Retryable, match="says nothing"):
            await worker.restored()
    assert await worker.restored() == 3
    await worker.take(3, 5)
    await worker.pipeline.flush()
    assert held(database, tmp_path, worker.topic) == list(range(5))
