"""Laws of the registry on the real PostgreSQL and Kafka."""

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

import asyncpg
import grpc
import pytest
from aiokafka import AIOKafkaProducer
from tidemill_contracts.canonical import from_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as messages
from tidemill_registry.app import open_service
from tidemill_registry.audit import first_break
from tidemill_runtime.health import Health
from tidemill_testkit.orphans import dying_with_us

pytestmark = pytest.mark.servers


def deployments(found: list[Any]) -> list[records.DeploymentRecord]:
    return [from_json(record.value, records.DeploymentRecord()) for record in found]


async def test_applying_publishes_the_closure_and_applying_again_publishes_nothing(registry: Any, rides: Any) -> None:
    changes = await registry.apply(rides())
    assert [(change.kind, change.change, change.revision) for change in changes] == [
        ("stream", "created", 1),
        ("view", "created", 1),
        ("pipeline", "created", 1),
    ]
    again = await registry.apply(rides())
    assert {change.change for change in again} == {"unchanged"}
    found = await registry.topic("registry.pipelines.v1")
    assert [record.key for record in found] == [b"stream/rides", b"view/busy", b"pipeline/tips"]
    catalogue = Catalogue()
    for record in found:
        catalogue.fold(record.value)
    assert catalogue.pipelines["tips"] == rides().pipelines[0]
    assert catalogue.pipeline_hashes["tips"] == changes[2].hash
    assert catalogue.view_hash("busy").startswith("sha256:")


async def test_topics_of_a_stream_exist_before_its_definition_is_announced(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    kafka = registry.settings.kafka
    consumer_topics = await registry.topic("events.rides")
    assert consumer_topics == []
    producer = AIOKafkaProducer(**kafka.client_kwargs())
    await producer.start()
    try:
        assert await producer.partitions_for(kafka.physical("events.rides")) == {0, 1}
        assert await producer.partitions_for(kafka.physical("events.rides.dlq")) == {0}
    finally:
        await producer.stop()


async def test_a_dry_run_reports_and_changes_nothing(registry: Any, rides: Any) -> None:
    changes = await registry.apply(rides(), dry_run=True)
    assert {change.change for change in changes} == {"created"}
    assert not (await registry.rpc.ListDefinitions(messages.ListDefinitionsRequest())).records
    assert await registry.topic("registry.pipelines.v1") == []


async def test_a_conflicting_redefinition_is_refused_and_names_who_uses_it(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    await registry.apply(rides(pipelines=("fares",)))
    with pytest.raises(grpc.aio.AioRpcError, match="'busy' is used by 'fares'") as caught:
        await registry.apply(rides(window_ms=2000))
    assert registry.refusal(caught.value) == (grpc.StatusCode.FAILED_PRECONDITION, "breaking_change", "views.busy")
    changed = await registry.apply(rides(window_ms=2000, pipelines=("tips", "fares")))
    assert [change.revision for change in changed] == [1, 2, 2, 2]


async def test_concurrent_applies_create_each_object_once(registry: Any, rides: Any) -> None:
    answers = await asyncio.gather(*(registry.apply(rides()) for _ in range(8)))
    created = [change for changes in answers for change in changes if change.change == "created"]
    assert len(created) == 3
    assert len(await registry.topic("registry.pipelines.v1")) == 3


async def test_one_cause_starts_one_run_however_often_and_at_once_it_is_asked(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    answers = await asyncio.gather(*(registry.start_run("cause-1") for _ in range(10)))
    assert [answer.created for answer in answers].count(True) == 1
    assert len({answer.run.run_id for answer in answers}) == 1
    assert max(answer.run.attempts for answer in answers) == 10
    run_id = answers[0].run.run_id
    finish = messages.FinishRunRequest(run_id=run_id, status="failed", reason="out of memory")
    for _ in range(2):
        run = (await registry.rpc.FinishRun(finish, metadata=registry.actor)).run
    assert (run.status, run.reason) == ("failed", "out of memory")
    assert (await registry.start_run("cause-1")).run == run
    other = messages.FinishRunRequest(run_id=run_id, status="succeeded")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.rpc.FinishRun(other, metadata=registry.actor)
    assert registry.refusal(caught.value)[1] == "conflict"


async def test_a_run_registers_one_version_and_a_failed_run_none(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    first, second = await registry.register("cause-1"), await registry.register("cause-1")
    assert first == second
    assert (first.version, first.stage, first.revision) == (1, "champion", 1)
    run = (await registry.start_run("cause-1")).run
    assert run.version == 1
    failed = (await registry.start_run("cause-2")).run
    finish = messages.FinishRunRequest(run_id=failed.run_id, status="cancelled")
    await registry.rpc.FinishRun(finish, metadata=registry.actor)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.register("cause-2")
    assert registry.refusal(caught.value)[1] == "conflict"


async def test_concurrent_registrations_take_numbers_without_gap(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    versions = await asyncio.gather(*(registry.register(f"cause-{number}") for number in range(6)))
    assert sorted(version.version for version in versions) == [1, 2, 3, 4, 5, 6]
    history = deployments(await registry.topic("registry.deployments.v1"))
    assert [record.revision for record in history] == [1, 2, 3, 4, 5, 6]
    stages = {
        version.version: version.stage
        for version in (await registry.rpc.ListVersions(messages.ListVersionsRequest(pipeline="tips"))).versions
    }
    assert sorted(stages.values()) == ["champion", "retired", "retired", "retired", "retired", "shadow"]


async def test_the_audit_chain_holds_every_change_on_the_topic_as_in_the_table(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    await asyncio.gather(*(registry.register(f"cause-{number}") for number in range(5)))
    published = [from_json(r.value, records.AuditRecord()) for r in await registry.topic("registry.audit.v1")]
    assert [record.sequence for record in published] == list(range(1, len(published) + 1))
    assert first_break(published) is None
    kept = list((await registry.rpc.ListAudit(messages.ListAuditRequest(limit=1000))).records)
    assert kept == published
    one = (await registry.rpc.ListAudit(messages.ListAuditRequest(object="version/tips/1"))).records
    assert one[0].action == "champion"


async def test_events_of_one_object_reach_the_topic_in_the_order_of_its_revisions(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    await registry.register("cause-0")
    changes = [messages.SetBaselinesRequest(pipeline="tips", versions=[1] * (n % 2)) for n in range(1, 30)]
    await asyncio.gather(*(registry.rpc.SetBaselines(change, metadata=registry.actor) for change in changes))
    published = deployments(await registry.topic("registry.deployments.v1"))
    assert [record.revision for record in published] == list(range(1, len(published) + 1))


async def test_what_was_committed_before_a_crash_is_published_after_the_restart(
    settings: Any, client: Any, rides: Any
) -> None:
    async with open_service(settings, Health()):
        await client.apply(rides())
        await client.wait()
    # A process that dies between commit and relay leaves a row that nobody sent.
    connection = await asyncpg.connect(settings.postgres.url())
    await connection.execute("UPDATE registry.outbox SET sent_at = NULL WHERE topic = 'registry.pipelines.v1'")
    await connection.close()
    async with open_service(settings, Health()):
        found = await client.topic("registry.pipelines.v1")
        assert [record.key for record in found[3:]] == [b"stream/rides", b"view/busy", b"pipeline/tips"]
        assert found[3].value == found[0].value
        assert {change.change for change in await client.apply(rides())} == {"unchanged"}


async def test_killed_between_any_two_steps_it_loses_no_event_and_keeps_their_order(
    settings: Any, client: Any, rides: Any
) -> None:
    environment = os.environ | {
        "TIDEMILL_REGISTRY_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "TIDEMILL_REGISTRY_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "TIDEMILL_REGISTRY_POSTGRES__DSN": settings.postgres.url(),
        "TIDEMILL_REGISTRY_GRPC__LISTEN": settings.grpc.listen,
    }

    async def start() -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", "tidemill_registry")
        process = await asyncio.create_subprocess_exec(*dying_with_us(command), env=environment)
        async with asyncio.timeout(60):
            await client.rpc.ListDefinitions(messages.ListDefinitionsRequest(), wait_for_ready=True)
        return process

    async def register_until_killed(number: int) -> None:
        with suppress(grpc.aio.AioRpcError):
            await client.register(f"cause-{number}")

    process = await start()
    await client.apply(rides())
    work = [asyncio.create_task(register_until_killed(number)) for number in range(60)]
    await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    process.kill()
    await asyncio.gather(*work, process.wait())

    process = await start()
    try:
        await client.register("cause-0")
        asked = messages.ListDeploymentHistoryRequest(pipeline="tips")
        history = (await client.rpc.ListDeploymentHistory(asked)).deployments
        published = deployments(await client.topic("registry.deployments.v1"))
        # At least once: a repeated record is the same record, and what comes first came first.
        assert list({record.revision: record for record in published}.values()) == list(history)
        trail = [from_json(r.value, records.AuditRecord()) for r in await client.topic("registry.audit.v1")]
        assert first_break({record.sequence: record for record in trail}.values()) is None
        versions = (await client.rpc.ListVersions(messages.ListVersionsRequest(pipeline="tips"))).versions
        assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    finally:
        process.terminate()
        assert await process.wait() == 0
