"""What was committed and may not have been published: in Kafka once, whatever ended in between."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from tidemill_contracts.instants import parse_us
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_monitoring.adapters.findings import Retention, forget
from tidemill_monitoring.adapters.forgetting import PAGE, Forgetting
from tidemill_monitoring.adapters.journal import Journal, outcome_record
from tidemill_monitoring.adapters.schema import create_tables
from tidemill_monitoring.join import LABELLED, Outcome, Stored
from tidemill_runtime.producer import Producer
from tidemill_testkit.eventually import aeventually

HOUR = 3_600_000_000
DAY = 24 * HOUR
START = parse_us("2013-01-01T00:00:00Z")
PIPELINE = "late"

# conftest's World; test modules cannot import it under importlib mode.
World = Any

pytestmark = pytest.mark.servers


@pytest.fixture
async def tables(database: str) -> AsyncIterator[Any]:
    """A connection to a database that holds monitoring's tables, empty."""
    connection = await asyncpg.connect(database)
    await create_tables(connection)
    yield connection
    await connection.close()


def labelled(pipeline: str, prediction_id: str, revision: int = 1) -> Outcome:
    record = serving.PredictionRecord(prediction_id=prediction_id, pipeline=pipeline, join_key="a", as_of_us=START)
    asked = Stored(pipeline, prediction_id, "a", START, b"", record.SerializeToString())
    return Outcome(asked, revision, LABELLED, 1.0, START + HOUR, START + HOUR)


async def commit(tables: Any, *outcomes: Outcome, published: int) -> None:
    """Leave outcomes behind as a transaction does, the first `published` of them known to be in Kafka."""
    for seq, one in enumerate(outcomes, 1):
        await tables.execute(
            "INSERT INTO monitoring.prediction VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING", *one.prediction
        )
        await tables.execute(
            "INSERT INTO monitoring.outcome VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            one.prediction.pipeline,
            one.prediction.prediction_id,
            one.revision,
            one.state,
            one.label,
            one.label_time_us,
            START + 2 * HOUR if one.revision == 1 else None,
            one.prediction.scores,
            seq,
        )
    await tables.execute("UPDATE monitoring.writer SET next_seq = $1, published_seq = $2", len(outcomes) + 1, published)


async def forget_all(tables: Any) -> dict[str, list[str]]:
    """Let go of everything as a midnight does, and return whose rows are left."""
    await forget(tables, PIPELINE, Retention(START + DAY, START + DAY, START + DAY))
    forgetting = Forgetting()
    await forgetting.look(tables)
    while forgetting.is_due:
        await forgetting.turn(tables, {PIPELINE: START + DAY})
    return {
        table: [row[0] for row in await tables.fetch(f"SELECT prediction_id FROM monitoring.{table} ORDER BY 1")]
        for table in ("prediction", "outcome")
    }


async def take_up(world: World, tables: Any) -> None:
    """Publish what a crash has left."""
    async with Producer(world.kafka) as producer, Journal(producer, world.kafka) as journal:
        await journal.recover(tables)
        journal.publish([], 0)


async def test_what_may_not_be_in_kafka_is_not_forgotten(world: World, tables: Any) -> None:
    outcomes = [labelled(PIPELINE, "known"), labelled(PIPELINE, "corrected"), labelled(PIPELINE, "new")]
    await commit(tables, *outcomes, labelled(PIPELINE, "corrected", 2), published=2)
    assert await forget_all(tables) == {
        "prediction": ["corrected", "new"],
        "outcome": ["corrected", "corrected", "new"],
    }
    await take_up(world, tables)
    assert [(one.prediction_id, one.revision) for one in await world.outcomes()] == [("corrected", 2), ("new", 1)]
    await tables.execute("UPDATE monitoring.writer SET published_seq = 4")
    assert await forget_all(tables) == {"prediction": [], "outcome": []}


async def test_pipelines_that_are_asked_with_the_same_id_each_get_their_outcome_once(world: World, tables: Any) -> None:
    outcomes = [labelled("late", "order-1"), labelled("other", "order-1")]
    await commit(tables, *outcomes, published=0)
    async with Producer(world.kafka) as producer:
        await producer.send_each([outcome_record(outcomes[0])])
    await take_up(world, tables)
    assert sorted(one.prediction.pipeline for one in await world.outcomes()) == ["late", "other"]


async def test_what_is_published_is_on_disk_before(world: World, tables: Any) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START)
        for number in range(12):
            await world.predict(f"f{number}", START + HOUR)
        await world.settle()
        for number in range(12):
            written = await tables.fetchval("SELECT pg_current_wal_insert_lsn()")
            await world.land(f"f{number}", START + 3 * HOUR, 20.0)
            await world.settle()
            assert await tables.fetchval("SELECT pg_current_wal_flush_lsn() > $1::pg_lsn", written), number
        assert len(await world.outcomes()) == 12


async def test_a_midnight_lets_go_in_pages_while_joining_goes_on(world: World, tables: Any) -> None:
    postgres = world.settings.postgres.model_copy(update={"timeout_s": 2.0})
    world.settings = world.settings.model_copy(update={"postgres": postgres})
    rows = 5 * PAGE + 1

    async def left() -> int:
        count: int = await tables.fetchval("SELECT count(*) FROM monitoring.prediction WHERE join_key = 'old'")
        return count

    async with world.running():
        await world.apply()
        await world.watermark(START + 16 * DAY + HOUR)
        await world.settle(START + 16 * DAY + HOUR)
        await tables.execute(
            "INSERT INTO monitoring.prediction SELECT $1, number::text, 'old', $2, '', '' "
            "FROM generate_series(1, $3) AS number",
            PIPELINE,
            START + DAY // 2,
            rows,
        )
        await world.predict("a", START + 16 * DAY)
        await world.watermark(START + 17 * DAY)
        await world.settle(START + 17 * DAY)
        assert await left() >= rows - 2 * PAGE, "the midnight does not wait for all of it"
        await world.land("a", START + 17 * DAY, 20.0)
        await world.settle()
        assert len(await world.outcomes()) == 1
    # Who goes on knows what is left.
    async with world.running():
        assert await left() > 0
        minutes = iter(range(1, 1_000))

        async def gone() -> bool:
            at_us = START + 17 * DAY + next(minutes) * 1_000_000
            await world.watermark(at_us)
            await world.settle(at_us)
            return await left() == 0

        await aeventually(gone, claim="each batch takes a page")
