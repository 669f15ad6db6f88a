"""Streams of events through both doors, on the real Kafka: a verdict for each, in order, in bounded memory."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import httpx
import pytest
from tidemill_contracts.cloudevents import from_headers
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub
from tidemill_ingestion.adapters.flows import Flows
from tidemill_ingestion.settings import Settings
from tidemill_runtime.errors import Overloaded
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

PATH = "/v1/streams/rides/events"
NDJSON = {"content-type": "application/x-ndjson"}
OUTCOMES = {
    messages.OUTCOME_ACCEPTED: "accepted",
    messages.OUTCOME_DUPLICATE: "duplicate",
    messages.OUTCOME_REFUSED: "refused",
    messages.OUTCOME_RETRY: "retry",
}


def portion(door: Any, numbers: Sequence[int], **named: str) -> messages.PublishStreamRequest:
    events = [messages.Event(id=f"e-{number}", data=door.ride(number)) for number in numbers]
    return messages.PublishStreamRequest(events=events, **named)


def bad(data: bytes = b"{") -> messages.PublishStreamRequest:
    return messages.PublishStreamRequest(events=[messages.Event(data=data)])


async def collect(call: Any) -> list[messages.Verdict]:
    """Return all verdicts of a call, and check that they are numbered without a gap."""
    found: list[messages.Verdict] = []
    async for response in call:
        assert response.first == len(found)
        found += response.verdicts
    return found


async def test_a_stream_of_events_gets_a_verdict_for_each_in_order(door: Any) -> None:
    async def sent() -> AsyncIterator[messages.PublishStreamRequest]:
        yield portion(door, [0], stream="rides", source="meter")
        yield bad()
        yield portion(door, range(1, 500))
        yield portion(door, [0])
        yield messages.PublishStreamRequest(stream="walks", events=[messages.Event(data=door.ride(1))])

    verdicts = await collect(door.rpc.PublishStream(sent(), timeout=60))
    outcomes = [OUTCOMES[verdict.outcome] for verdict in verdicts]
    assert outcomes == ["accepted", "refused"] + ["accepted"] * 499 + ["duplicate", "refused"]
    assert (verdicts[1].reason, verdicts[-1].reason) == ("undecodable", "unknown_stream")
    log = await door.log()
    assert sorted(int(record.key[2:]) for record in log) == list(range(500))
    assert {from_headers(record.headers).source for record in log} == {"meter"}
    for records in ([r for r in log if r.partition == number] for number in range(door.partitions)):
        keys = [int(record.key[2:]) for record in records]
        assert keys == sorted(keys)


async def test_a_sender_may_ask_and_answer_in_turns(door: Any) -> None:
    call = door.rpc.PublishStream(timeout=60)
    for number in range(5):
        await call.write(portion(door, [number], stream="rides"))
        response = await call.read()
        assert (response.first, response.verdicts[0].outcome) == (number, messages.OUTCOME_ACCEPTED)
    await call.done_writing()
    assert await call.read() == grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_sender_that_reads_no_verdict_is_held_back(kafka: Any, open_door: Any) -> None:
    small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with (
        open_door(kafka, max_stream_events=1_000) as door,
        grpc.aio.insecure_channel(door.settings.grpc.listen, options=small) as channel,
    ):
        rpc: Any = IngestionServiceStub(channel)
        call = rpc.PublishStream(timeout=60)
        written = 0
        # Long refusals of long events, so that what HTTP/2 itself keeps is soon full.
        event = messages.Event(data=b"{" + b" " * 500)
        thousand = messages.PublishStreamRequest(stream="rides", events=[event] * 1_000)

        async def send() -> None:
            nonlocal written
            while True:
                await call.write(thousand)
                written += 1_000

        sending = asyncio.create_task(send())
        looks: list[int] = []

        def stands() -> bool:
            looks.append(written)
            return written > 0 and looks[-20:] == [written] * 20

        await aeventually(stands, claim="the sender is held back")
        held = written
        read = 0
        while read < held:
            read += len((await call.read()).verdicts)
        await aeventually(lambda: written > held, claim="the sender goes on once verdicts are read")
        sending.cancel()
        call.cancel()


async def test_callers_that_never_read_lose_their_places(kafka: Any, open_door: Any) -> None:
    small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536), ("grpc.use_local_subchannel_pool", 1)]
    thousand = messages.PublishStreamRequest(
        stream="rides", events=[messages.Event(data=b"{" + b" " * 500) for _ in range(1_000)]
    )
    async with AsyncExitStack() as stack:
        door = await stack.enter_async_context(open_door(kafka, max_streams=2, stream_idle_s=1.0, bad_share=1.0))
        listen, calls = door.settings.grpc.listen, list[Any]()
        for _ in range(2):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(listen, options=small))
            rpc: Any = IngestionServiceStub(channel)
            calls.append(rpc.PublishStream(timeout=120))
        sending = [asyncio.create_task(_send_on(call, thousand)) for call in calls]
        await aeventually(lambda: _gauge(door, "ingestion_streaming_requests", 2), claim="all places are taken")
        await aeventually(lambda: _gauge(door, "ingestion_streaming_requests", 0), claim="no place is held")
        await aeventually(lambda: _gauge(door, "rpc_in_flight", 0), claim="nor is it among the calls being answered")
        verdicts = await collect(door.rpc.PublishStream(iter([portion(door, [1], stream="rides")]), timeout=60))
        assert [verdict.outcome for verdict in verdicts] == [messages.OUTCOME_ACCEPTED]
        # Who reads at last gets the verdicts that were written, and why there are no more.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_on(calls[0])
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        for task in sending:
            task.cancel()
        for call in calls:
            call.cancel()


async def _send_on(call: Any, request: messages.PublishStreamRequest) -> None:
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            await call.write(request)


async def _read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        continue


async def _gauge(door: Any, name: str, value: int) -> bool:
    return f"tidemill_{name} {value}.0" in (await door.http.get("/metrics")).text


async def test_too_many_streams_are_refused_with_when_to_come_back(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, max_streams=1) as door:
        call = door.rpc.PublishStream(timeout=60)
        await call.write(portion(door, [1], stream="rides"))
        await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(door.rpc.PublishStream(iter([portion(door, [2], stream="rides")]), timeout=60))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = await door.http.post(PATH, content=door.ride(3), headers=NDJSON)
        assert (answer.status_code, answer.json()["reason"]) == (429, "overloaded")
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF


async def test_a_stream_that_is_too_long_silent_ends_after_its_verdicts(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, stream_idle_s=0.3) as door:
        call = door.rpc.PublishStream(timeout=60)
        await call.write(portion(door, [1], stream="rides"))
        assert (await call.read()).verdicts[0].outcome == messages.OUTCOME_ACCEPTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_service_that_stops_gives_the_verdicts_of_what_it_took(kafka: Any, open_door: Any) -> None:
    got: list[messages.Verdict] = []
    async with AsyncExitStack() as stack:
        async with open_door(kafka) as door:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(door.settings.grpc.listen))
            rpc: Any = IngestionServiceStub(channel)
            call = rpc.PublishStream(timeout=60)
            await call.write(portion(door, range(50), stream="rides"))
            got += (await call.read()).verdicts

        async def rest() -> None:
            while True:
                got.extend((await call.read()).verdicts)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [verdict.outcome for verdict in got] == [messages.OUTCOME_ACCEPTED] * 50


async def test_a_sender_that_never_reads_holds_up_no_stop() -> None:
    publisher: Any = None
    flows = Flows(publisher, Settings())
    with flows.one():
        async with asyncio.timeout(60):
            await flows.__aexit__(None, None, None)
    with pytest.raises(Overloaded), flows.one():
        raise AssertionError("a service that stops takes no new streams")


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_ndjson_gets_a_verdict_per_line_and_an_end(door: Any) -> None:
    body = b"\n".join([door.ride(1), b"", b"{", door.ride(2), b'{"ride_id": "r"}'])
    answer = lines(await door.http.post(PATH, content=body, headers=NDJSON | {"ce-source": "meter"}))
    assert [(line["line"], line["outcome"], line.get("reason")) for line in answer[:-1]] == [
        (1, "accepted", None),
        (3, "refused", "undecodable"),
        (4, "accepted", None),
        (5, "refused", "missing_field"),
    ]
    assert answer[-1] == {"done": True, "accepted": 2, "duplicate": 0, "refused": 2, "retry": 0}
    log = await door.log()
    assert {record.value for record in log} == {door.ride(1), door.ride(2)}
    assert {from_headers(record.headers).source for record in log} == {"meter"}


async def test_the_source_of_lines_is_decoded_as_that_of_a_single_event(door: Any) -> None:
    for kind in ("application/x-ndjson", "application/json"):
        headers = {"content-type": kind, "ce-source": '"Euro%20%E2%82%AC"'}
        assert (await door.http.post(PATH, content=door.ride(1), headers=headers)).status_code == 200
    assert {from_headers(record.headers).source for record in await door.log()} == {"Euro €"}
    lost = await door.http.post(PATH, content=door.ride(1), headers=NDJSON | {"ce-source": "a%FF"})
    assert (lost.status_code, lost.json()["reason"]) == (400, "bad_utf8")


async def test_ndjson_of_envelopes_keeps_identities(door: Any) -> None:
    good = {"specversion": "1.0", "id": "1", "source": "app", "type": "t", "data": json.loads(door.ride(1))}
    body = "\n".join(json.dumps(one) for one in (good, good, {**good, "specversion": "9"}))
    headers = {"content-type": "application/cloudevents+ndjson"}
    answer = lines(await door.http.post(PATH, content=body, headers=headers))
    assert [line.get("outcome") for line in answer[:-1]] == ["accepted", "duplicate", "refused"]
    # Asked for, the lines are only of what is not in the log.
    answer = lines(await door.http.post(PATH + "?verdicts=refused", content=body, headers=headers))
    assert [line.get("reason") for line in answer[:-1]] == ["unsupported"]
    assert answer[-1]["duplicate"] == 2
    wrong = await door.http.post(PATH + "?verdicts=some", content=body, headers=headers)
    assert (wrong.status_code, wrong.json()["reason"]) == (400, "out_of_range")


async def test_ndjson_for_an_unknown_stream_is_refused_before_it_is_read(door: Any) -> None:
    answer = await door.http.post("/v1/streams/walks/events", content=b"{}\n", headers=NDJSON)
    assert (answer.status_code, answer.json()["reason"]) == (404, "unknown_stream")


async def test_verdicts_come_while_the_body_is_still_being_sent(door: Any) -> None:
    reader, writer = await asyncio.open_connection(*door.settings.http.listen.rsplit(":", 1))
    head = [f"POST {PATH} HTTP/1.1", "host: x", "transfer-encoding: chunked", "content-type: application/x-ndjson"]
    writer.write("\r\n".join([*head, "", ""]).encode())

    def piece(content: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(content), content)

    async def until(text: bytes) -> bytes:
        async with asyncio.timeout(60):
            return await reader.readuntil(text)

    for number in (1, 2):
        # A line in two pieces: no verdict before its end.
        event = door.ride(number)
        writer.write(piece(event[:10]))
        writer.write(piece(event[10:] + b"\n"))
        assert b'"accepted"' in await until(b'"line":%d,' % number) + await until(b"\n")
    # A connection that breaks off in the middle of a line.
    writer.write(piece(door.ride(3)[:-3]))
    await writer.drain()
    writer.close()
    await writer.wait_closed()

    async def ended() -> bool:
        metrics: str = (await door.http.get("/metrics")).text
        return "tidemill_ingestion_streaming_requests 0.0" in metrics

    await aeventually(ended, claim="the door has noticed")
    assert {record.value for record in await door.log()} == {door.ride(1), door.ride(2)}


async def test_a_body_of_any_length_takes_bounded_memory(kafka: Any, open_door: Any) -> None:
    count, long = 5_000, b'{"ride_id": "' + b"x" * 500_000 + b'"}\n'

    async def body() -> AsyncIterator[bytes]:
        for first in range(0, count, 100):
            yield b"".join(door.ride(number, seats=...) + b"\n" for number in range(first, first + 100))
            yield long

    async with open_door(kafka, max_line_bytes=10_000, max_stream_events=500, max_http_bytes=1_000) as door:
        warm = await door.http.post(PATH + "?verdicts=refused", content=door.ride(1) + b"\n", headers=NDJSON)
        assert warm.status_code == 200
        tracemalloc.start()
        try:
            url = PATH + "?verdicts=refused"
            answer = lines(await door.http.post(url, content=body(), headers=NDJSON, timeout=60))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert answer[-1] == {"done": True, "accepted": count, "duplicate": 0, "refused": 50, "retry": 0}
    assert {line["reason"] for line in answer[:-1]} == {"oversized"}
    # The body has over 25 MB.
    assert peak < 12_000_000


async def test_what_waits_for_room_is_held_back_and_never_sent_back(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, max_in_flight_bytes=2_000, max_stream_events=20) as door:

        async def one(source: str) -> list[messages.Verdict]:
            requests = [portion(door, range(n, n + 10), stream="rides", source=source) for n in range(0, 100, 10)]
            return await collect(door.rpc.PublishStream(iter(requests), timeout=60))

        found = await asyncio.gather(*(one(str(number)) for number in range(6)))
    assert {verdict.outcome for verdicts in found for verdict in verdicts} == {messages.OUTCOME_ACCEPTED}
    assert [len(verdicts) for verdicts in found] == [100] * 6


async def test_events_read_before_a_fault_of_the_sender_get_their_verdicts(door: Any) -> None:
    async def sent() -> AsyncIterator[messages.PublishStreamRequest]:
        for number in range(7):
            yield portion(door, [number], stream="rides")
        yield messages.PublishStreamRequest(events=[messages.Event()] * 20_001)

    got: list[messages.Verdict] = []

    async def read() -> None:
        async for response in door.rpc.PublishStream(sent(), timeout=60):
            got.extend(response.verdicts)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [verdict.outcome for verdict in got] == [messages.OUTCOME_ACCEPTED] * 7
