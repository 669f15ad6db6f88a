"""That what was retired stays so, whatever the registry meets when it starts again, and comes back only by an apply."""

from typing import Any

import asyncpg
import grpc
import pytest
from aiokafka import AIOKafkaProducer
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.progress.v1 import progress_pb2
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as messages
from tidemill_registry.app import open_service
from tidemill_runtime.health import Health

pytestmark = pytest.mark.servers

HOUR_US = 3_600_000_000
METRICS = "monitoring.metrics.v1"
TOPICS = ("registry.pipelines.v1", "registry.models.v1", "registry.deployments.v1")


async def said_meanwhile(settings: Any, rollout: records.DeploymentRecord) -> list[progress_pb2.TopicPartitionOffset]:
    """Publish evidence that would end a rollout, as monitoring does; return how far it must be read."""
    record = monitoring.MetricRecord(pipeline="tips", kind="rollout", window_end=to_timestamp(9 * HOUR_US))
    record.paired.CopyFrom(
        monitoring.PairedEvidence(
            deployment_revision=rollout.revision,
            champion_version=rollout.champion.version,
            challenger_version=rollout.challenger.version,
            step=rollout.step,
            pairs=300,
            total_pairs=300,
            hours=12,
            difference=-0.01,
            standard_error=0.001,
        )
    )
    async with AIOKafkaProducer(**settings.kafka.client_kwargs()) as producer:
        placed = await producer.send_and_wait(settings.kafka.physical(METRICS), to_json(record), key=b"tips")
    return [progress_pb2.TopicPartitionOffset(topic=METRICS, partition=0, next_offset=placed.offset + 1)]


async def last_by_key(client: Any) -> dict[tuple[str, bytes], bytes]:
    """Return what each compacted topic says of each object in the end."""
    return {(topic, record.key): record.value for topic in TOPICS for record in await client.topic(topic)}


async def test_nothing_that_was_retired_comes_back_when_the_registry_starts_again(
    settings: Any, client: Any, rides: Any
) -> None:
    ends = {"retire_pipelines": ["tips"], "retire_views": ["busy"], "retire_streams": ["rides"]}
    deployment = messages.GetDeploymentRequest(pipeline="tips")
    async with open_service(settings, Health()):
        await client.apply(rides())
        await client.register("cause-1")
        await client.register("cause-2", at_us=2 * HOUR_US)
        run = (await client.start_run("cause-3")).run.run_id
        rollout = (await client.rpc.GetDeployment(deployment)).deployment
        assert (rollout.champion.version, rollout.challenger.version) == (1, 2)
        await client.apply(definition.Definition(), **ends, allow_breaking=True, reason="winter")
        ended = await last_by_key(client)
    meanwhile = await said_meanwhile(settings, rollout)
    # It is told again, as after a crash between commit and relay.
    connection = await asyncpg.connect(settings.postgres.url())
    await connection.execute("UPDATE registry.outbox SET sent_at = NULL")
    await connection.close()

    async with open_service(settings, Health()):
        await client.wait(meanwhile)
        assert await last_by_key(client) == ended
        catalogue = Catalogue()
        for record in await client.topic("registry.pipelines.v1"):
            catalogue.fold(record.value)
        assert (catalogue.streams, catalogue.views, catalogue.pipelines) == ({}, {}, {})
        assert not (await client.rpc.ListDefinitions(messages.ListDefinitionsRequest())).records
        assert not (await client.rpc.GetDeployment(deployment)).deployment.HasField("champion")
        promote = messages.PromoteRequest(pipeline="tips", version=2, reason="spring?")
        with pytest.raises(grpc.aio.AioRpcError, match="was retired"):
            await client.rpc.Promote(promote, metadata=client.actor)
        late = messages.RegisterVersionRequest(
            pipeline="tips",
            run_id=run,
            bundle="tips/3",
            manifest_hash="sha256:" + 64 * "0",
            event_time=to_timestamp(9 * HOUR_US),
        )
        with pytest.raises(grpc.aio.AioRpcError, match="was retired"):
            await client.rpc.RegisterVersion(late, metadata=client.actor)
        assert {one.change for one in await client.apply(definition.Definition(), **ends)} == {"unchanged"}
        assert await last_by_key(client) == ended

    async with open_service(settings, Health()):
        back = await client.apply(rides())
        assert [(one.kind, one.change, one.revision) for one in back] == [
            (kind, "created", 3) for kind in ("stream", "view", "pipeline")
        ]
        await client.register("cause-4", at_us=10 * HOUR_US)
        champion = (await client.rpc.GetDeployment(deployment)).deployment
        assert (champion.champion.version, champion.HasField("challenger")) == (3, False)
        told = from_json((await client.topic("registry.deployments.v1"))[-1].value, records.DeploymentRecord())
        assert told == champion
