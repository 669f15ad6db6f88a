"""Laws of rollouts on the real servers: what evidence, operators and unreadable records make of them."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.progress.v1 import progress_pb2
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as messages
from tidemill_contracts.topics import fixed_topics
from tidemill_registry.app import open_service
from tidemill_runtime.health import Health

pytestmark = pytest.mark.servers

HOUR_US = 3_600_000_000
METRICS = "monitoring.metrics.v1"


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
    published = await registry.topic("registry.deployments.v1")
    assert list(history.deployments) == [from_json(one.value, records.DeploymentRecord()) for one in published]
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


async def test_metrics_that_end_before_what_was_read_of_them_are_read_from_their_beginning(
    settings: Any, client: Any, rides: Any
) -> None:
    kafka = settings.kafka
    await create_topics(kafka.client_kwargs(), fixed_topics(), kafka.topic_prefix)
    there = TopicPartition(kafka.physical(METRICS), 0)
    async with AIOKafkaConsumer(**kafka.client_kwargs(), **kafka.group("registry.rollout")) as consumer:
        consumer.assign([there])
        await consumer.commit({there: 50})
    async with (
        AIOKafkaProducer(**kafka.client_kwargs()) as producer,
        open_service(settings, Health()),
    ):
        await client.apply(rides())
        await client.register("cause-1")
        await client.register("cause-2", at_us=HOUR_US)
        monitor = Monitor(producer, there.topic)
        await client.wait(await monitor.say(await deployment_of(client), at_us=2 * HOUR_US))
        assert (await deployment_of(client)).step == 1


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
    assert registry.refusal(caught.value) == (grpc.StatusCode.NOT_FOUND, "unknown_version", "version")
