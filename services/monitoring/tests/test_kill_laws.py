"""Killed at any moment: nothing lost, no (prediction id, revision) twice, no day judged differently."""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from tidemill_contracts.instants import parse_us
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_testkit.orphans import dying_with_us

HOUR = 3_600_000_000
DAY = 24 * HOUR
START = parse_us("2013-01-01T00:00:00Z")
KILLS = 5

# conftest's World; test modules cannot import it under importlib mode.
World = Any

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


@asynccontextmanager
async def process(world: World) -> Any:
    """Run the service as its own process; it is killed on the way out, if it still lives."""
    settings = world.settings
    environment = os.environ | {
        "TIDEMILL_MONITORING_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "TIDEMILL_MONITORING_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "TIDEMILL_MONITORING_POSTGRES__DSN": settings.postgres.dsn.get_secret_value(),
        "TIDEMILL_MONITORING_GRPC__LISTEN": settings.grpc.listen,
        "TIDEMILL_MONITORING_DATADIR": str(settings.datadir),
        "TIDEMILL_MONITORING_LOG_LEVEL": "warning",
    }
    command = (sys.executable, "-m", "tidemill_monitoring")
    running = await asyncio.create_subprocess_exec(*dying_with_us(command), env=environment)
    try:
        yield running
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGKILL)
        await running.wait()


async def live(world: World, days: range) -> None:
    """Write days of requests and landings, a correction here and there; then their ends."""
    for number in days:
        await world.day(number, 60, 0.3 if number < 12 else 0.8)
        await world.land(f"{number}-0", START + number * DAY + 3 * HOUR, 40.0, f"correction-{number}")
    await world.written()


async def judged(world: World) -> list[tuple[int, float, float]]:
    """Return what each day's end said of the champion: time, rows, log loss."""
    told = await world.told("monitoring.metrics.v1", monitoring.MetricRecord)
    return [(one.window_end.seconds, one.rows, one.values["log_loss"]) for one in told]


async def test_kills_at_any_moment_lose_nothing_double_nothing_and_change_no_judgement(world: World) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    await world.apply()
    await live(world, range(18))
    for _ in range(KILLS):
        async with process(world) as running:
            # From about the start of joining to some way in; a late kill finds everything done.
            await asyncio.sleep(3.0 + 2.5 * moments.random())
            running.send_signal(signal.SIGKILL)
            await running.wait()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(process(world))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(world.settings.grpc.listen))
        world.ask_through(channel)
        await world.settle(START + 18 * DAY)
        found = await world.outcomes()
        counts = Counter((one.prediction_id, one.revision) for one in found)
        assert set(counts.values()) == {1}
        assert Counter(one.revision for one in found) == {1: 18 * 60, 2: 18}
        days = await judged(world)
        assert len(days) == len({at for at, _, _ in days}) == 18
        incidents = await world.told("monitoring.incidents.v1", monitoring.IncidentRecord)
        assert [one.revision for one in incidents] == [1, 2]
        assert len(await world.told("monitoring.retrain-requests.v1", monitoring.RetrainRequest)) == 1
        rows = {at: rows for at, rows, _ in days}
        assert [rows[(START + (day + 1) * DAY) // 1_000_000] for day in range(18)] == [
            60 * min(day + 1, 7) for day in range(18)
        ]
