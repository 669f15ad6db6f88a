"""A run in work while Kafka is away, on a stack of its own."""

import asyncio
from typing import Any

import pytest
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.plugin import Servers, servers_of

pytestmark = pytest.mark.servers


@pytest.fixture
def servers(own_stack: Any) -> Servers:
    """In place of the shared servers: these are stopped and started."""
    return servers_of(own_stack.endpoints)


async def test_a_run_in_work_is_registered_while_kafka_is_away_and_told_of_when_it_is_back(
    world: Any, own_stack: Any
) -> None:
    counter, go = world.home / "count", world.home / "go"
    code = (
        f"open({str(counter)!r}, 'a').write('ran\\n')\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.1)\n"
        "for _ in range(200): print(json.dumps({'kind': 'progress', 'phase': 'fit', 'progress': 0.5}), flush=True)\n"
    )
    async with world.service(world.stand_in(code + world.done)):
        offset = await world.ask("one")
        await aeventually(counter.exists, claim="the run has begun")
        await asyncio.to_thread(own_stack.stop_process, "kafka")
        try:
            go.touch()
            await aeventually(
                lambda: [run.status for run in world.registry.runs.values()] == ["succeeded"],
                claim="the run has ended without Kafka",
            )
        finally:
            await asyncio.to_thread(own_stack.start_process, "kafka")
        await world.ended(offset)
    assert counter.read_text() == "ran\n"
    assert (await world.runs())[-1].status == "succeeded"
