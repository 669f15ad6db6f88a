"""How many values of exact views were read at hop accuracy: the service's counter, on the real Kafka and Redis."""

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.servers

COUNTER = 'tidemill_feature_read_hop_accuracy_total{view="narrow"}'


async def counted(feature: Any) -> float:
    """Return what the service's metrics say; without a line, nothing was counted."""
    async with httpx.AsyncClient(timeout=60) as http:
        text = (await http.get(f"http://{feature.http}/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(COUNTER))


async def test_each_value_read_at_hop_accuracy_is_counted_and_no_other(world: Any) -> None:
    await world.register(world.narrow)
    feature = await world.start()
    await world.pay(
        {
            "at_us": world.noon_us + second * world.second_us,
            "partition": second % 2,
            "id": f"{second}",
            "fields": {"payment": f"{second}", "payer": "ann" if second % 3 else "bob", "amount": 1.5, "items": 1},
        }
        for second in range(60)
    )
    await feature.reached(await world.ends())
    keys, expected = ["ann", "bob", "nobody"], 0.0
    assert await counted(feature) == expected
    # After everything; in the middle of a full bucket; where the tail cuts one; where each bucket has room.
    for second in (70, 40, 640, 61):
        as_of_us = world.noon_us + second * world.second_us
        coarse = sum(one.coarse for key in keys for one in world.log.answers(world.narrow, key, as_of_us))
        await feature.get("narrow", keys, as_of_us)
        expected += coarse
        assert await counted(feature) == expected, second
        assert coarse == {70: 0, 40: 2, 640: 2, 61: 0}[second]
