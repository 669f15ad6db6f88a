"""Laws of ingestion on the real Kafka, through both doors."""

import asyncio
import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from tidemill_contracts.cloudevents import from_headers
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1 import progress_pb2
from tidemill_contracts.topics import stream_topics
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.topic_deletion import delete_topics

pytestmark = pytest.mark.servers

ACCEPTED, DUPLICATE = messages.OUTCOME_ACCEPTED, messages.OUTCOME_DUPLICATE
REFUSED, RETRY = messages.OUTCOME_REFUSED, messages.OUTCOME_RETRY
T_US = 1_370_340_000_000_000
CLOUD = "application/cloudevents+json"


def event(identity: str, data: bytes) -> messages.Event:
    return messages.Event(id=identity, data=data)


def refusal(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, list[str]]:
    """Return the code, the named reason and the kinds of details."""
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    status.ParseFromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    for detail in status.details:
        detail.Unpack(info)
    return error.code(), info.reason.lower(), [detail.TypeName().rpartition(".")[2] for detail in status.details]


async def test_what_is_accepted_lies_in_the_log_where_the_verdict_says(door: Any) -> None:
    response = await door.publish(*(event(f"e-{n}", door.ride(n)) for n in range(50)))
    assert (response.accepted, response.refused, response.duplicates) == (50, 0, 0)
    places = {(record.partition, record.offset): record for record in await door.log()}
    assert len(places) == 50
    for number, verdict in enumerate(response.verdicts):
        record = places[verdict.partition, verdict.offset]
        assert (record.key, record.value) == (f"r-{number}".encode(), door.ride(number))
        attributes = from_headers(record.headers)
        assert (attributes.id, attributes.source, attributes.time_us) == (f"e-{number}", "meter", T_US)
    ends = {written.partition: written.next_offset for written in response.written}
    assert sum(ends.values()) == 50
    progress = await door.progress.WaitProgress(progress_pb2.WaitProgressRequest(stage="publish"))
    assert sorted(progress.written, key=str) == sorted(response.written, key=str)


async def test_what_went_to_a_topic_that_is_gone_is_no_repeat_when_it_is_sent_again(door: Any) -> None:
    events = [event(f"e-{n}", door.ride(n)) for n in range(20)]
    kafka = door.settings.kafka

    async def kept() -> int:
        return int((await door.publish(*events)).accepted)

    assert await kept() == 20
    # As long as the topic is the same, looked at or not, a repeat is one.
    await asyncio.sleep(1.5)
    assert await kept() == 0
    await delete_topics(kafka.client_kwargs(), [kafka.physical("events.rides")])
    await create_topics(kafka.client_kwargs(), stream_topics([("rides", door.partitions)]), kafka.topic_prefix)
    assert await aeventually(kept, claim="accepted again") == 20
    assert len(await door.log()) == 20
    assert await kept() == 0


async def test_one_bad_event_spoils_no_other(door: Any) -> None:
    response = await door.publish(
        event("1", door.ride(1)), event("2", b"{"), event("1", door.ride(1)), event("3", door.ride(3))
    )
    assert [verdict.outcome for verdict in response.verdicts] == [ACCEPTED, REFUSED, DUPLICATE, ACCEPTED]
    assert not response.verdicts[1].HasField("offset")
    again = await door.publish(event("1", door.ride(1)), event("2", door.ride(2)))
    assert [verdict.outcome for verdict in again.verdicts] == [DUPLICATE, ACCEPTED]
    assert len(await door.log()) == 3


async def test_watermarks_follow_the_events_on_every_partition(door: Any) -> None:
    mark = messages.Watermark(streams=["rides"], time_us=T_US + 5)
    response = await door.publish(event("1", door.ride(1)), watermark=mark)
    records = await door.log()
    assert {written.partition: written.next_offset for written in response.written} == {
        record.partition: record.offset + 1 for record in records
    }
    last = {record.partition: record for record in records}
    assert len(last) == door.partitions
    for record in last.values():
        attributes = from_headers(record.headers)
        assert attributes.is_watermark
        assert (attributes.time_us, record.key, record.value) == (T_US + 5, None, b"")
    assert len(records) == door.partitions + 1


async def test_every_class_of_bad_input_has_one_reason_at_every_door(door: Any, bad_input: list[Any]) -> None:
    response = await door.publish(*(event("", data) for _, data, _ in bad_input))
    reasons = [reason for reason, _, _ in bad_input]
    assert [verdict.reason for verdict in response.verdicts] == reasons
    portion = messages.PublishStreamRequest(stream="rides", events=[event("", data) for _, data, _ in bad_input])
    streamed = [one async for one in door.rpc.PublishStream(iter([portion]), timeout=60)]
    assert [verdict.reason for one in streamed for verdict in one.verdicts] == reasons
    body = b"\n".join(data for _, data, _ in bad_input)
    lined = await door.http.post(
        "/v1/streams/rides/events", content=body, headers={"content-type": "application/x-ndjson"}
    )
    # A line without anything in it is no event.
    assert [json.loads(line)["reason"] for line in lined.text.splitlines()[:-1]] == reasons[1:]
    assert {verdict.outcome for verdict in response.verdicts} == {REFUSED}
    for reason, data, status in bad_input:
        single = await door.rpc.Publish(messages.PublishRequest(stream="rides", event=event("", data)))
        answer = await door.http.post(
            "/v1/streams/rides/events", content=data, headers={"content-type": "application/json"}
        )
        problem = answer.json()
        assert (single.verdict.reason, problem["reason"], answer.status_code) == (reason, reason, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["detail"] == single.verdict.message
    assert await door.log() == []
    metrics = (await door.http.get("/metrics")).text
    assert 'tidemill_ingestion_events_total{outcome="refused",reason="null_key",stream="rides"} 5.0' in metrics


async def test_an_unknown_stream_is_named_through_both_doors(door: Any) -> None:
    single = await door.rpc.Publish(messages.PublishRequest(stream="walks", event=event("1", door.ride())))
    assert (single.verdict.outcome, single.verdict.reason) == (REFUSED, "unknown_stream")
    answer = await door.http.post("/v1/streams/walks/events", json={})
    assert (answer.status_code, answer.json()["reason"]) == (404, "unknown_stream")
    mark = messages.Watermark(streams=["walks"], time_us=T_US)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.publish(event("1", door.ride()), watermark=mark)
    assert refusal(caught.value)[:2] == (grpc.StatusCode.NOT_FOUND, "unknown_stream")
    assert await door.log() == []


async def test_http_takes_structured_binary_and_batched_cloud_events(door: Any) -> None:
    envelope = {"specversion": "1.0", "id": "s", "source": "app", "type": "ride", "data": json.loads(door.ride(1))}
    path = "/v1/streams/rides/events"
    structured = await door.http.post(path, content=json.dumps(envelope), headers={"content-type": CLOUD})
    assert structured.status_code == 200
    assert structured.json()["outcome"] == "accepted"
    binary_headers = {"content-type": "application/json", "ce-specversion": "1.0", "ce-id": "b", "ce-source": "app"}
    binary = await door.http.post(path, content=door.ride(2), headers=binary_headers)
    assert binary.json()["outcome"] == "accepted"
    batch = [envelope, {**envelope, "id": "t"}, {**envelope, "id": 5}, {**envelope, "data": {"fare": 1}}]
    batched = await door.http.post(
        path, content=json.dumps(batch), headers={"content-type": "application/cloudevents-batch+json"}
    )
    answer = batched.json()
    assert [verdict["outcome"] for verdict in answer["verdicts"]] == ["duplicate", "accepted", "refused", "refused"]
    assert [verdict.get("reason") for verdict in answer["verdicts"]] == [
        "duplicate",
        None,
        "wrong_type",
        "missing_field",
    ]
    assert (answer["accepted"], answer["duplicate"], answer["refused"]) == (1, 1, 2)
    assert sorted(from_headers(record.headers).id for record in await door.log()) == ["b", "s", "t"]
    lost = await door.http.post(path, content=door.ride(2), headers=binary_headers | {"ce-id": "a%FF"})
    assert (lost.status_code, lost.json()["reason"], lost.json()["field"]) == (400, "bad_utf8", "id")
    other = await door.http.post(path, content=b"<ride/>", headers={"content-type": "text/xml"})
    assert other.json()["reason"] == "unsupported"


async def test_too_many_bytes_in_flight_are_refused_with_when_to_come_back(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, max_in_flight_bytes=2_000) as door:
        batches = [[event(f"{k}-{n}", door.ride(n)) for n in range(20)] for k in range(40)]
        answers = await asyncio.gather(*(door.publish(*batch) for batch in batches), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        written = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert refused
        assert written
        code, reason, details = refusal(refused[0])
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")
        assert "RetryInfo" in details
        # Refused means that nothing was taken in; accepted means that it is in the log.
        assert len(await door.log()) == sum(answer.accepted for answer in written) == 20 * len(written)

        async def post(number: int) -> Any:
            return await door.http.post("/v1/streams/rides/events", content=door.ride(number, note=...) + b" " * 1500)

        headers = {"content-type": "application/json"}
        door.http.headers.update(headers)
        posts = await asyncio.gather(*(post(number) for number in range(20)))
        busy = [answer for answer in posts if answer.status_code == 429]
        assert busy
        assert int(busy[0].headers["retry-after"]) >= 1
        assert busy[0].json()["reason"] == "overloaded"


async def test_unfinished_bodies_are_bounded_together_and_given_up_once_nothing_of_them_comes(
    kafka: Any, open_door: Any
) -> None:
    size, bound = 50_000, 120_000
    async with open_door(kafka, max_in_flight_bytes=bound, max_http_bytes=size + 1, stream_idle_s=2.0) as door:
        head = f"POST /v1/streams/rides/events HTTP/1.1\r\nhost: x\r\ncontent-length: {size + 1}\r\n"
        batch = "content-type: application/cloudevents-batch+json\r\n\r\n["

        async def unfinished() -> bytes:
            """Send a body but for its last byte and return what is answered, until the connection is closed."""
            reader, writer = await asyncio.open_connection(*door.settings.http.listen.rsplit(":", 1))
            writer.write((head + batch + " " * (size - 1)).encode())
            try:
                return await reader.read()
            finally:
                writer.close()

        slow = [asyncio.create_task(unfinished()) for _ in range(10)]

        async def full() -> bool:
            found = await in_flight_bytes(door)
            assert found <= bound
            return found > bound - size

        await aeventually(full, claim="unfinished bodies hold what there is")
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*slow)
        told = Counter(answer.split(b" ", 2)[1] for answer in answers)
        assert set(told) == {b"429", b"504"}
        assert all(b'"reason":"overloaded"' in answer for answer in answers if b" 429 " in answer)
        assert all(b'"reason":"deadline_exceeded"' in answer for answer in answers if b" 504 " in answer)
        assert await in_flight_bytes(door) == 0
        answer = await door.http.post("/v1/streams/rides/events", json=json.loads(door.ride(1)))
        assert answer.json()["outcome"] == "accepted"


async def in_flight_bytes(door: Any) -> float:
    metrics = (await door.http.get("/metrics")).text
    return float(metrics.partition("\ntidemill_ingestion_in_flight_bytes ")[2].split()[0])


async def test_a_body_that_breaks_off_writes_nothing_and_is_no_failure_of_the_service(
    door: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await asyncio.open_connection(*door.settings.http.listen.rsplit(":", 1))
    head = "POST /v1/streams/rides/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: 1000\r\n\r\n".encode() + door.ride(1))
    await aeventually(lambda: _holds(door, len(door.ride(1))), claim="what came is held")
    writer.close()
    await aeventually(lambda: _holds(door, 0), claim="nothing is held")
    await door.publish(event("2", door.ride(2)))
    assert [record.key for record in await door.log()] == [b"r-2"]
    assert [record for record in caplog.records if record.name == "uvicorn.error" and record.levelname == "ERROR"] == []


async def _holds(door: Any, size: int) -> bool:
    return await in_flight_bytes(door) == size


async def test_names_that_nobody_registered_have_no_label_of_their_own(door: Any) -> None:
    before = await door.http.get("/metrics")
    for number in range(30):
        name = f"walks-{number}-" + "x" * 10_000
        batch = messages.StreamEvents(stream=name, events=[event("1", b"{}")])
        response = await door.rpc.PublishBatch(messages.PublishBatchRequest(batches=[batch]))
        assert response.verdicts[0].reason == "unknown_stream"
        body = {"content": b"[7]", "headers": {"content-type": "application/cloudevents-batch+json"}}
        assert (await door.http.post(f"/v1/streams/{name}/events", **body)).json()["refused"] == 1
    after = await door.http.get("/metrics")
    assert 'reason="unknown_stream",stream="other"' in after.text
    assert 'reason="undecodable",stream="other"' in after.text
    assert "walks-" not in after.text
    assert len(after.content) < len(before.content) + 20_000


async def test_progress_is_waited_for_only_of_requests_begun_before(door: Any) -> None:
    answered, stopped = 0, False

    async def busy(client: int) -> None:
        nonlocal answered
        while not stopped:
            answered += 1
            await door.publish(*(event(f"{client}-{answered}-{n}", door.ride(n)) for n in range(200)))

    clients = [asyncio.create_task(busy(number)) for number in range(4)]
    try:
        await aeventually(lambda: answered > 8, claim="requests follow each other")
        for _ in range(3):
            await door.progress.WaitProgress(progress_pb2.WaitProgressRequest(stage="publish"), timeout=20)
    finally:
        stopped = True
        await asyncio.gather(*clients)
    response = await door.publish(event("last", door.ride(1)))
    progress = await door.progress.WaitProgress(progress_pb2.WaitProgressRequest(stage="publish"))
    (last,) = response.written
    assert last in progress.written


async def test_a_repeat_in_another_batch_of_the_request_is_one_too(door: Any) -> None:
    batch = messages.StreamEvents(stream="rides", source="meter", events=[event("1", door.ride(1))])
    other = messages.StreamEvents(stream="walks", events=[event("1", door.ride(1))])
    response = await door.rpc.PublishBatch(messages.PublishBatchRequest(batches=[batch, other, batch]))
    assert [verdict.outcome for verdict in response.verdicts] == [ACCEPTED, REFUSED, DUPLICATE]
    assert len(await door.log()) == 1


async def test_a_request_with_too_many_events_is_refused_whole(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, max_batch_events=3, max_http_bytes=1_000) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.publish(*(event(str(n), door.ride(n)) for n in range(4)))
        assert refusal(caught.value)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "oversized")
        answer = await door.http.post("/v1/streams/rides/events", content=b"x" * 2_000)
        assert (answer.status_code, answer.json()["reason"]) == (413, "oversized")
        assert await door.log() == []


async def test_while_kafka_is_away_events_are_to_be_sent_again_and_afterwards_taken(
    tmp_path: Path, announce_stream: Any, open_door: Any
) -> None:
    # Loaded here, since this member's other tests run without the SDK.
    stack = importlib.import_module("tidemill.stack").Stack("ingest", tmp_path)
    endpoints = await asyncio.to_thread(stack.start, only="servers")
    try:
        kafka = KafkaSettings(bootstrap=endpoints.kafka, topic_prefix="t.")
        await announce_stream(kafka)
        async with open_door(kafka, publish_timeout_s=5.0) as door:
            assert (await door.publish(event("1", door.ride(1)))).accepted == 1
            await asyncio.to_thread(stack.stop_process, "kafka")
            response = await door.publish(event("2", door.ride(2)), event("2", door.ride(2)))
            assert [verdict.outcome for verdict in response.verdicts] == [RETRY, RETRY]
            assert {verdict.reason for verdict in response.verdicts} == {"unavailable"}
            answer = await door.http.post("/v1/streams/rides/events", json=json.loads(door.ride(3)))
            assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")
            assert answer.headers["retry-after"]
            assert (await door.http.get("/ready")).status_code == 503
            await asyncio.to_thread(stack.start_process, "kafka")

            async def ready() -> bool:
                # Nobody sends to who is not ready: readiness must come back without a send.
                return "producer" not in (await door.http.get("/ready")).json()["faults"]

            await aeventually(ready, claim="the producer is ready again")
            assert (await door.publish(event("2", door.ride(2)))).verdicts[0].outcome in {ACCEPTED, DUPLICATE}
            identities = {from_headers(record.headers).id for record in await door.log()}
            assert {"1", "2"} <= identities
    finally:
        await asyncio.to_thread(stack.stop)
