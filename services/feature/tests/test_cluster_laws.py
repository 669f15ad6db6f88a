"""The service on a Redis Cluster of three nodes: whatever happens to it and to them, features equal brute force."""

import random
import signal
from typing import Any

import grpc
import pytest
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

PAYERS = [f"payer-{number}" for number in range(20)]
SECOND = 1_000_000
# With a name, a killed worker has its partitions back at once.
ON_CLUSTER = {"REDIS__CLUSTER": "true", "BATCH_RECORDS": "7", "KAFKA__INSTANCE": "one"}


def payments(seed: int, count: int, start_us: int) -> list[dict[str, Any]]:
    """Return payments of entities that lie on all nodes, some out of order."""
    chance = random.Random(seed)
    return [
        {
            "at_us": start_us + number * SECOND - chance.choice([0, 0, 7]) * SECOND,
            "partition": number % 2,
            "id": f"{seed}-{number}",
            "fields": {
                "payment": f"{seed}-{number}",
                "payer": chance.choice(PAYERS),
                "amount": chance.uniform(-9, 9),
                "items": chance.randint(1, 4),
            },
        }
        for number in range(count)
    ]


async def wrong(world: Any, feature: Any, as_of_us: int) -> list[str]:
    """Return the payers whose features are not what brute force says."""
    found = await feature.get("payer", PAYERS, as_of_us)
    return [
        payer
        for payer, got in zip(PAYERS, found, strict=True)
        if got != world.log.features(world.payer, payer, as_of_us)
    ]


async def test_a_killed_worker_and_a_node_that_lost_its_data_leave_no_trace(world: Any, redis_cluster: Any) -> None:
    redis_cluster.settled()
    world.redis_url = redis_cluster.url
    await world.register(world.payer, world.busy)
    feature = await world.start(**ON_CLUSTER)
    await world.pay(payments(1, 150, world.noon_us))
    await feature.reached(await world.ends())
    assert await wrong(world, feature, world.noon_us + 149 * SECOND) == []
    await world.pay(payments(2, 100, world.noon_us + 150 * SECOND))
    await feature.stop(signal.SIGKILL)
    feature = await world.start(**ON_CLUSTER)
    await feature.reached(await world.ends(), 40)
    assert await wrong(world, feature, world.noon_us + 249 * SECOND) == []
    for number, node in enumerate(redis_cluster.nodes[1:]):
        node.kill()
        node.start()
        redis_cluster.settled()
        start_us = world.noon_us + (250 + 50 * number) * SECOND
        await world.pay(payments(3 + number, 50, start_us))
        await feature.reached(await world.ends(), 40)

        async def right(as_of_us: int = start_us + 49 * SECOND) -> bool:
            try:
                return await wrong(world, feature, as_of_us) == []
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                # What was lost is being built again.
                return False

        await aeventually(right, claim=f"what node {number} lost is read again from the log")
    assert await feature.stop() == 0
