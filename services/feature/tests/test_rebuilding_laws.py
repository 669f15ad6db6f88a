"""Laws of building views anew, on the real Kafka and Redis: after each of these, features equal brute force."""

import asyncio
import copy
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_features.layout import shard_prefix
from tidemill_features.plan import compile_view
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

PAYERS = ["ann", "bob", "cid"]
ITEMS = [1, 2, 3, 4, 5]
SECOND = 1_000_000


def payments(seed: int, count: int, start_us: int, partitions: int = 2) -> list[dict[str, Any]]:
    """Return payments, some out of order, some sent twice."""
    chance = random.Random(seed)
    found: list[dict[str, Any]] = []
    for number in range(count):
        fields = {
            "payment": f"{seed}-{number}",
            "payer": chance.choice(PAYERS),
            "amount": chance.choice([None, 0.1, 1e16, -1e16, chance.uniform(-9, 9)]),
            "items": chance.randint(1, 4),
        }
        at_us = start_us + number * SECOND - chance.choice([0, 0, 5]) * SECOND
        found.append({"at_us": at_us, "partition": number % partitions, "id": f"{seed}-{number}", "fields": fields})
        if chance.random() < 0.1:
            found.append(found[-1])
    return found


async def check(world: Any, feature: Any, view: definition.View, as_of_us: int) -> None:
    """Compare every feature of every entity with brute force."""
    keys = PAYERS if view.entity[0] == "payer" else ITEMS
    expected = [world.log.features(view, key, as_of_us) for key in keys]
    assert await feature.get(view.name, keys, as_of_us) == expected, view.name


def redefined(view: definition.View) -> definition.View:
    """Return a view of the same name with other windows."""
    changed = copy.deepcopy(view)
    for feature in changed.features:
        feature.window_ms *= 2
    return changed


async def settled(look: Callable[[], Awaitable[None]], claim: str) -> None:
    """Wait until something holds that does not hold while views are being built."""

    async def holds() -> bool:
        try:
            await look()
        except (AssertionError, grpc.aio.AioRpcError):
            return False
        return True

    await aeventually(holds, claim=claim)


async def correct(world: Any, feature: Any, view: definition.View, as_of_us: int) -> None:
    """Wait until a view equals brute force."""
    await settled(lambda: check(world, feature, view, as_of_us), f"{view.name} equals brute force")


async def keys(world: Any, pattern: str) -> list[bytes]:
    async with Redis.from_url(world.redis_url) as redis:
        return [key async for key in redis.scan_iter(match=pattern, count=5000)]


async def test_a_new_view_is_built_beside_the_others_which_are_folded_on(world: Any) -> None:
    await world.register(world.payer)
    # As near as this no view ever is, so that everything goes through the builder.
    feature = await world.start(JOIN_RECORDS="20", BATCH_RECORDS="20")
    await world.pay(payments(1, 400, world.noon_us))
    await feature.reached(await world.ends())
    await world.register(world.busy)
    for part in range(5):
        await world.pay(payments(2 + part, 30, world.noon_us + (400 + 30 * part) * SECOND))
        await feature.reached(await world.ends())
        await check(world, feature, world.payer, world.noon_us + (420 + 30 * part) * SECOND)
    at_us = world.noon_us + 540 * SECOND
    await correct(world, feature, world.busy, at_us)
    await world.pay(payments(9, 30, world.noon_us + 550 * SECOND))
    await feature.reached(await world.ends())
    for view in (world.payer, world.busy):
        await check(world, feature, view, world.noon_us + 570 * SECOND)
    assert "building" in feature.output.read_text()
    await settled(lambda: nothing(world, "tm1:checkpoint:{%s:feature-online.build}:*"), "its own checkpoints are gone")


async def nothing(world: Any, pattern: str) -> None:
    assert not await keys(world, pattern % world.project)


async def test_building_goes_on_after_kill_9_and_under_another_worker(world: Any) -> None:
    await world.register(world.payer)
    feature = await world.start(JOIN_RECORDS="4", BATCH_RECORDS="5")
    await world.pay(payments(11, 500, world.noon_us))
    await feature.reached(await world.ends())
    await world.register(world.busy)
    chance = random.Random(11)
    for _ in range(3):
        await asyncio.wait([asyncio.create_task(feature.reached(await world.ends()))], timeout=chance.random())
        await feature.stop(signal.SIGKILL)
        feature = await world.start(JOIN_RECORDS="4", BATCH_RECORDS="5")
    at_us = world.noon_us + 490 * SECOND
    await correct(world, feature, world.busy, at_us)
    await check(world, feature, world.payer, at_us)


async def test_a_rebuild_repairs_shards_that_were_lost_and_says_how_far_it_is(world: Any) -> None:
    await world.register(world.payer, world.busy)
    feature = await world.start(JOIN_RECORDS="20", BATCH_RECORDS="20")
    await world.pay(payments(61, 400, world.noon_us))
    await feature.reached(await world.ends())
    at_us = world.noon_us + 380 * SECOND
    lost = await keys(world, f"{shard_prefix(world.project, compile_view(world.payer, world.stream).hash).decode()}*")
    async with Redis.from_url(world.redis_url) as redis:
        await redis.delete(*lost)
    # Nobody can tell what somebody deleted by hand.
    assert await feature.get("payer", PAYERS, at_us) != [world.log.features(world.payer, key, at_us) for key in PAYERS]
    assert (await feature.features.Rebuild(messages.RebuildRequest(view="payer"), timeout=60)).views == ["payer"]
    partitions = []

    async def ready() -> bool:
        builds = await feature.features.GetBuilds(messages.GetBuildsRequest(view="payer"), timeout=60)
        partitions.extend(builds.partitions)
        return all(view.ready and view.build == 1 for view in builds.views)

    await aeventually(ready, claim="the second build is read")
    await check(world, feature, world.payer, at_us)
    await check(world, feature, world.busy, at_us)
    assert all(0 <= one.next_offset <= one.end_offset for one in partitions)


async def test_what_kafka_has_dropped_is_built_from_the_archive(world: Any, database: str) -> None:
    await world.create("serving.predictions.v1", 1)
    await world.create("monitoring.outcomes.v1", 1)
    await world.register(world.payer)
    archive = {"POSTGRES__DSN": database, "WAREHOUSE": str(world.folder / "warehouse")}
    feature = await world.start(ROLES="online,offline", JOIN_RECORDS="20", BATCH_RECORDS="20", **archive)
    await world.pay(payments(81, 400, world.noon_us))
    await feature.reached(await world.ends())
    await feature.progress.WaitProgress(
        progress.WaitProgressRequest(stage="offline", offsets=await world.ends()), timeout=60
    )
    await world.drop_before("events.paid", 120)
    await world.pay(payments(82, 40, world.noon_us + 400 * SECOND))
    await world.register(world.busy, world.sharp)
    at_us = world.noon_us + 430 * SECOND
    for view in (world.busy, world.sharp):
        await correct(world, feature, view, at_us)
    await check(world, feature, world.payer, at_us)
    # And with nothing left in Redis.
    async with Redis.from_url(world.redis_url) as redis:
        await redis.delete(*await keys(world, f"tm1:*{world.project}*"))
    await world.pay(payments(83, 10, world.noon_us + 440 * SECOND))
    for view in (world.payer, world.busy, world.sharp):
        await correct(world, feature, view, at_us + 15 * SECOND)


async def test_nothing_is_built_from_what_was_archived_of_a_former_topic(world: Any, database: str) -> None:
    await world.create("serving.predictions.v1", 1)
    await world.create("monitoring.outcomes.v1", 1)
    await world.register(world.payer)
    archive = {"POSTGRES__DSN": database, "WAREHOUSE": str(world.folder / "warehouse")}
    feature = await world.start(ROLES="online,offline", **archive)
    await world.pay(payments(84, 200, world.noon_us))
    await feature.progress.WaitProgress(
        progress.WaitProgressRequest(stage="offline", offsets=await world.ends()), timeout=60
    )
    await feature.stop()
    await world.recreate("events.paid", 2)
    world.log.records.clear()
    await world.pay(payments(85, 200, world.noon_us + 100 * SECOND))
    await world.drop_before("events.paid", 40)
    world.log.records = [record for record in world.log.records if record.offset >= 40]
    # The one that archives is not there yet, to set the former topic's table aside.
    feature = await world.start(**archive)
    await feature.reached(await world.ends())
    await correct(world, feature, world.payer, world.noon_us + 310 * SECOND)


async def test_what_is_not_registered_is_not_rebuilt(world: Any) -> None:
    await world.register(world.payer)
    feature = await world.start()
    await world.pay(payments(71, 4, world.noon_us))
    await feature.reached(await world.ends())
    for request in ({}, {"view": "nothing"}, {"stream": "nothing"}, {"view": "payer", "stream": "paid"}):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await feature.features.Rebuild(messages.RebuildRequest(**request), timeout=60)
        assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


async def test_two_workers_each_build_their_partitions_and_one_takes_over_when_the_other_dies(world: Any) -> None:
    await world.register(world.payer)
    first = await world.start(JOIN_RECORDS="4", BATCH_RECORDS="5")
    second = await world.start(JOIN_RECORDS="4", BATCH_RECORDS="5")
    await world.pay(payments(91, 400, world.noon_us))
    await world.register(world.busy)
    await world.pay(payments(92, 40, world.noon_us + 400 * SECOND))
    await first.stop(signal.SIGKILL)
    at_us = world.noon_us + 430 * SECOND
    for view in (world.busy, world.payer):
        await correct(world, second, view, at_us)


async def test_a_redefined_view_answers_as_before_until_the_new_one_is_built(world: Any) -> None:
    await world.register(world.payer, world.busy)
    feature = await world.start(JOIN_RECORDS="20", BATCH_RECORDS="20", OLD_VIEW_GRACE_S="0")
    await world.pay(payments(21, 400, world.noon_us))
    await feature.reached(await world.ends())
    at_us = world.noon_us + 380 * SECOND
    old, new = world.payer, redefined(world.payer)
    before = await feature.get("payer", PAYERS, at_us)
    after = [world.log.features(new, key, at_us) for key in PAYERS]
    assert before != after
    await world.register(new)
    seen = []

    async def switched() -> bool:
        # Never an error, never a mixture.
        got = await feature.get("payer", PAYERS, at_us)
        assert got in (before, after)
        seen.append(got == after)
        return bool(seen[-1])

    await aeventually(switched, claim="the new version answers")
    assert sorted(seen) == seen, "and never the old one again"
    await world.pay(payments(22, 50, world.noon_us + 400 * SECOND))
    await feature.reached(await world.ends())
    await check(world, feature, new, world.noon_us + 440 * SECOND)

    async def expires() -> None:
        async with Redis.from_url(world.redis_url) as redis:
            prefix = shard_prefix(world.project, compile_view(old, world.stream).hash).decode()
            lives = [await redis.ttl(key) async for key in redis.scan_iter(match=f"{prefix}*")]
        assert lives
        assert all(0 < ttl <= 60 for ttl in lives)

    await settled(expires, "the old version's shards expire")


async def test_a_retired_view_is_read_no_more_and_is_right_again_when_it_comes_back(world: Any) -> None:
    await world.register(world.payer, world.busy)
    feature = await world.start()
    await world.pay(payments(23, 60, world.noon_us))
    await feature.reached(await world.ends())
    await world.retire(world.busy)

    async def unknown() -> bool:
        try:
            await feature.get("busy", ITEMS, world.noon_us)
        except grpc.aio.AioRpcError as refused:
            return refused.code() is grpc.StatusCode.NOT_FOUND
        return False

    await aeventually(unknown, claim="nobody reads it")
    await world.pay(payments(24, 60, world.noon_us + 60 * SECOND))
    await feature.reached(await world.ends())
    at_us = world.noon_us + 110 * SECOND
    await check(world, feature, world.payer, at_us)
    prefix = shard_prefix(world.project, compile_view(world.busy, world.stream).hash).decode()

    async def expires() -> None:
        async with Redis.from_url(world.redis_url) as redis:
            lives = [await redis.ttl(key) async for key in redis.scan_iter(match=f"{prefix}*")]
        assert lives
        assert all(0 < ttl <= 60 for ttl in lives)

    await settled(expires, "its shards expire")
    await world.register(world.busy)
    await correct(world, feature, world.busy, at_us)
    builds = await feature.features.GetBuilds(messages.GetBuildsRequest(view="busy"), timeout=60)
    assert [view.build for view in builds.views] == [1], "beside the shards that expire"
    await check(world, feature, world.payer, at_us)


async def test_a_retired_stream_is_read_no_more_and_goes_on_where_it_was_when_it_comes_back(world: Any) -> None:
    await world.register(world.busy)
    feature = await world.start()
    await world.pay(payments(23, 60, world.noon_us))
    await feature.reached(await world.ends())
    await world.retire(world.busy)
    await world.retire(world.stream)

    async def ended() -> bool:
        # The group has no stream left to read, and the service lives.
        stats = await feature.features.GetStats(messages.GetStatsRequest(), timeout=60)
        return not stats.views and await feature.live()

    await aeventually(ended, claim="nothing of the stream is folded")
    await world.pay(payments(24, 60, world.noon_us + 60 * SECOND))
    await world.register(world.busy)
    at_us = world.noon_us + 110 * SECOND
    await feature.reached(await world.ends(), 60)
    await correct(world, feature, world.busy, at_us)


async def test_partitions_added_by_definition_leave_the_rings_as_they_are(world: Any) -> None:
    await world.register(world.payer)
    feature = await world.start()
    await world.pay(payments(53, 60, world.noon_us))
    await feature.reached(await world.ends())
    at_us = world.noon_us + 50 * SECOND
    before = await feature.get("payer", PAYERS, at_us)
    await world.add_partitions("events.paid", 4)
    wider = copy.deepcopy(world.stream)
    wider.partitions = 4
    await world.register(world.payer, stream=wider)
    for _ in range(20):
        assert await feature.get("payer", PAYERS, at_us) == before, "nothing is built anew"
    await world.pay(payments(54, 60, world.noon_us + 60 * SECOND, partitions=4))
    await correct(world, feature, world.payer, world.noon_us + 110 * SECOND)
    builds = await feature.features.GetBuilds(messages.GetBuildsRequest(), timeout=60)
    assert [(view.build, view.old) for view in builds.views] == [(0, False)]


async def test_a_recreated_topic_is_noticed_while_running_and_its_views_are_built_anew(world: Any) -> None:
    await world.register(world.payer, world.busy)
    feature = await world.start()
    await world.pay(payments(31, 60, world.noon_us))
    await feature.reached(await world.ends())
    await world.recreate("events.paid", 2)
    world.log.records.clear()
    # As many as before and more: the offsets alone would not tell.
    await world.pay(payments(32, 200, world.noon_us + 60 * SECOND))
    at_us = world.noon_us + 250 * SECOND
    for view in (world.payer, world.busy):
        await correct(world, feature, view, at_us)
    await feature.stop(signal.SIGKILL)
    feature = await world.start()
    await feature.reached(await world.ends())
    await check(world, feature, world.payer, at_us)


async def test_a_topic_recreated_while_nobody_looked_is_noticed_at_the_start(world: Any) -> None:
    await world.register(world.payer)
    feature = await world.start()
    await world.pay(payments(41, 40, world.noon_us))
    await feature.reached(await world.ends())
    await feature.stop()
    await world.recreate("events.paid", 2)
    world.log.records.clear()
    feature = await world.start()
    await world.pay(payments(42, 20, world.noon_us + 60 * SECOND))
    await feature.reached(await world.ends())
    await check(world, feature, world.payer, world.noon_us + 75 * SECOND)
    assert "MADE_ANEW" in feature.output.read_text()


async def test_added_partitions_are_folded_and_read(world: Any) -> None:
    await world.register(world.payer, world.busy)
    feature = await world.start()
    await world.pay(payments(51, 60, world.noon_us))
    await feature.reached(await world.ends())
    await world.add_partitions("events.paid", 4)
    await world.pay(payments(52, 60, world.noon_us + 60 * SECOND, partitions=4))
    at_us = world.noon_us + 110 * SECOND
    for view in (world.payer, world.busy):
        await correct(world, feature, view, at_us)
