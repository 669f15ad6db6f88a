"""One cause, one run: against the real Kafka and PostgreSQL, with stand-in processes in place of learning."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from tidemill_contracts.reasons import Reason
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_runtime.errors import Poison
from tidemill_runtime.rpc_errors import from_rpc
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.orphans import dying_with_us

pytestmark = [pytest.mark.servers]
RUNS = "training.runs"
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


async def test_orderly_stops_cost_no_attempt_and_keep_how_the_last_one_ended(world: World) -> None:
    begun = world.home / "begun"
    hangs = f"open({str(begun)!r}, 'w').close()\ntime.sleep(60)"
    crashed = world.home / "crashed"
    code = f"if not os.path.exists({str(crashed)!r}):\n    open({str(crashed)!r}, 'w').close()\n    sys.exit(3)\n"
    offset = await world.ask("one")
    for _ in range(world.settings.max_attempts):
        begun.unlink(missing_ok=True)
        async with world.service(world.stand_in(code + hangs)):
            await aeventually(begun.exists, claim="the run has begun")
    assert await world.ledger(f"SELECT attempts FROM {RUNS}") == 1
    world.settings = world.settings.model_copy(update={"max_attempts": 1})
    async with world.service(world.stand_in(world.done)):
        await world.ended(offset)
    last = (await world.runs())[-1]
    assert last.reason == "1 attempts ended early; the run's process ended without an answer (exit code 3)"


async def test_a_run_that_takes_its_service_with_it_fails_after_its_attempts(world: World) -> None:
    start = world.stand_in("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)")
    offset = await world.ask("one")
    for _ in range(world.settings.max_attempts):
        service = await in_a_process(world)
        assert await service.wait() == -signal.SIGKILL
    async with world.service(start):
        await world.ended(offset)
    last = (await world.runs())[-1]
    assert last.status == "failed"
    assert last.reason.startswith("3 attempts ended early; the last one ended with its service")


async def test_what_was_lost_between_registry_and_topic_is_said_again_without_a_second_run(world: World) -> None:
    async with world.service(world.stand_in(world.done)):
        await world.ended(await world.ask("one"))
        (run,) = world.registry.runs.values()
        await world.ledger(f"UPDATE {RUNS} SET state = 'open'")
        await world.ended(await world.ask("one"))
    assert [step.split()[1] for step in await world.steps()] == ["started", "succeeded", "succeeded"]
    assert (run.attempts, len(world.registry.versions)) == (1, 1)


async def test_a_run_that_ended_before_its_pipeline_was_retired_is_told_of_as_it_ended(world: World) -> None:
    async with world.service(world.stand_in(world.done)):
        await world.ended(await world.ask("one"))
    await world.ledger(f"UPDATE {RUNS} SET state = 'open'")
    world.registry.retired = True
    async with world.service(world.stand_in(world.done)):
        await world.ended(await world.ask("one"))
        await world.ended(await world.ask("two"))
    *_, again, refused = await world.runs()
    assert (again.status, again.version) == ("succeeded", 1)
    assert (refused.status, refused.reason) == ("failed", "pipeline 'late' was retired")
    assert [run.status for run in world.registry.runs.values()] == ["succeeded"]


@pytest.mark.parametrize("call", ["RegisterVersion", "FinishRun"])
async def test_what_a_run_answered_is_registered_after_a_restart_and_not_trained_again(world: World, call: str) -> None:
    counter = world.home / "count"
    start = world.stand_in(f"open({str(counter)!r}, 'a').write('ran\\n')\n" + world.done)
    world.settings = world.settings.model_copy(update={"max_attempts": 1})
    world.registry.away_for = {call}
    async with world.service(start):
        offset = await world.ask("one")
        await aeventually(lambda: world.ledger(f"SELECT answer FROM {RUNS}"), claim="the answer is kept")
        registered = call == "FinishRun"
        await aeventually(lambda: len(world.registry.versions) == registered, claim="the version is registered")
    world.registry.away_for = set()
    async with world.service(start):
        await world.ended(offset)
    assert counter.read_text() == "ran\n"
    last = (await world.runs())[-1]
    assert (last.status, last.version, last.details["training_rows"]) == ("succeeded", 1, 7)
    (run,) = world.registry.runs.values()
    assert (run.status, run.details["training_rows"]) == ("succeeded", 7)
    assert await world.ledger(f"SELECT count(*) FROM {RUNS} WHERE answer IS NOT NULL") == 0


async def test_a_run_whose_version_is_registered_succeeds_whatever_was_kept_of_it(world: World) -> None:
    world.registry.away_for = {"FinishRun"}
    async with world.service(world.stand_in(world.done)):
        offset = await world.ask("one")
        await aeventually(lambda: len(world.registry.versions) == 1, claim="the version is registered")
    await world.ledger(f"UPDATE {RUNS} SET answer = NULL, attempts = {world.settings.max_attempts}")
    world.registry.away_for = set()
    async with world.service(world.stand_in("sys.exit(3)")):
        await world.ended(offset)
    last = (await world.runs())[-1]
    assert (last.status, last.version) == ("succeeded", 1)


async def test_what_a_run_answered_is_of_no_use_once_the_definition_is_another(world: World) -> None:
    counter = world.home / "count"
    start = world.stand_in(f"open({str(counter)!r}, 'a').write('ran\\n')\n" + world.done)
    world.registry.away_for = {"RegisterVersion"}
    async with world.service(start):
        offset = await world.ask("one")
        await aeventually(lambda: world.ledger(f"SELECT answer FROM {RUNS}"), claim="the answer is kept")
    world.registry.away_for = set()
    world.registry.record.hash = "sha256:e"
    async with world.service(start):
        await world.ended(offset)
    assert counter.read_text() == "ran\nran\n"
    assert len(world.registry.versions) == 1


async def test_a_run_that_another_replica_works_on_takes_no_slot(world: World) -> None:
    begun = world.home / "begun"
    start = world.stand_in(f"open({str(begun)!r}, 'a').write(spec['run_id'] + '\\n')\ntime.sleep(120)")
    async with world.service(start), world.service(start, listen="127.0.0.1:0"):
        await world.ask("one")
        await world.ask("two")
        await aeventually(
            lambda: begun.exists() and len(set(begun.read_text().split())) == 2, claim="both replicas have a run"
        )
    assert len(begun.read_text().split()) == 2


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
    service = await in_a_process(world)
    offset = await world.ask("one")
    await aeventually(lambda: place.exists() and place.read_text(), claim="the run has begun")
    service.send_signal(signal.SIGKILL)
    await service.wait()
    await aeventually(lambda: gone(place), claim="the run died with its service")
    async with world.service(world.stand_in(world.done)):
        await world.ended(offset)
    assert [step.split()[1] for step in await world.steps()] == ["started", "started", "succeeded"]
    assert len(world.registry.versions) == 1


async def in_a_process(world: World) -> asyncio.subprocess.Process:
    """Start a service of its own process, which starts runs as the last `stand_in` says."""
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
    return await asyncio.create_subprocess_exec(*dying_with_us(command), env=environment)


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
