"""One cause, one run: against the real Kafka and PostgreSQL, with stand-in processes in place of learning."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from tidemill_contracts.reasons import Reason
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_runtime.errors import Poison
from tidemill_runtime.rpc_errors import from_rpc
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.orphans import dying_with_us

pytestmark = [pytest.mark.servers]
ACTOR = (("x-tidemill-actor", "anna"),)

# conftest's World; test modules cannot import it under importlib mode.
World = Any


async def test_a_request_becomes_one_run_with_its_records_in_order(world: World) -> None:
    code = "print(json.dumps({'kind': 'progress', 'phase': 'fit', 'progress': 0.5}))\n" + world.done
    async with world.service(world.stand_in(code)):
        written = await world.ended(await world.ask("one"))
    runs = await world.runs()
    assert [run.status for run in runs] == ["started", "progress", "succeeded"]
    assert len({run.run_id for run in runs}) == 1
    assert runs[-1].version == 1
    assert runs[-1].metrics["log_loss"] == pytest.approx(0.4)
    assert runs[-1].details["training_rows"] == 7
    assert runs[-1].requested_at == world.at
    assert {(place.topic, place.next_offset) for place in written} == {("training.runs.v1", 3)}


async def test_a_repeated_trigger_starts_nothing(world: World) -> None:
    async with world.service(world.stand_in(world.done)):
        await world.ask("one")
        await world.ask("one")
        await world.ended(await world.ask("one"))
        await world.ended(await world.ask("one"))
        assert len(world.registry.runs) == 1
        await world.ended(await world.ask("two"))
    assert len(world.registry.runs) == 2
    assert [step.split()[1] for step in await world.steps()] == ["started", "succeeded"] * 2


async def test_a_run_whose_process_is_killed_is_tried_again_and_registers_once(world: World) -> None:
    marker = world.home / "killed"
    code = (
        f"if not os.path.exists({str(marker)!r}):\n"
        f"    open({str(marker)!r}, 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n" + world.done
    )
    async with world.service(world.stand_in(code)):
        await world.ended(await world.ask("one"))
    assert [run.status for run in await world.runs()] == ["started", "started", "succeeded"]
    (run,) = world.registry.runs.values()
    assert (run.status, run.attempts, run.version) == ("succeeded", 2, 1)


async def test_a_run_that_never_ends_well_fails_with_the_reason_after_its_attempts(world: World) -> None:
    async with world.service(world.stand_in("os.kill(os.getpid(), signal.SIGKILL)")):
        await world.ended(await world.ask("one"))
    last = (await world.runs())[-1]
    assert last.status == "failed"
    assert last.reason == "3 attempts ended early; the run's process ended without an answer (killed by SIGKILL)"
    assert [run.status for run in world.registry.runs.values()] == ["failed"]


async def test_a_run_that_cannot_succeed_fails_at_once_and_the_next_goes_on(world: World) -> None:
    code = "print(json.dumps({'kind': 'failed', 'reason': '12 labelled rows'}))"
    async with world.service(world.stand_in(code)):
        await world.ended(await world.ask("one"))
        await world.ended(await world.ask("no-such", pipeline="elsewhere"))
        await world.ended(await world.ask("two"))
    assert [(run.status, run.reason) for run in await world.runs() if run.status == "failed"] == [
        ("failed", "12 labelled rows"),
        ("failed", "no pipeline 'elsewhere'"),
        ("failed", "12 labelled rows"),
    ]


async def test_a_service_that_stops_midway_leaves_the_run_to_the_next_one(world: World) -> None:
    place = world.home / "pid"
    hangs = f"open({str(place)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    async with world.service(world.stand_in(hangs)):
        offset = await world.ask("one")
        await aeventually(lambda: place.exists() and place.read_text(), claim="the run has begun")
    assert gone(place)
    async with world.service(world.stand_in(world.done)):
        await world.ended(offset)
    assert [step.split()[1] for step in await world.steps()] == ["started", "started", "succeeded"]
    assert len(world.registry.versions) == 1


async def test_what_was_lost_between_registry_and_topic_is_said_again_without_a_second_run(world: World) -> None:
    async with world.service(world.stand_in(world.done)):
        await world.ended(await world.ask("one"))
        (run,) = world.registry.runs.values()
        connection = await asyncpg.connect(world.settings.postgres.url())
        await connection.execute("UPDATE training.runs SET state = 'open'")
        await connection.close()
        await world.ended(await world.ask("one"))
    assert [step.split()[1] for step in await world.steps()] == ["started", "succeeded", "succeeded"]
    assert (run.attempts, len(world.registry.versions)) == (1, 1)


async def test_two_replicas_share_the_runs_and_double_none(world: World) -> None:
    counter = world.home / "count"
    code = f"open({str(counter)!r}, 'a').write(spec['run_id'] + '\\n')\n" + world.done
    start = world.stand_in(code)
    first = world.settings
    async with world.service(start):
        object.__setattr__(
            world,
            "settings",
            first.model_copy(update={"grpc": first.grpc.model_copy(update={"listen": "127.0.0.1:0"})}),
        )
        async with world.service(start):
            world.settings = first
            offset = 0
            for cause in range(6):
                offset = await world.ask(str(cause))
            await aeventually(lambda: len(world.registry.versions) == 6, claim="every run has registered")
    ran = counter.read_text().split()
    assert len(ran) == len(set(ran)) == 6
    assert offset == 6


async def test_a_request_that_is_none_goes_to_the_dead_letters_and_the_next_is_taken(world: World) -> None:
    async with world.service(world.stand_in(world.done)):
        await world.ask("x", value=b"\xff not json")
        await world.ended(await world.ask("one"))
    (letter,) = await world.records("ingestion.dead-letters.v1")
    assert letter.value == b"\xff not json"
    assert dict(letter.headers)["x-dlq-reason"] == b"undecodable"
    assert len(world.registry.runs) == 1


async def test_the_registry_away_delays_a_run_and_costs_no_attempt(world: World) -> None:
    world.registry.away = True
    async with world.service(world.stand_in(world.done)):
        offset = await world.ask("one")
        with pytest.raises(grpc.aio.AioRpcError):
            await world.ended(offset, timeout_s=4.0)
        world.registry.away = False
        await world.ended(offset)
    assert [run.status for run in world.registry.runs.values()] == ["succeeded"]


async def test_every_attempt_reads_the_same_positions(world: World) -> None:
    code = f"open({str(world.home)!r} + '/specs', 'a').write(json.dumps(spec['request']) + '\\n')\n"
    async with world.service(world.stand_in(code + "sys.exit(1)")):
        await world.ended(await world.ask("one"))
    specs = (world.home / "specs").read_text().splitlines()
    assert len(specs) == 3
    assert len(set(specs)) == 1
    assert {offset.topic for offset in world.feature.asked[0].offsets} == {"serving.predictions.v1"}
    assert world.feature.asked[0].stage == "offline"


async def test_an_operator_submits_watches_and_cancels(world: World) -> None:
    hangs = "print(json.dumps({'kind': 'progress', 'phase': 'fit', 'progress': 0.1}), flush=True)\ntime.sleep(60)"
    async with world.service(world.stand_in(hangs)), world.client() as client:
        submit = training.SubmitRunRequest(
            pipeline=world.pipeline, reason="why not", idempotency_key="k", event_time=world.at
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.SubmitRun(submit, wait_for_ready=True)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        one = await client.SubmitRun(submit, metadata=ACTOR)
        other = await client.SubmitRun(submit, metadata=ACTOR)
        assert one.request_id == other.request_id
        await aeventually(lambda: bool(world.registry.runs), claim="the run has begun")
        (run_id,) = world.registry.runs
        await aeventually(lambda: _has(client, run_id), claim="the run is known")
        seen: list[str] = []
        async for answer in client.WatchRun(training.WatchRunRequest(run_id=run_id)):
            seen.append(answer.run.status)
            if answer.run.status == "progress":
                cancelled = asyncio.ensure_future(
                    client.CancelRun(training.CancelRunRequest(run_id=run_id, reason="changed my mind"), metadata=ACTOR)
                )
        assert (await cancelled).run.status == "cancelled"
        assert seen[-2:] == ["progress", "cancelled"]
        assert (await client.GetRun(training.GetRunRequest(run_id=run_id))).run.reason == "anna: changed my mind"
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await client.GetRun(training.GetRunRequest(run_id="no-such"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    assert len(world.registry.runs) == 1
    assert [run.status for run in world.registry.runs.values()] == ["cancelled"]


async def test_a_run_of_a_pipeline_that_nobody_registered_is_refused_by_that_name(world: World) -> None:
    named, unnamed = (
        training.SubmitRunRequest(reason="why", event_time=world.at),
        training.SubmitRunRequest(reason="why"),
    )
    async with world.service(), world.client() as client:

        async def refused(asked: training.SubmitRunRequest, pipeline: str) -> grpc.aio.AioRpcError:
            asked.pipeline = pipeline
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.SubmitRun(asked, metadata=ACTOR, wait_for_ready=True)
            return caught.value

        for asked in (named, unnamed):
            unknown = from_rpc(await refused(asked, "nothing"))
            assert isinstance(unknown, Poison)
            assert unknown.reason is Reason.UNKNOWN_PIPELINE
        # What is missing of a registered one is the time: its clock does not run yet.
        missing = from_rpc(await refused(unnamed, world.pipeline))
        assert isinstance(missing, Poison)
        assert (missing.reason, missing.field) == (Reason.MISSING_FIELD, "event_time")
        world.registry.away = True
        assert (await refused(unnamed, "nothing")).code() is grpc.StatusCode.UNAVAILABLE
    assert not world.registry.runs


async def _has(client: Any, run_id: str) -> bool:
    try:
        await client.GetRun(training.GetRunRequest(run_id=run_id))
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_a_service_killed_9_takes_its_run_with_it_and_the_next_finishes_it(world: World) -> None:
    place = world.home / "pid"
    world.stand_in(f"open({str(place)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    program = (
        "import asyncio, sys\n"
        "from tidemill_runtime.health import Health\n"
        "from tidemill_training.adapters.processes import open_process\n"
        "from tidemill_training.app import open_service\n"
        "from tidemill_training.settings import TrainingSettings\n"
        "async def main():\n"
        "    start = lambda launch: open_process(launch, 'stand_in')\n"
        "    async with open_service(TrainingSettings(), Health(), start):\n"
        "        await asyncio.sleep(120)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, **as_environment(world)}
    command = (sys.executable, "-c", program)
    service = await asyncio.create_subprocess_exec(*dying_with_us(command), env=environment)
    offset = await world.ask("one")
    await aeventually(lambda: place.exists() and place.read_text(), claim="the run has begun")
    service.send_signal(signal.SIGKILL)
    await service.wait()
    await aeventually(lambda: gone(place), claim="the run died with its service")
    async with world.service(world.stand_in(world.done)):
        await world.ended(offset)
    assert [step.split()[1] for step in await world.steps()] == ["started", "started", "succeeded"]
    assert len(world.registry.versions) == 1


def gone(place: Path) -> bool:
    """Return whether the process whose id was written there has ended."""
    return not Path(f"/proc/{place.read_text()}").exists()


def as_environment(world: World) -> dict[str, str]:
    settings = world.settings
    return {
        "TIDEMILL_TRAINING_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "TIDEMILL_TRAINING_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "TIDEMILL_TRAINING_POSTGRES__DSN": settings.postgres.url(),
        "TIDEMILL_TRAINING_REGISTRY": settings.registry,
        "TIDEMILL_TRAINING_FEATURE": settings.feature,
        "TIDEMILL_TRAINING_ARTIFACTS": settings.artifacts,
        "TIDEMILL_TRAINING_DATADIR": str(settings.datadir),
        "TIDEMILL_TRAINING_SIGNING_KEY_FILE": str(settings.signing_key_file),
    }
