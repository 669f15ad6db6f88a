"""Laws from label to decision, against the real Kafka and PostgreSQL: drift, schedule, evidence, operators."""

import asyncio
import dataclasses
import json
import os
import re
import sys
from typing import Any

import grpc
import pytest
from tidemill_contracts.causes import cause_key
from tidemill_contracts.instants import from_timestamp, parse_us, to_timestamp
from tidemill_contracts.monitoring.v1 import monitoring_pb2 as messages
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_testkit.eventually import aeventually

HOUR = 3_600_000_000
DAY = 24 * HOUR
START = parse_us("2013-01-01T00:00:00Z")
PIPELINE = "late"
ACTOR = (("x-tidemill-actor", "anna"),)
INCIDENTS, REQUESTS = "monitoring.incidents.v1", "monitoring.retrain-requests.v1"

# conftest's World; test modules cannot import it under importlib mode.
World = Any

pytestmark = pytest.mark.servers


async def requests(world: World) -> list[monitoring.RetrainRequest]:
    found: list[monitoring.RetrainRequest] = await world.told(REQUESTS, monitoring.RetrainRequest)
    return found


async def incidents(world: World) -> list[monitoring.IncidentRecord]:
    found: list[monitoring.IncidentRecord] = await world.told(INCIDENTS, monitoring.IncidentRecord)
    return sorted(found, key=lambda one: one.revision)


async def test_a_drift_is_one_incident_one_request_and_is_over_with_the_first_label_of_a_new_version(
    world: World,
) -> None:
    async with world.running():
        await world.apply()
        for number in range(10):
            await world.day(number, 40, 0.3)
            await world.settle(START + (number + 1) * DAY)
    # Down while the loss rises: nothing is forgotten, nothing told twice, and each day is judged as if lived.
    for number in range(10, 17):
        await world.day(number, 40, 0.3 if number < 12 else 0.8)
    await world.written()
    async with world.running():
        answer = await world.settle(START + 17 * DAY)
        opened, asked = await incidents(world)
        assert (opened.status, opened.revision, opened.signal) == ("open", 1, "log_loss")
        assert from_timestamp(opened.changed_at) == START + 12 * DAY
        assert from_timestamp(opened.detected_at) == START + 16 * DAY
        assert opened.evidence["rows"] == 4 * 40
        assert asked.action.kind == "retrain"
        (request,) = await requests(world)
        assert request.cause_key == cause_key(PIPELINE, "drift", opened.incident_id)
        assert asked.action.request_id == request.request_id
        assert from_timestamp(request.event_time) == START + 16 * DAY
        assert {place.topic for place in request.positions} == {
            "events.asked",
            "events.landed",
            "serving.predictions.v1",
        }
        ends = {place.topic: place.next_offset for place in answer.written}
        assert ends[REQUESTS] == 1
        assert ends[INCIDENTS] == 2
        assert [one.incident_id for one in await world.told("monitoring.alerts.v1", monitoring.AlertRecord)] == [
            opened.incident_id
        ]
        await world.day(17, 40, 0.8)
        await world.day(18, 40, 0.3, version=2)
        await world.settle(START + 19 * DAY)
        closed = (await incidents(world))[-1]
        assert (closed.revision, closed.status) == (3, "resolved")
        assert closed.summary.endswith("v2 has replaced v1.")
        assert len(await requests(world)) == 1


async def test_the_schedule_fires_once_and_counts_from_whatever_retrained_last(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START)
        await world.deploy(1, START + DAY, revision=1)
        await world.watermark(START + 28 * DAY)
        await world.settle(START + 28 * DAY)
        assert await requests(world) == []
        await world.watermark(START + 29 * DAY + HOUR)
        await world.settle(START + 29 * DAY + HOUR)
    async with world.running():
        await world.watermark(START + 40 * DAY)
        await world.settle(START + 40 * DAY)
        (slot,) = await requests(world)
        assert (slot.cause_kind, slot.cause_id) == ("schedule", "2013-01-30T00:00:00Z")
        assert from_timestamp(slot.event_time) == START + 29 * DAY
        asked = await world.rpc.RequestRetraining(
            messages.RequestRetrainingRequest(
                pipeline=PIPELINE, reason="new fleet", event_time=to_timestamp(START + 40 * DAY)
            ),
            metadata=ACTOR,
        )
        assert asked.request.actor == "anna"
        await world.watermark(START + 67 * DAY)
        await world.settle(START + 67 * DAY)
        assert [one.cause_kind for one in await requests(world)] == ["schedule", "operator"]
        await world.watermark(START + 69 * DAY)
        await world.settle(START + 69 * DAY)
        assert [one.cause_kind for one in await requests(world)] == ["schedule", "operator", "schedule"]


async def test_a_request_right_after_events_counts_them(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START)
        await world.settle(START)
        for days in range(1, 6):
            # Small batches, each with an evaluation: more than was read when the request comes.
            await world.watermark(START + days * DAY)
            await world.written()
        wanted = messages.RequestRetrainingRequest(pipeline=PIPELINE, reason="what was just sent")
        asked = await world.rpc.RequestRetraining(wanted, metadata=ACTOR)
        assert from_timestamp(asked.request.event_time) == START + 5 * DAY


async def test_an_operators_request_is_made_once_per_key_and_only_by_somebody(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START + DAY)
        await world.settle(START + DAY)
        wanted = messages.RequestRetrainingRequest(pipeline=PIPELINE, reason="the first model", idempotency_key="one")
        first = await world.rpc.RequestRetraining(wanted, metadata=ACTOR)
        again = await world.rpc.RequestRetraining(wanted, metadata=ACTOR)
        assert first == again
        assert from_timestamp(first.request.event_time) == START + DAY
        await world.settle()
        assert len(await requests(world)) == 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.rpc.RequestRetraining(wanted)
        assert "x-tidemill-actor" in (refused.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await world.rpc.GetJoinStats(messages.GetJoinStatsRequest(pipeline="nobody"))
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


async def command(world: World, *arguments: str) -> Any:
    """Run `tidemill incidents` as anna; return what it says as JSON, with its exit code."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tidemill.cli.main", "incidents", *arguments),
        *("--monitoring", world.settings.grpc.listen, "--json"),
        env={**os.environ, "TIDEMILL_ACTOR": "anna"},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return json.loads(out) | {"code": process.returncode}


async def test_a_person_may_acknowledge_and_resolve_and_the_topic_says_so(world: World) -> None:
    async with world.running():
        await world.apply()
        for number in range(17):
            await world.day(number, 40, 0.3 if number < 12 else 0.8)
            await world.settle(START + (number + 1) * DAY)
        (found,) = (await command(world, "list", PIPELINE, "--status", "open"))["incidents"]
        known = await command(world, "ack", found["incident_id"], "--note", "storm")
        assert (known["code"], known["status"], known["incident_id"]) == (0, "acknowledged", found["incident_id"])
        (listed,) = (await command(world, "list", "--status", "acknowledged"))["incidents"]
        assert listed["summary"].endswith("acknowledged by anna: storm.")
        nobody = await command(world, "ack", "01J")
        assert (nobody["code"], nobody["reason"]) == (1, "unknown_entity")
        done = await command(world, "resolve", found["incident_id"])
        await world.settle()
        told = await incidents(world)
        assert [one.status for one in told] == ["open", "open", "acknowledged", "resolved"]
        assert told[2].summary == listed["summary"]
        assert (told[-1].incident_id, told[-1].summary) == (done["incident_id"], done["summary"])
        measured = await world.rpc.GetMetrics(messages.GetMetricsRequest(pipeline=PIPELINE, limit=1))
        assert measured.metrics[0].role == "champion"
        assert measured.metrics[0].rows == 7 * 40


async def test_predictions_that_were_answered_and_never_logged_are_told_once_each(world: World) -> None:
    world.settings = world.settings.model_copy(update={"lost_after_s": 0.2})
    sent: list[int] = []

    async def log(sequence: int) -> None:
        await world.predict(f"f{len(sent)}", START + HOUR, process_id="serving-1", sequence=sequence)
        sent.append(sequence)
        await world.settle()

    async with world.running():
        await world.apply()
        await log(1)

        async def told() -> list[monitoring.AlertRecord]:
            # Every other number is missing, but for the first while, in which nothing is judged.
            await log(sent[-1] + 2)
            found: list[monitoring.AlertRecord] = await world.told("monitoring.alerts.v1", monitoring.AlertRecord)
            return found

        alert, *_ = await aeventually(told, claim="operators are told")
    assert (alert.severity, alert.incident_id) == ("medium", "")
    said = re.fullmatch(r"Serving process serving-1 answered ([0-9]+) predictions? whose log record .*", alert.summary)
    assert said is not None
    assert 1 <= int(said[1]) < len(sent), "those of the first while are not judged, and none is counted twice"


async def test_a_rollout_is_told_its_paired_evidence_every_hour(world: World) -> None:
    both = ((1, 0.6, serving.ROLE_CHAMPION), (2, 0.2, serving.ROLE_CHALLENGER), (3, 0.5, serving.ROLE_BASELINE))
    async with world.running():
        await world.apply()
        await world.deploy(1, START, revision=1)
        await world.watermark(START)
        await world.settle(START)
        await world.deploy(1, START + HOUR, revision=2, challenger=2, step=0, step_kind="shadow")
        for row in range(5):
            await world.predict(f"f{row}", START + 2 * HOUR, both)
            await world.land(f"f{row}", START + 4 * HOUR + row, 0.0)
        await world.watermark(START + 5 * HOUR)
        await world.settle(START + 5 * HOUR)
        told = await world.told("monitoring.metrics.v1", monitoring.MetricRecord)
        assert [one.kind for one in told] == ["rollout"] * 5
        last = told[-1].paired
        assert (last.deployment_revision, last.champion_version, last.challenger_version) == (2, 1, 2)
        assert last.pairs == 5
        assert last.difference < 0


async def test_a_second_replica_stands_by_and_takes_over(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.predict("a", START + HOUR)
        await world.settle()
        taking_over = asyncio.create_task(take_over(world))
        done, _ = await asyncio.wait({taking_over}, timeout=2)
        assert not done
    assert await taking_over == 1


async def take_over(world: World) -> int:
    """Run a second replica; return how many outcomes there are once it has joined a label."""
    other = dataclasses.replace(world, ends=dict(world.ends), pending=[])
    async with other.running():
        await other.land("a", START + 4 * HOUR, 20.0)
        await other.settle()
        return len(await other.outcomes())
