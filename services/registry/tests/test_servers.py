"""Laws of the registry on the real PostgreSQL and Kafka."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import asyncpg
import grpc
import httpx
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from google.rpc import error_details_pb2, status_pb2
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.progress.v1 import progress_pb2
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as messages
from tidemill_registry.app import open_service
from tidemill_registry.audit import first_break
from tidemill_runtime.health import Health
from tidemill_testkit.orphans import dying_with_us

pytestmark = pytest.mark.servers

HOUR_US = 3_600_000_000
METRICS = "monitoring.metrics.v1"


def deployments(found: list[Any]) -> list[records.DeploymentRecord]:
    return [from_json(record.value, records.DeploymentRecord()) for record in found]


def refusal(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, str]:
    """Return the code, the named reason and the field at fault."""
    status, info, bad = status_pb2.Status(), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    metadata = dict(error.trailing_metadata() or ())
    status.ParseFromString(metadata["grpc-status-details-bin"])
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return error.code(), info.reason.lower(), bad.field_violations[0].field if bad.field_violations else ""


class Monitor:
    """Publishes paired evidence as monitoring would."""

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def raw(self, value: bytes) -> list[progress_pb2.TopicPartitionOffset]:
        placed = await self._producer.send_and_wait(self._topic, value, key=b"tips")
        return [progress_pb2.TopicPartitionOffset(topic=METRICS, partition=0, next_offset=placed.offset + 1)]

    async def say(
        self, deployment: records.DeploymentRecord, *, at_us: int, pairs: int = 300, difference: float = -0.01
    ) -> list[progress_pb2.TopicPartitionOffset]:
        record = monitoring.MetricRecord(pipeline="tips", kind="rollout", window_end=to_timestamp(at_us))
        record.paired.CopyFrom(
            monitoring.PairedEvidence(
                deployment_revision=deployment.revision,
                champion_version=deployment.champion.version,
                challenger_version=deployment.challenger.version,
                step=deployment.step,
                pairs=pairs,
                total_pairs=pairs,
                hours=12,
                difference=difference,
                standard_error=0.001,
            )
        )
        return await self.raw(to_json(record))


@pytest_asyncio.fixture
async def monitor(registry: Any) -> AsyncIterator[Monitor]:
    kafka = registry.settings.kafka
    producer = AIOKafkaProducer(**kafka.client_kwargs())
    await producer.start()
    yield Monitor(producer, kafka.physical(METRICS))
    await producer.stop()


async def deployment_of(registry: Any) -> records.DeploymentRecord:
    answer = await registry.rpc.GetDeployment(messages.GetDeploymentRequest(pipeline="tips"))
    found: records.DeploymentRecord = answer.deployment
    return found


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
    assert refusal(caught.value) == (grpc.StatusCode.FAILED_PRECONDITION, "breaking_change", "views.busy")
    changed = await registry.apply(rides(window_ms=2000, pipelines=("tips", "fares")))
    assert [change.revision for change in changed] == [1, 2, 2, 2]


async def test_concurrent_applies_create_each_object_once(registry: Any, rides: Any) -> None:
    answers = await asyncio.gather(*(registry.apply(rides()) for _ in range(8)))
    created = [change for changes in answers for change in changes if change.change == "created"]
    assert len(created) == 3
    assert len(await registry.topic("registry.pipelines.v1")) == 3


async def test_a_mutating_call_without_an_actor_is_refused(registry: Any, rides: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.rpc.ApplyDefinition(messages.ApplyDefinitionRequest(definition=rides()))
    assert refusal(caught.value)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "missing_actor")


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
    assert refusal(caught.value)[1] == "conflict"


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
    assert refusal(caught.value)[1] == "conflict"


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


async def test_evidence_moves_a_rollout_and_its_replay_changes_nothing(
    registry: Any, rides: Any, monitor: Monitor
) -> None:
    await registry.apply(rides())
    await registry.register("cause-1")
    await registry.register("cause-2", at_us=HOUR_US)
    shadow = await deployment_of(registry)
    written = await registry.wait(await monitor.say(shadow, at_us=2 * HOUR_US))
    assert written["registry.deployments.v1"] == 3
    canary = await deployment_of(registry)
    assert (canary.step_kind, canary.share, canary.change) == ("canary", 0.5, "rollout")
    assert canary.step_began_at == to_timestamp(2 * HOUR_US)
    # The same evidence again, and evidence of the step before that comes late.
    await monitor.say(shadow, at_us=2 * HOUR_US)
    await registry.wait(await monitor.say(shadow, at_us=9 * HOUR_US, difference=0.9))
    assert await deployment_of(registry) == canary
    await registry.wait(await monitor.say(canary, at_us=3 * HOUR_US))
    champion = await deployment_of(registry)
    assert (champion.champion.version, champion.change, champion.cause_id) == (2, "promoted", "cause-2")
    history = await registry.rpc.ListDeploymentHistory(messages.ListDeploymentHistoryRequest(pipeline="tips"))
    assert list(history.deployments) == deployments(await registry.topic("registry.deployments.v1"))
    aliases = (await registry.rpc.ListAliasHistory(messages.ListAliasHistoryRequest(pipeline="tips"))).changes
    named = [(change.alias, change.version) for change in aliases]
    assert named == [("champion", 1), ("challenger", 2), ("champion", 2), ("challenger", 0)]


async def test_a_worse_challenger_goes_back_before_its_step_ends(registry: Any, rides: Any, monitor: Monitor) -> None:
    await registry.apply(rides())
    await registry.register("cause-1")
    await registry.register("cause-2", at_us=HOUR_US)
    under_way = await deployment_of(registry)
    await registry.wait(await monitor.say(under_way, at_us=HOUR_US + 1, pairs=50, difference=0.3))
    back = await deployment_of(registry)
    assert (back.change, back.champion.version, back.HasField("challenger")) == ("rolled_back", 1, False)
    assert back.summary.startswith("tips v2 was rolled back, v1 goes on answering: log loss 0.3000 higher")


async def test_an_unreadable_metric_goes_to_the_dead_letters_and_the_next_one_counts(
    registry: Any, rides: Any, monitor: Monitor
) -> None:
    await registry.apply(rides())
    await registry.register("cause-1")
    await registry.register("cause-2", at_us=HOUR_US)
    await monitor.raw(b"\xff not json")
    await registry.wait(await monitor.say(await deployment_of(registry), at_us=2 * HOUR_US))
    assert (await deployment_of(registry)).step == 1
    letters = await registry.topic("ingestion.dead-letters.v1")
    assert [letter.value for letter in letters] == [b"\xff not json"]
    assert dict(letters[0].headers)["x-dlq-reason"] == b"undecodable"


async def test_operators_promote_roll_back_and_compare(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    await registry.register("cause-1")
    await registry.register("cause-2", at_us=5 * HOUR_US)
    rpc, actor = registry.rpc, registry.actor
    promoted = (
        await rpc.Promote(messages.PromoteRequest(pipeline="tips", version=2, reason="hurry"), metadata=actor)
    ).deployment
    assert (promoted.champion.version, promoted.change, promoted.actor) == (2, "manual", "ann@example.org")
    # Without an event time of its own the change carries the newest one known.
    assert promoted.decided_at == to_timestamp(5 * HOUR_US)
    baselines = (
        await rpc.SetBaselines(messages.SetBaselinesRequest(pipeline="tips", versions=[1]), metadata=actor)
    ).deployment
    assert [one.bundle for one in baselines.baselines] == ["tips/cause-1"]
    back = (
        await rpc.Rollback(messages.RollbackRequest(pipeline="tips", reason="too hasty"), metadata=actor)
    ).deployment
    assert (back.champion.version, back.change) == (1, "rolled_back")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.Promote(messages.PromoteRequest(pipeline="tips", version=9, reason="why not"), metadata=actor)
    assert refusal(caught.value) == (grpc.StatusCode.NOT_FOUND, "unknown_version", "version")


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
        process = await asyncio.create_subprocess_exec(*command, env=environment, preexec_fn=dying_with_us())
        async with asyncio.timeout(30):
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


async def test_http_answers_what_people_look_up_and_problems_carry_the_reason(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    await registry.register("cause-1")
    async with httpx.AsyncClient(base_url=registry.http) as http:
        listed = (await http.get("/v1/pipelines")).json()["items"]
        assert [(item["name"], item["revision"]) for item in listed] == [("tips", 1)]
        assert (await http.get("/v1/pipelines/tips/deployment")).json()["champion"]["version"] == 1
        for part in ("versions", "history", "aliases", "runs"):
            assert len((await http.get(f"/v1/pipelines/tips/{part}")).json()["items"]) == 1, part
        assert len((await http.get("/v1/audit", params={"object": "deployment/tips"})).json()["items"]) == 1
        missing = await http.get("/v1/pipelines/nobody/versions")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
        assert missing.json()["reason"] == "unknown_pipeline"
        assert (await http.get("/v1/audit", params={"limit": "many"})).json()["reason"] == "wrong_type"
        assert (await http.get("/ready")).status_code in {200, 503}
        assert "tidemill_outbox_relayed_total" in (await http.get("/metrics")).text


@pytest.mark.parametrize(
    ("method", "request_", "expected"),
    [
        ("GetDefinition", messages.GetDefinitionRequest(kind="table", name="x"), ("out_of_range", "kind")),
        ("GetDefinition", messages.GetDefinitionRequest(kind="view", name="x"), ("unknown_view", "name")),
        ("GetDeployment", messages.GetDeploymentRequest(pipeline="x"), ("no_model", "pipeline")),
        ("GetVersion", messages.GetVersionRequest(pipeline="x", version=1), ("unknown_version", "version")),
        ("StartRun", messages.StartRunRequest(pipeline="x"), ("missing_field", "cause_key")),
        (
            "StartRun",
            messages.StartRunRequest(pipeline="x", cause_key="c", cause_kind="drift"),
            ("unknown_pipeline", "pipeline"),
        ),
        ("FinishRun", messages.FinishRunRequest(run_id="x", status="failed"), ("unknown_entity", "run_id")),
        ("FinishRun", messages.FinishRunRequest(run_id="x", status="odd"), ("out_of_range", "status")),
        ("Rollback", messages.RollbackRequest(pipeline="x", reason="a\0b"), ("bad_utf8", "reason")),
        ("Rollback", messages.RollbackRequest(pipeline="x", reason="a" * 3000), ("oversized", "reason")),
        ("ListAudit", messages.ListAuditRequest(limit=-1), ("out_of_range", "limit")),
        ("ApplyDefinition", messages.ApplyDefinitionRequest(), ("undecodable", "definition")),
    ],
)
async def test_bad_input_has_a_named_reason(
    registry: Any, method: str, request_: Any, expected: tuple[str, str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(registry.rpc, method)(request_, metadata=registry.actor)
    assert refusal(caught.value)[1:] == expected


async def test_numbers_that_json_cannot_carry_are_refused(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    run = (await registry.start_run("cause-1")).run
    request = messages.FinishRunRequest(run_id=run.run_id, status="failed")
    request.details.update({"loss": float("inf")})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.rpc.FinishRun(request, metadata=registry.actor)
    assert refusal(caught.value)[1:] == ("non_finite", "details")
    assert json.loads(to_json(run))["status"] == "started"
