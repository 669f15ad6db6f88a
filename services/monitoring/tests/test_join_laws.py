"""Laws of the join against the real Kafka and PostgreSQL."""

import random
from collections import Counter
from itertools import groupby
from typing import Any

import asyncpg
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import from_timestamp, parse_us
from tidemill_contracts.monitoring.v1 import monitoring_pb2 as messages
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_monitoring.adapters import store
from tidemill_testkit.eventually import aeventually

HOUR = 3_600_000_000
DAY = 24 * HOUR
START = parse_us("2013-01-01T00:00:00Z")
PIPELINE = "late"

# conftest's World; test modules cannot import it under importlib mode.
World = Any

pytestmark = pytest.mark.servers


async def stats(world: World) -> Any:
    return await world.rpc.GetJoinStats(messages.GetJoinStatsRequest(pipeline=PIPELINE))


async def test_a_label_is_joined_whether_it_comes_before_or_after_its_prediction(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.settle()
        await world.land("a", START + 5 * HOUR, 20.0)
        await world.land("b", START + 6 * HOUR, 0.0)
        await world.settle()
        await world.predict("b", START + 2 * HOUR)
        await world.watermark(START + 7 * HOUR)
        answer = await world.settle(START + 7 * HOUR)
        assert answer.event_time_us == START + 7 * HOUR
        found = await world.outcomes()
        assert [(one.prediction.join_key, one.revision, one.label) for one in found] == [("a", 1, 1.0), ("b", 1, 0.0)]
        assert {one.state for one in found} == {monitoring.OUTCOME_STATE_LABELLED}
        seen = await stats(world)
        assert (seen.predictions, seen.joined, seen.pending, seen.never) == (2, 2, 0, 0)
        assert from_timestamp(seen.clock) == from_timestamp(seen.newest) == START + 7 * HOUR
        await world.land("c", START + 9 * HOUR, 0.0)
        await world.settle()
        seen = await stats(world)
        assert (from_timestamp(seen.clock), from_timestamp(seen.newest)) == (START + 7 * HOUR, START + 9 * HOUR)
        assert {one.topic for one in seen.held_by} == {"events.asked", "events.landed"}
        assert {from_timestamp(one.newest) for one in seen.held_by} == {START + 7 * HOUR}


async def test_a_label_that_never_comes_is_declared_by_the_clock_and_corrected_if_it_comes_after_all(
    world: World,
) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.land("a", START + 3 * HOUR, None, "cancelled")
        await world.watermark(START + 37 * HOUR)
        await world.settle(START + 37 * HOUR)
        assert await world.outcomes() == []
        await world.watermark(START + 38 * HOUR)
        await world.settle(START + 38 * HOUR)
        assert [one.state for one in await world.outcomes()] == [monitoring.OUTCOME_STATE_NEVER]
        await world.land("a", START + 20 * HOUR, 30.0)
        await world.settle()
        found = await world.outcomes()
        assert [(one.revision, one.state) for one in found] == [
            (1, monitoring.OUTCOME_STATE_NEVER),
            (2, monitoring.OUTCOME_STATE_CORRECTED),
        ]
        seen = await stats(world)
        assert (seen.joined, seen.never, seen.corrected) == (1, 0, 1)


async def test_where_no_label_means_no_every_prediction_counts_once_its_wait_is_over_and_a_restart_changes_nothing(
    world: World,
) -> None:
    assumed = definition.Label(absent=False)
    async with world.running():
        await world.apply(world.defined(label=assumed))
        for flight, hour in (("a", 1), ("b", 1), ("c", 2)):
            await world.predict(flight, START + hour * HOUR)
        await world.land("a", START + 5 * HOUR, 30.0)
        await world.watermark(START + DAY)
        await world.settle(START + DAY)
        # Known, and published: but those that will turn out otherwise are not known yet.
        assert [(one.prediction.join_key, one.label) for one in await world.outcomes()] == [("a", 1.0)]
        assert await windows(world) == []
    async with world.running():
        await world.watermark(START + 2 * DAY)
        await world.settle(START + 2 * DAY)
        found = {one.prediction.join_key: (one.state, one.label, one.label_time_us) for one in await world.outcomes()}
        assert found == {
            "a": (monitoring.OUTCOME_STATE_LABELLED, 1.0, START + 5 * HOUR),
            "b": (monitoring.OUTCOME_STATE_ASSUMED, 0.0, START + 37 * HOUR),
            "c": (monitoring.OUTCOME_STATE_ASSUMED, 0.0, START + 38 * HOUR),
        }
        (counted,) = await windows(world)
        assert (counted.values["label_rate"], counted.values["coverage"]) == (pytest.approx(1 / 3), 1.0)
        await world.land("c", START + 3 * HOUR, 30.0)
        await world.settle()
        corrected = [one for one in await world.outcomes() if one.revision == 2]
        assert [(one.prediction.join_key, one.label) for one in corrected] == [("c", 1.0)]
        seen = await stats(world)
        assert (seen.joined, seen.never, seen.corrected, seen.pending) == (3, 0, 1, 0)


@pytest.mark.parametrize("absent", [None, False])
async def test_what_was_corrected_before_the_clock_began_is_counted_as_what_it_became(
    world: World, absent: bool | None
) -> None:
    async with world.running():
        await world.apply(world.defined(label=definition.Label(absent=absent)))
        await world.predict("a", START + HOUR)
        await world.land("x", START + 60 * HOUR, 0.0, partition=0)
        # Read when its stream is long past the wait; the other stream has told nothing, so there is no clock.
        await world.land("a", START + 20 * HOUR, 30.0, partition=0)
        await world.settle()
        assert [one.revision for one in await world.outcomes()] == [1, 2]
        await world.watermark(START + 3 * DAY)
        await world.settle(START + 3 * DAY)
        seen = await stats(world)
        assert (seen.predictions, seen.joined, seen.never, seen.corrected, seen.pending) == (1, 1, 0, 1, 0)


async def windows(world: World) -> list[Any]:
    """Return the metrics of whole days that rest on labels."""
    told = (await world.rpc.GetMetrics(messages.GetMetricsRequest(pipeline=PIPELINE))).metrics
    return [one for one in told if "label_rate" in one.values]


@pytest.mark.parametrize("crashes", [False, True])
async def test_more_than_a_page_that_waited_too_long_is_declared_in_pages_and_a_crash_between_them_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, crashes: bool
) -> None:
    pages: list[int] = []
    look = store.overdue

    async def overdue(*given: Any) -> Any:
        found = await look(*given)
        pages.append(len(found))
        if crashes and len(pages) == 3:
            raise ConnectionResetError("PostgreSQL went away")
        return found

    async with world.running():
        await world.apply()
        monkeypatch.setattr(store, "PAGE", 3)
        monkeypatch.setattr(store, "overdue", overdue)
        for number, hour in enumerate((1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6)):
            await world.predict(f"{number:02}", START + hour * HOUR)
        # After a gap of days: the label of the last one is read with the clock that ends its wait.
        await world.land("11", START + 20 * HOUR, 30.0)
        await world.watermark(START + 5 * DAY)
        await world.settle(START + 5 * DAY)
        found = [(one.prediction.join_key, one.state, one.revision) for one in await world.outcomes()]
        never = monitoring.OUTCOME_STATE_NEVER
        lost = [(f"{number:02}", never, 1) for number in range(11)]
        assert sorted(found) == [*lost, ("11", monitoring.OUTCOME_STATE_LABELLED, 1)]
        seen = await stats(world)
        assert (seen.joined, seen.never, seen.pending) == (1, 11, 0)
        (daily, *_) = (await world.rpc.GetMetrics(messages.GetMetricsRequest(pipeline=PIPELINE))).metrics
        assert daily.values["coverage"] == pytest.approx(1 / 12)
    assert max(pages) == 3
    assert len(pages) >= 4


@pytest.mark.parametrize("crash_at", [0, 2, 5])
async def test_labels_of_more_predictions_than_a_transaction_takes_are_joined_in_pages_whatever_crashes_between_them(
    world: World, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    taken: list[int] = []
    save = store.save

    async def counted(connection: Any, left: store.Save) -> None:
        taken.append(len(left.outcomes))
        if len(taken) == crash_at:
            raise ConnectionResetError("PostgreSQL went away")
        await save(connection, left)

    async with world.running():
        await world.apply()
        for hour in range(1, 9):
            await world.predict("a", START + hour * HOUR)
        await world.predict("b", START + HOUR)
        await world.predict("b", START + 2 * HOUR)
        await world.land("c", START + 20 * HOUR, 20.0)
        await world.settle()
    monkeypatch.setattr(store, "PAGE", 3)
    monkeypatch.setattr(store, "save", counted)
    # One batch, since nobody reads yet; the last label is the first again.
    for hour in range(1, 9):
        await world.predict("c", START + hour * HOUR)
    await world.land("a", START + 20 * HOUR, 20.0, "a-1")
    await world.land("b", START + 20 * HOUR, 20.0)
    await world.land("a", START + 20 * HOUR, 0.0, "a-2")
    await world.land("a", START + 20 * HOUR, 20.0, "a-1")
    await world.watermark(START + 25 * HOUR)
    await world.written()
    async with world.running():
        await world.settle(START + 25 * HOUR)
        found = Counter((one.prediction.join_key, one.revision, one.label) for one in await world.outcomes())
        assert found == {("a", 1, 1.0): 8, ("a", 2, 0.0): 8, ("b", 1, 1.0): 2, ("c", 1, 1.0): 8}
        seen = await stats(world)
        assert (seen.predictions, seen.joined, seen.corrected, seen.pending) == (18, 18, 8, 0)
        (daily, *_) = (await world.rpc.GetMetrics(messages.GetMetricsRequest(pipeline=PIPELINE))).metrics
        assert daily.rows == 18
    assert max(taken) == 3
    assert len(taken) > max(crash_at, 8)


async def test_a_shorter_wait_leaves_no_prediction_pending(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.watermark(START + 20 * HOUR)
        await world.settle(START + 20 * HOUR)
        await world.apply(world.defined(label=definition.Label(wait_ms=6 * 3_600_000)))
        await world.settle()
        await world.predict("b", START + 20 * HOUR)
        await world.watermark(START + 2 * DAY)
        await world.settle(START + 2 * DAY)
        assert [one.prediction.join_key for one in await world.outcomes()] == ["a", "b"]
        seen = await stats(world)
        assert (seen.never, seen.pending) == (2, 0)


async def test_a_deadline_stored_by_the_release_before_is_read_as_one(world: World, database: str) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.watermark(START + 20 * HOUR)
        await world.settle(START + 20 * HOUR)
    old = await asyncpg.connect(database)
    await old.execute("UPDATE monitoring.pipeline SET swept_us = NULL, sweep_from_us = $1", START + 20 * HOUR)
    await old.close()
    async with world.running():
        await world.watermark(START + 2 * DAY)
        await world.settle(START + 2 * DAY)
        assert [one.state for one in await world.outcomes()] == [monitoring.OUTCOME_STATE_NEVER]


async def test_the_same_event_again_is_no_correction_and_another_value_is_one(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.land("a", START + 5 * HOUR, 20.0, "first")
        await world.land("a", START + 5 * HOUR, 20.0, "first")
        await world.land("a", START + 5 * HOUR, 25.0, "same-label")
        await world.land("a", START + 5 * HOUR, 5.0, "second")
        await world.land("a", START + 5 * HOUR, 20.0, "first")
        await world.settle()
        found = await world.outcomes()
        assert [(one.revision, one.state, one.label) for one in found] == [
            (1, monitoring.OUTCOME_STATE_LABELLED, 1.0),
            (2, monitoring.OUTCOME_STATE_CORRECTED, 0.0),
        ]


async def test_a_prediction_read_after_its_correction_is_corrected_all_the_same(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.land("a", START + 5 * HOUR, 0.0, "first")
        await world.land("a", START + 6 * HOUR, 40.0, "second")
        await world.settle()
        await world.predict("a", START + HOUR)
        await world.settle()
        assert [(one.revision, one.state, one.label) for one in await world.outcomes()] == [
            (1, monitoring.OUTCOME_STATE_LABELLED, 0.0),
            (2, monitoring.OUTCOME_STATE_CORRECTED, 1.0),
        ]


async def test_a_poisonous_landing_goes_to_the_dead_letters_untouched_and_the_join_goes_on(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.settle()
        await world.send("events.landed", b"\xff{", "a")
        await world.land("a", START + 5 * HOUR, 20.0)
        await world.settle()
        assert await world.values("events.landed.dlq") == [b"\xff{"]
        assert len(await world.outcomes()) == 1


async def test_the_clock_is_told_with_the_positions_that_it_rests_on(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START + DAY)
        await world.settle(START + DAY)
        told = await world.told("monitoring.clock.v1", monitoring.ClockRecord)
        assert told[-1].event_time.seconds * 1_000_000 == START + DAY
        assert {(one.topic, one.partition) for one in told[-1].positions} >= {("events.landed", 0), ("events.asked", 1)}


async def test_partitions_that_were_added_and_carry_nothing_hold_no_clock_and_their_first_event_counts(
    world: World,
) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.watermark(START + 2 * HOUR)
        await world.settle(START + 2 * HOUR)
        await world.grow("landed", 4)
        # Those that there were, alone.
        await world.watermark(START + 3 * HOUR)
        assert (await world.settle(START + 3 * HOUR)).event_time_us == START + 3 * HOUR
    # Who begins only now does not wait for them either.
    async with world.running():
        await world.watermark(START + 4 * HOUR)
        assert (await world.settle(START + 4 * HOUR)).event_time_us == START + 4 * HOUR
        await world.land("a", START + 5 * HOUR, 20.0, partition=3)
        await world.settle()
        assert [one.label for one in await world.outcomes()] == [1.0]
        await world.watermark(START + 9 * HOUR)
        # Now it holds the clock as the others do.
        assert (await world.settle(START + 5 * HOUR)).event_time_us == START + 5 * HOUR
    # What came while nobody read is read before the clock goes on.
    await world.land("b", START + 6 * HOUR, 20.0, partition=2)
    await world.watermark(START + 9 * HOUR, {"landed": range(3, 4)})
    async with world.running():
        answer = await world.settle(START + 6 * HOUR)
        assert answer.event_time_us == START + 6 * HOUR


async def test_what_a_retired_pipeline_predicted_is_read_to_its_end_and_new_labels_are_not_its(world: World) -> None:
    async with world.running():
        await world.apply(world.defined(name="other"))
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.predict("d", START + HOUR)
        for flight in ("a", "b", "c"):
            await world.land(flight, START + 2 * HOUR, 20.0)
        await world.watermark(START + 3 * HOUR)
        await world.settle(START + 3 * HOUR)
        await world.retire()
        await world.settle()
        # Logged before it ended, and read after that; its label was there.
        await world.predict("b", START + HOUR)
        await world.land("d", START + 4 * HOUR, 20.0)
        await world.watermark(START + 5 * HOUR)
        await world.settle(START + 5 * HOUR)
        assert [one.prediction.join_key for one in await world.outcomes()] == ["a", "b"]
    async with world.running():
        await world.predict("c", START + HOUR)
        await world.watermark(START + 40 * HOUR)
        # The other one's clock goes on.
        answer = await world.settle(START + 40 * HOUR)
        assert answer.event_time_us == START + 40 * HOUR
        assert [one.prediction.join_key for one in await world.outcomes()] == ["a", "b", "c"]


async def test_a_restart_goes_on_where_the_last_transaction_ended(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.predict("b", START + HOUR)
        await world.land("a", START + 5 * HOUR, 20.0)
        await world.watermark(START + 6 * HOUR)
        await world.settle(START + 6 * HOUR)
    async with world.running():
        await world.settle(START + 6 * HOUR)
        await world.land("b", START + 7 * HOUR, 20.0)
        await world.watermark(START + 8 * HOUR)
        await world.settle(START + 8 * HOUR)
        assert [(one.prediction.join_key, one.revision) for one in await world.outcomes()] == [("a", 1), ("b", 1)]
        seen = await stats(world)
        assert (seen.predictions, seen.joined) == (2, 2)


async def test_a_lost_connection_to_postgresql_is_taken_up_where_it_broke(world: World, database: str) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.watermark(START + 2 * HOUR)
        await world.settle(START + 2 * HOUR)
        admin = await asyncpg.connect(database)
        killed = await admin.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND datname = current_database()"
        )
        assert killed
        await admin.close()
        await world.land("a", START + 3 * HOUR, 20.0)
        await world.watermark(START + 4 * HOUR)
        await world.settle(START + 4 * HOUR)
        assert [one.revision for one in await world.outcomes()] == [1]


async def test_any_order_of_predictions_labels_and_repeats_ends_as_brute_force_says(world: World) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    asked: set[tuple[str, int]] = set()
    landed: dict[str, dict[str, tuple[int, float]]] = {}
    async with world.running():
        await world.apply()
        for _ in range(150):
            flight, hour = chance.choice("abcdefgh"), chance.randrange(60)
            if chance.random() < 0.4:
                await world.predict(flight, START + hour * HOUR)
                asked.add((flight, START + hour * HOUR))
            else:
                event = f"{flight}{chance.randrange(5)}"
                first = landed.setdefault(flight, {}).get(event)
                delay = chance.choice([0.0, 20.0])
                at_us, delay = first or (START + hour * HOUR, delay)
                landed[flight].setdefault(event, (at_us, delay))
                await world.land(flight, at_us, delay, event)
            if chance.random() < 0.1:
                await world.settle()
        await world.settle()
        made: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for one in await world.outcomes():
            place = (one.prediction.join_key, one.prediction.as_of_us)
            labels = made.setdefault(place, [])
            assert one.revision == len(labels) + 1
            labels.append((one.state, one.label))
        expected = {}
        for flight, as_of_us in asked:
            # In the order sent, which is the order of the log: a flight's landings share a partition.
            eligible = [
                float(delay > 15)
                for at_us, delay in landed.get(flight, {}).values()
                if as_of_us <= at_us <= as_of_us + 36 * HOUR
            ]
            if eligible:
                expected[flight, as_of_us] = [label for label, _ in groupby(eligible)]
        never = monitoring.OUTCOME_STATE_NEVER
        assert {
            place: [label for state, label in labels if state != never] for place, labels in made.items()
        } == expected


async def test_an_outcome_is_kept_as_long_as_its_prediction_may_still_wait(world: World) -> None:
    world.settings = world.settings.model_copy(update={"keep_outcomes_days": 30})
    async with world.running():
        await world.apply(world.defined(label=definition.Label(wait_ms=40 * 86_400_000)))
        await world.watermark(START)
        await world.predict("a", START + HOUR)
        await world.land("a", START + 2 * HOUR, 20.0)
        await world.settle(START)
        await world.watermark(START + 32 * DAY)
        # A page is deleted after each batch.
        for minute in range(6):
            await world.watermark(START + 32 * DAY + minute)
            await world.settle(START + 32 * DAY + minute)
        await world.watermark(START + 41 * DAY)
        await world.settle(START + 41 * DAY)
        assert [(one.revision, one.label) for one in await world.outcomes()] == [(1, 1.0)]
        seen = await stats(world)
        assert (seen.joined, seen.never, seen.pending) == (1, 0, 0)


async def test_after_a_start_the_clock_does_not_wait_for_predictions_that_nobody_can_read(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START)
        for number in range(12):
            await world.predict(f"a{number}", START + HOUR)
        await world.settle()
        await world.watermark(START + 2 * HOUR)
        await world.settle(START + 2 * HOUR)
    for number in range(12):
        await world.predict(f"b{number}", START + HOUR)
    await world.written()
    admin = AIOKafkaAdminClient(**world.kafka.client_kwargs())
    await admin.start()
    topic = "serving.predictions.v1"
    ends = {place: end for place, end in world.ends.items() if place[0] == topic}
    deleted = {
        TopicPartition(world.kafka.physical(topic), place[1]): RecordsToDelete(end) for place, end in ends.items()
    }
    await admin.delete_records(deleted)
    await admin.close()
    async with world.running():
        await world.watermark(START + 3 * HOUR)
        await world.settle(START + 3 * HOUR)
        assert from_timestamp((await stats(world)).clock) == START + 3 * HOUR


async def test_a_topic_that_is_made_anew_is_read_from_its_beginning(world: World) -> None:
    async with world.running():
        await world.apply()
        for number in range(20):
            await world.predict(f"a{number}", START + HOUR)
            await world.land(f"a{number}", START + 2 * HOUR, 30.0)
        await world.watermark(START + 3 * HOUR)
        await world.settle(START + 3 * HOUR)
        assert (await stats(world)).joined == 20
    # While nobody looks, and shorter than what was read of the former one.
    await world.make_anew("landed", "asked")
    for number in range(3):
        await world.predict(f"b{number}", START + 4 * HOUR)
        await world.land(f"b{number}", START + 5 * HOUR, 30.0)
    await world.watermark(START + 6 * HOUR)
    async with world.running():
        await world.settle(START + 6 * HOUR)
        assert (await stats(world)).joined == 23
        # While it runs, and so long that the former offsets are there again.
        await world.make_anew("landed", "asked")
        for number in range(40):
            await world.predict(f"c{number}", START + 7 * HOUR)
            await world.land(f"c{number}", START + 8 * HOUR, 30.0)
        await world.watermark(START + 9 * HOUR)
        await world.settle(START + 9 * HOUR)

        async def joined() -> bool:
            return bool((await stats(world)).joined == 63)

        await aeventually(joined)
        assert from_timestamp((await stats(world)).clock) == START + 9 * HOUR
    assert len(await world.outcomes()) == 63, "each once"
