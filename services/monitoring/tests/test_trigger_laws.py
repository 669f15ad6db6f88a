"""Each cause is decided once, whatever the topic of triggers goes through; against the real PostgreSQL."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from tidemill_contracts.canonical import to_json
from tidemill_contracts.causes import DRIFT, SCHEDULE
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us, to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_monitoring.adapters.policy import Policy
from tidemill_monitoring.adapters.schema import OUTBOX, create_tables
from tidemill_monitoring.board import Board
from tidemill_monitoring.policy import DEFERRED, RETRAIN
from tidemill_monitoring.registered import Registered
from tidemill_runtime.batches import PlainRecord
from tidemill_runtime.outbox import OutboxRelay
from tidemill_runtime.producer import Producer

DAY = 86_400_000_000
START = parse_us("2013-01-01T00:00:00Z")
PIPELINE = "late"

pytestmark = pytest.mark.servers


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Any]:
    async with asyncpg.create_pool(database, min_size=1, max_size=2) as made:
        async with made.acquire() as connection:
            await create_tables(connection)
        yield made


@pytest.fixture
def policy(world: Any, pool: Any) -> Policy:
    """The policy of a registered pipeline; nothing relays what it sends."""
    registered = Registered()
    found = definition.DefinitionRecord(kind="pipeline", name=PIPELINE, definition=world.defined())
    registered.fold_definition(to_json(found))
    registered.champion_since_us[PIPELINE] = START
    board = Board()
    return Policy(pool, registered, OutboxRelay(pool, Producer(world.kafka), OUTBOX), lambda _: board)


def trigger(kind: str, cause_id: str, day: int, offset: int) -> PlainRecord:
    """Return a trigger as it lies in its topic."""
    found = monitoring.PolicyTrigger(
        pipeline=PIPELINE, cause_kind=kind, cause_id=cause_id, event_time=to_timestamp(START + day * DAY)
    )
    return PlainRecord("t.monitoring.policy-triggers.v1", 0, offset, 0, b"late", to_json(found), [])


async def decided(pool: Any) -> Sequence[tuple[str, str]]:
    rows = await pool.fetch("SELECT cause_id, outcome FROM monitoring.decision ORDER BY event_time_us")
    return [tuple(row) for row in rows]


async def test_a_trigger_at_the_place_of_an_older_one_is_decided_since_topics_are_made_anew(
    policy: Policy, pool: Any
) -> None:
    await policy.decide(trigger(SCHEDULE, "slot", 28, 0))
    await policy.decide(trigger(DRIFT, "incident", 50, 0))
    assert await decided(pool) == [("slot", RETRAIN), ("incident", RETRAIN)]


async def test_a_trigger_that_comes_twice_changes_nothing_and_what_was_deferred_is_decided_when_it_is_due(
    policy: Policy, pool: Any
) -> None:
    await policy.decide(trigger(SCHEDULE, "slot", 28, 0))
    early, due = trigger(DRIFT, "incident", 29, 1), trigger(DRIFT, "incident", 31, 2)
    await policy.decide(early)
    before = await pool.fetch("SELECT * FROM monitoring.decision")
    await policy.decide(early)
    assert await pool.fetch("SELECT * FROM monitoring.decision") == before
    assert await decided(pool) == [("slot", RETRAIN), ("incident", DEFERRED)]
    await policy.decide(due)
    await policy.decide(due)
    await policy.decide(early)
    assert await decided(pool) == [("slot", RETRAIN), ("incident", RETRAIN)]
    assert await pool.fetchval("SELECT count(*) FROM monitoring.outbox") == 2
