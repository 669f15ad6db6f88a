"""Pauses and profiles of streams on the real Kafka: what callers, operators and metrics are told."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.ingestion.v1 import records_pb2 as records
from tidemill_ingestion.adapters.reporter import Reporter
from tidemill_ingestion.admission import Gate
from tidemill_ingestion.brake import Change, Paused
from tidemill_ingestion.gates import Gates
from tidemill_runtime.lifecycle import running
from tidemill_runtime.producer import Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.topic_records import topic_records

pytestmark = pytest.mark.servers

ACCEPTED, REFUSED, RETRY = messages.OUTCOME_ACCEPTED, messages.OUTCOME_REFUSED, messages.OUTCOME_RETRY
BAD = messages.Event(data=b"{")
LIMITS: dict[str, Any] = {"bad_min_events": 10, "bad_share": 0.5, "bad_window_s": 60.0}
T_US = 1_370_340_000_000_000


def ride(door: Any, number: int) -> messages.Event:
    return messages.Event(id=f"e-{number}", data=door.ride(number))


async def told(door: Any, kind: str) -> list[records.QualityRecord]:
    """Return the operators' messages of one kind, in order."""
    log = await door.log("ingestion.quality.v1", partitions=1)
    found = [from_json(record.value, records.QualityRecord()) for record in log]
    assert {record.key for record in log} <= {b"rides"}
    return [one for one in found if one.kind == kind]


async def pause(door: Any) -> None:
    """Send one good event and enough bad ones."""
    response = await door.publish(ride(door, 0), *[BAD] * 10)
    assert [verdict.outcome for verdict in response.verdicts] == [ACCEPTED] + [REFUSED] * 10


async def test_a_paused_stream_sends_everything_back_with_its_reason_and_loses_nothing(
    kafka: Any, open_door: Any, rides_of: Callable[..., Sequence[int]]
) -> None:
    async with open_door(kafka, **LIMITS, pause_s=600.0) as door:
        await pause(door)
        response = await door.publish(ride(door, 1), BAD, ride(door, 0))
        assert {(one.outcome, one.reason) for one in response.verdicts} == {(RETRY, "paused")}
        assert "91% of 11 events were refused, mostly undecodable" in response.verdicts[0].message
        answer = await door.http.post(
            "/v1/streams/rides/events", content=door.ride(1), headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["reason"]) == (503, "paused")
        assert 500 < int(answer.headers["retry-after"]) <= 600
        # A clock that went on would make late what is held back.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.publish(watermark=messages.Watermark(streams=["rides"], time_us=T_US))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        state = (await door.rpc.GetStreamState(messages.GetStreamStateRequest(stream="rides"))).state
        assert (state.paused, state.events, state.refused) == (True, 11, 10)
        assert (state.pause.events, state.pause.limit, state.pause.mostly) == (11, 0.5, "undecodable")
        await aeventually(lambda: _told_once(door, "paused"), claim="the operators are told")
        (message,) = await told(door, "paused")
        assert message.summary.startswith("rides is paused until ")
        assert (message.pause.events, message.pause.refused) == (11, 10)
        metrics = (await door.http.get("/metrics")).text
        assert 'tidemill_ingestion_stream_paused{stream="rides"} 1.0' in metrics

        resume = messages.ResumeStreamRequest(stream="rides", reason="mended")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.rpc.ResumeStream(resume)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        after = await door.rpc.ResumeStream(resume, metadata=(("x-tidemill-actor", "anna"),))
        assert not after.state.paused
        again = await door.publish(ride(door, 1), ride(door, 0))
        assert [one.outcome for one in again.verdicts] == [ACCEPTED, messages.OUTCOME_DUPLICATE]
        assert rides_of(await door.log()) == [0, 1]
        await aeventually(lambda: _told_once(door, "resumed"), claim="the operators are told")
        (message,) = await told(door, "resumed")
        assert (message.pause.actor, message.pause.reason) == ("anna", "mended")


async def _told_once(door: Any, kind: str) -> bool:
    return len(await told(door, kind)) == 1


async def test_the_reason_of_a_resumption_is_bounded_through_both_doors(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, **LIMITS, pause_s=600.0) as door:
        await pause(door)
        long = messages.ResumeStreamRequest(stream="rides", reason="x" * 2_001)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.rpc.ResumeStream(long, metadata=(("x-tidemill-actor", "anna"),))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        path, by = "/v1/streams/rides/resume", {"x-tidemill-actor": "anna"}
        answer = await door.http.post(path, params={"reason": long.reason}, headers=by)
        assert (answer.status_code, answer.json()["reason"]) == (413, "oversized")
        assert (await door.publish(ride(door, 1))).verdicts[0].reason == "paused"
        assert (await door.http.post(path, params={"reason": "x" * 2_000}, headers=by)).status_code == 200
        assert (await door.publish(ride(door, 1))).accepted == 1


async def test_what_kafka_never_takes_is_dropped_and_nothing_behind_it_is_lost(kafka: KafkaSettings) -> None:
    gates = Gates(10)
    closure = definition.Definition(streams=[definition.Stream(name="rides", key_field="k", time_field="at")])
    gates.fold(to_json(definition.DefinitionRecord(kind="stream", name="rides", definition=closure)))
    gate = gates.find("rides")
    assert isinstance(gate, Gate)
    paused = Paused(0.5, 10, 9, "undecodable", T_US, T_US + 1)
    gate.changes += [Change(paused, T_US, "anna", "x" * 5_000), Change(paused, T_US, "anna", "short")]
    async with Producer(kafka, max_request_bytes=4_000) as producer:
        reporter = Reporter(gates, producer, hop_s=3_600.0, replica="r", clock=lambda: T_US)
        async with asyncio.timeout(60), running(reporter):
            await aeventually(lambda: not gate.changes, claim="every change is told or dropped")
    log = await topic_records(kafka.client_kwargs(), kafka.physical("ingestion.quality.v1"), range(1))
    assert [from_json(record.value, records.QualityRecord()).pause.reason for record in log] == ["short"]


async def test_a_pause_ends_by_itself(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, **LIMITS, pause_s=0.5) as door:
        await pause(door)
        assert (await door.publish(ride(door, 1))).verdicts[0].reason == "paused"

        async def taken() -> bool:
            return bool((await door.publish(ride(door, 1))).verdicts[0].outcome == ACCEPTED)

        await aeventually(taken, claim="the stream takes events again")
        await aeventually(lambda: _told_once(door, "resumed"), claim="the operators are told")
        (message,) = await told(door, "resumed")
        assert "by itself" in message.summary


async def test_no_stream_pauses_for_another_or_where_its_limit_is_one(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, **LIMITS, bad_shares={"rides": 1.0}) as door:
        for _ in range(3):
            response = await door.publish(*[BAD] * 20)
            assert {one.outcome for one in response.verdicts} == {REFUSED}
        assert (await door.publish(ride(door, 1))).accepted == 1
        unknown = messages.GetStreamStateRequest(stream="walks")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.rpc.GetStreamState(unknown)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_lines_of_a_paused_stream_are_to_be_sent_again(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, **LIMITS, pause_s=600.0) as door:
        await pause(door)
        answer = await door.http.post(
            "/v1/streams/rides/events", content=door.ride(1) + b"\n", headers={"content-type": "application/x-ndjson"}
        )
        lines = answer.text.splitlines()
        assert '"outcome":"retry"' in lines[0]
        assert '"reason":"paused"' in lines[0]
        assert '"retry":1' in lines[1]


async def test_each_hop_of_a_stream_is_profiled(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, quality_hop_s=0.5) as door:
        events = [
            messages.Event(id=f"e-{n}", data=door.ride(n % 40, seats=None if n % 4 == 0 else n % 5, fare=n))
            for n in range(100)
        ]
        await door.publish(*events)
        await door.publish(*events[:5], *[BAD] * 20)

        async def silent() -> bool:
            found = await told(door, "profile")
            refused = sum(message.profile.refused["undecodable"] for message in found)
            return refused == 20 and "no events came" in found[-1].summary

        await aeventually(silent, claim="the stream has fallen silent, and that was told")
        metrics = (await door.http.get("/metrics")).text
        profiles = [message.profile for message in await told(door, "profile")]
    assert sum(one.accepted for one in profiles) == 100
    assert sum(one.duplicates for one in profiles) == 5
    assert sum(one.refused["undecodable"] for one in profiles) == 20
    (first,) = [one for one in profiles if one.accepted]
    fields = {field.name: field for field in first.fields}
    assert (fields["seats"].null_share, fields["seats"].min, fields["seats"].max) == (0.25, 0.0, 4.0)
    assert (fields["ride_id"].distinct, fields["fare"].max, fields["seats"].distinct) == (40.0, 99.0, 5.0)
    assert first.event_time.seconds == T_US // 1_000_000
    assert first.freshness_seconds > 3e8
    assert 'tidemill_ingestion_identities_held{stream="rides"} 100.0' in metrics
    assert 'tidemill_ingestion_quality_freshness_seconds{stream="rides"}' in metrics


async def test_the_last_hop_is_told_when_the_service_stops(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, quality_hop_s=3_600.0) as door:
        await door.publish(*(ride(door, number) for number in range(7)))
    async with asyncio.timeout(60):
        (message,) = await told(door, "profile")
    assert message.profile.accepted == 7
