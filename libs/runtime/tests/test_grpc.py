"""The gRPC server and channel, over a real connection on the loopback."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tidemill_contracts.progress.v1 import progress_pb2, progress_pb2_grpc
from tidemill_contracts.reasons import Reason
from tidemill_runtime import metrics, rpc_errors
from tidemill_runtime.actor import require_actor
from tidemill_runtime.errors import Fatal, Overloaded, Poison, Retryable, TidemillError
from tidemill_runtime.grpc_client import channel
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.lifecycle import running
from tidemill_runtime.positions import Offsets, Partition
from tidemill_runtime.progress import ProgressServicer, Reached
from tidemill_runtime.settings import GrpcSettings, split_address
from tidemill_testkit.authority import Authority
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.ports import free_address

Stage = Callable[[Offsets, int], Any]


@asynccontextmanager
async def serving(stage: Stage, settings: GrpcSettings | None = None, actor: str = "") -> AsyncIterator[Any]:
    settings = settings or GrpcSettings()
    health = Health()
    health.opened = True
    server = GrpcServer(settings, health)
    server.add(progress_pb2_grpc.add_ProgressServiceServicer_to_server, ProgressServicer({"s": stage}))
    async with running(server), channel(f"127.0.0.1:{server.port}", settings, actor=actor) as opened:
        yield opened


def wait(opened: Any, stage: str = "s", timeout: float | None = None) -> Any:
    offsets = [progress_pb2.TopicPartitionOffset(topic="a", partition=1, next_offset=7)]
    request = progress_pb2.WaitProgressRequest(stage=stage, offsets=offsets, event_time_us=9)
    return progress_pb2_grpc.ProgressServiceStub(opened).WaitProgress(request, timeout=timeout)


async def failure(error: TidemillError) -> grpc.aio.AioRpcError:
    async def stage(offsets: Offsets, event_time_us: int) -> Reached:
        raise error

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        async with serving(stage) as opened:
            await wait(opened)
    return failed.value


@pytest.mark.parametrize("letter", ["z", "%", "é", "水"])
async def test_a_long_refusal_reaches_its_caller_by_name(letter: str) -> None:
    # More than 8 KiB of metadata is dropped by the client, which then sees RESOURCE_EXHAUSTED and no reason.
    long = letter * 20_000
    failed = await failure(Poison(Reason.UNKNOWN_FIELD, f"no field {long!r}", field=long, fix=f"leave out {long!r}"))
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    refusal = rpc_errors.from_rpc(failed)
    assert isinstance(refusal, Poison)
    assert refusal.reason is Reason.UNKNOWN_FIELD
    assert str(refusal).startswith(f"no field '{letter}")
    assert refusal.field.startswith(letter)
    assert refusal.fix.startswith("leave out")


async def test_of_many_violations_the_first_are_named_and_all_counted() -> None:
    several = [(f"streams.wide.fields.a_{number}", "another type; breaks events in the log") for number in range(500)]
    failed = await failure(Poison(Reason.BREAKING_CHANGE, "it breaks", field=several[0][0], violations=several))
    assert failed.code() is grpc.StatusCode.FAILED_PRECONDITION
    status, bad = status_pb2.Status(), details.BadRequest()
    status.ParseFromString(dict(failed.trailing_metadata() or ())[rpc_errors.DETAILS_KEY])
    assert any(detail.Unpack(bad) for detail in status.details)
    named = [(one.field, one.description) for one in bad.field_violations]
    assert 20 < len(named) < 500
    assert named == several[: len(named)]
    assert failed.details() == f"it breaks (the first {len(named)} of 500 are named)"


async def test_progress_passes_positions_in_and_out() -> None:
    async def stage(offsets: Offsets, event_time_us: int) -> Reached:
        assert offsets == {Partition("a", 1): 7}
        return Reached({Partition("b", 0): 3}, event_time_us)

    async with serving(stage) as opened:
        answer = await wait(opened)
    assert [(one.topic, one.partition, one.next_offset) for one in answer.written] == [("b", 0, 3)]
    assert answer.event_time_us == 9


async def test_an_unknown_stage_names_the_known_ones() -> None:
    async def stage(offsets: Offsets, event_time_us: int) -> Reached:
        return Reached({})

    async with serving(stage) as opened:
        with pytest.raises(grpc.aio.AioRpcError, match="use one of: s") as failed:
            await wait(opened, stage="x")
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_refusal_names_reason_field_and_fix_and_survives_the_way_back() -> None:
    error = await failure(Poison(Reason.UNKNOWN_STREAM, "no stream 'x'", field="stream", fix="apply it first"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    status = status_pb2.Status()
    status.ParseFromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info, bad = details.ErrorInfo(), details.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.reason, info.domain) == ("UNKNOWN_STREAM", "tidemill")
    assert bad.field_violations[0].field == "stream"
    back = rpc_errors.from_rpc(error)
    assert isinstance(back, Poison)
    assert (back.reason, back.field, back.fix) == (Reason.UNKNOWN_STREAM, "stream", "apply it first")


async def test_overload_says_when_to_come_back() -> None:
    error = await failure(Overloaded("full", retry_after_s=0.25))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    back = rpc_errors.from_rpc(error)
    assert isinstance(back, Overloaded)
    assert back.retry_after_s == 0.25


async def test_a_world_that_is_away_is_unavailable() -> None:
    error = await failure(Retryable("Redis is away"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(rpc_errors.from_rpc(error), Retryable)


async def test_a_bug_is_internal_and_tells_no_secret() -> None:
    async def stage(offsets: Offsets, event_time_us: int) -> Reached:
        raise ZeroDivisionError("password hunter2")

    async with serving(stage) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await wait(opened)
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(failed.value.details())


async def test_a_fatal_error_in_a_method_ends_the_service() -> None:
    async def stage(offsets: Offsets, event_time_us: int) -> Reached:
        raise Fatal("the state is wrong")

    async def call() -> None:
        async with serving(stage) as opened:
            with pytest.raises(grpc.aio.AioRpcError):
                await wait(opened)
            await asyncio.Event().wait()

    with pytest.raises(Fatal, match="the state is wrong"):
        await call()


async def test_the_deadline_of_the_call_ends_the_wait_and_is_counted() -> None:
    refused = metrics.rpc_refused.labels("/tidemill.progress.v1.ProgressService/WaitProgress", Reason.DEADLINE_EXCEEDED)
    before = refused._value.get()
    cancelled = asyncio.Event()

    async def stage(offsets: Offsets, event_time_us: int) -> Reached:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Reached({})

    async with serving(stage) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            # Long enough to reach the stage.
            await wait(opened, timeout=2)
        async with asyncio.timeout(60):
            await cancelled.wait()
        await aeventually(lambda: refused._value.get() == before + 1, claim="the deadline is counted")
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_call_without_a_deadline_gets_that_of_the_settings() -> None:
    async def stage(offsets: Offsets, event_time_us: int) -> Reached:
        await asyncio.Event().wait()
        return Reached({})

    add = progress_pb2_grpc.add_ProgressServiceServicer_to_server
    server = GrpcServer(GrpcSettings(default_deadline_s=0.1), Health()).add(add, ProgressServicer({"s": stage}))
    async with running(server), grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as opened:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await wait(opened)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failed.value.details() == "the deadline passed before the answer was ready"


@pytest.mark.parametrize(("raw", "reason"), [(b"\x0a\x02\xff\xfe", Reason.BAD_UTF8), (b"\x0a\xff", Reason.UNDECODABLE)])
async def test_bytes_that_are_no_request_get_their_named_reason(raw: bytes, reason: Reason) -> None:
    async def stage(offsets: Offsets, event_time_us: int) -> Reached:
        raise AssertionError("never called")

    async with serving(stage) as opened:
        method = opened.unary_unary("/tidemill.progress.v1.ProgressService/WaitProgress")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await method(raw)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    poison = rpc_errors.from_rpc(failed.value)
    assert isinstance(poison, Poison)
    assert poison.reason is reason


async def test_calls_past_the_bound_are_refused_and_health_still_answers() -> None:
    settings = GrpcSettings(max_in_flight=1)
    health = Health()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def hold(request: Any, context: Any) -> Any:
        entered.set()
        await leave.wait()
        return progress_pb2.WaitProgressResponse()

    def add_holding(servicer: Any, server: Any) -> None:
        method = grpc.unary_unary_rpc_method_handler(
            servicer,
            progress_pb2.WaitProgressRequest.FromString,
            progress_pb2.WaitProgressResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Hold", {"Hold": method}),))

    server = GrpcServer(settings, health).add(add_holding, hold)
    async with running(server), channel(f"127.0.0.1:{server.port}", settings) as opened:
        call: Any = opened.unary_unary("/t.Hold/Hold", progress_pb2.WaitProgressRequest.SerializeToString)
        first = asyncio.ensure_future(_awaited(call(progress_pb2.WaitProgressRequest())))
        await entered.wait()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(progress_pb2.WaitProgressRequest())
        check = health_pb2_grpc.HealthStub(opened).Check
        assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
        health.opened = True
        assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        assert (
            await check(health_pb2.HealthCheckRequest(service="liveness"))
        ).status == health_pb2.HealthCheckResponse.SERVING
        leave.set()
        await first
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def _awaited(call: Any) -> Any:
    return await call


@pytest.mark.parametrize("turns", range(6))
async def test_a_server_whose_opening_is_given_up_is_closed(turns: int) -> None:
    address, faults = free_address(), list[Any]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    opening = asyncio.ensure_future(GrpcServer(GrpcSettings(listen=address), Health()).__aenter__())
    for _ in range(turns):
        await asyncio.sleep(0)
    if opening.cancel():
        with pytest.raises(asyncio.CancelledError):
            await opening
    else:
        await opening.result().__aexit__(None, None, None)
    host, port = split_address(address)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, port)
    gc.collect()
    await asyncio.sleep(0)
    assert faults == []


async def test_tls_serves_known_clients_and_no_others(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "tests")
    pair, ca = authority.pair("service"), str(authority.file)
    secure = GrpcSettings(tls_cert=str(pair.certificate), tls_key=str(pair.key), tls_ca=ca, peer_tls=True)

    async def stage(offsets: Offsets, event_time_us: int) -> Reached:
        return Reached({}, event_time_us)

    async with serving(stage, secure) as opened:
        assert (await wait(opened, timeout=60)).event_time_us == 9
    server = GrpcServer(secure, Health())
    anonymous = GrpcSettings(tls_ca=ca, peer_tls=True)
    async with running(server):
        for stranger in (GrpcSettings(), anonymous):
            async with channel(f"127.0.0.1:{server.port}", stranger) as opened:
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await wait(opened, timeout=60)
                assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_channel_says_who_calls_and_the_hop_delay_delays() -> None:
    seen: list[str] = []

    class Servicer(progress_pb2_grpc.ProgressServiceServicer):
        async def WaitProgress(  # noqa: N802 -- the wire's name
            self, request: Any, context: Any
        ) -> progress_pb2.WaitProgressResponse:
            seen.append(require_actor(context))
            return progress_pb2.WaitProgressResponse()

    settings = GrpcSettings()
    server = GrpcServer(settings, Health(), hop_delay_ms=40, seed=1)
    server.add(progress_pb2_grpc.add_ProgressServiceServicer_to_server, Servicer())
    async with running(server):
        async with channel(f"127.0.0.1:{server.port}", settings, actor="service/training") as opened:
            began = time.monotonic()
            for _ in range(10):
                await wait(opened)
            assert time.monotonic() - began > 0.05
        async with channel(f"127.0.0.1:{server.port}", settings) as opened:
            with pytest.raises(grpc.aio.AioRpcError, match="x-tidemill-actor") as failed:
                await wait(opened)
    assert seen == ["service/training"] * 10
    assert rpc_errors.from_rpc(failed.value).reason is Reason.MISSING_ACTOR  # type: ignore[attr-defined]


async def test_every_reason_has_a_code_and_survives_the_way_back() -> None:
    for reason in Reason:
        code, status = rpc_errors.to_status(Poison(reason, "x", field="f"))
        assert code is not grpc.StatusCode.OK
        assert status.code == code.value[0]
