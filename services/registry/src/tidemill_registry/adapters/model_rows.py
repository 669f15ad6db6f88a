"""Rows of versions, deployments and aliases."""

import json
from collections.abc import Iterable
from dataclasses import asdict

from google.protobuf.message import Message
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as messages

from tidemill_registry.adapters.ledger import Ledger
from tidemill_registry.adapters.postgres import Connection
from tidemill_registry.audit import Act
from tidemill_registry.lifecycle import CHAMPION, IN_USE, Change, Order, Rollout, State
from tidemill_registry.rollout import Plan, Progress, Step

MODELS = "registry.models.v1"
DEPLOYMENTS = "registry.deployments.v1"


async def lock_deployment(connection: Connection, pipeline: str) -> bool:
    """Lock the pipeline's row as every change does, and return whether anything is deployed."""
    await connection.execute("SELECT 1 FROM definitions WHERE kind = 'pipeline' AND name = $1 FOR UPDATE", pipeline)
    return bool(await connection.fetchval("SELECT true FROM deployments WHERE pipeline = $1", pipeline))


async def state_of(connection: Connection, pipeline: str, wanted: Iterable[int] = ()) -> State:
    """Return what is deployed, with the versions that it names and those wanted."""
    row = await connection.fetchrow("SELECT record, rollout FROM deployments WHERE pipeline = $1", pipeline)
    if row is None:
        return State(pipeline, await versions(connection, pipeline, wanted))
    deployment = from_json(row["record"].encode(), records.DeploymentRecord())
    previous = await _previous_champion(connection, pipeline, deployment.champion.version)
    compared = (one.version for one in deployment.baselines)
    named = {deployment.champion.version, deployment.challenger.version, previous, *compared, *wanted}
    return State(
        pipeline=pipeline,
        versions=await versions(connection, pipeline, named - {0}),
        deployment=deployment,
        rollout=None if row["rollout"] is None else _rollout(row["rollout"]),
        previous_champion=previous,
    )


async def _previous_champion(connection: Connection, pipeline: str, champion: int) -> int:
    previous: int | None = await connection.fetchval(
        """SELECT version FROM alias_history JOIN versions USING (pipeline, version)
           WHERE pipeline = $1 AND alias = $2 AND version <> $3 AND stage <> 'rolled_back' ORDER BY id DESC LIMIT 1""",
        pipeline,
        CHAMPION,
        champion,
    )
    return previous or 0


async def versions(
    connection: Connection, pipeline: str, wanted: Iterable[int] | None = None
) -> dict[int, records.VersionRecord]:
    """Return versions by number, ascending; all of them where none is named."""
    found = await connection.fetch(
        """SELECT version, record FROM versions
           WHERE pipeline = $1 AND ($2::integer[] IS NULL OR version = ANY($2)) ORDER BY version""",
        pipeline,
        None if wanted is None else list(wanted),
    )
    return {row["version"]: _version(row["record"]) for row in found}


async def versions_in_use(connection: Connection) -> list[records.VersionRecord]:
    """Return the versions of all pipelines that answer, may answer next, or are scored beside those that do."""
    found = await connection.fetch("SELECT record FROM versions WHERE stage = ANY($1)", list(IN_USE))
    known = {(one.pipeline, one.version): one for row in found for one in (_version(row["record"]),)}
    for row in await connection.fetch("SELECT record FROM deployments"):
        deployment = from_json(row["record"].encode(), records.DeploymentRecord())
        compared = {one.version for one in deployment.baselines}
        for number, one in (await versions(connection, deployment.pipeline, compared)).items():
            known[deployment.pipeline, number] = one
    return list(known.values())


async def version_of_run(connection: Connection, run_id: str) -> records.VersionRecord | None:
    """Return the version that a run registered, or None."""
    raw = await connection.fetchval("SELECT record FROM versions WHERE run_id = $1", run_id)
    return None if raw is None else _version(raw)


async def next_version(connection: Connection, pipeline: str) -> int:
    """Return the next number; the pipeline's lock makes it nobody else's."""
    newest: int = await connection.fetchval(
        "SELECT coalesce(max(version), 0) FROM versions WHERE pipeline = $1", pipeline
    )
    return newest + 1


async def event_time(connection: Connection, pipeline: str) -> int:
    """Return the newest event time at which the deployment was decided or evidence weighed; 0 before the first."""
    at_us: int | None = await connection.fetchval("SELECT event_time_us FROM deployments WHERE pipeline = $1", pipeline)
    return at_us or 0


async def note_event_time(connection: Connection, pipeline: str, at_us: int) -> None:
    """Remember the event time of evidence."""
    await connection.execute(
        "UPDATE deployments SET event_time_us = greatest(event_time_us, $2) WHERE pipeline = $1", pipeline, at_us
    )


async def deployment_history(connection: Connection, pipeline: str) -> list[records.DeploymentRecord]:
    """Return every revision, oldest first."""
    found = await connection.fetch(
        "SELECT record FROM deployment_history WHERE pipeline = $1 ORDER BY revision", pipeline
    )
    return [from_json(row["record"].encode(), records.DeploymentRecord()) for row in found]


async def alias_history(connection: Connection, pipeline: str) -> list[messages.AliasChange]:
    """Return every change, oldest first."""
    found = await connection.fetch("SELECT * FROM alias_history WHERE pipeline = $1 ORDER BY id", pipeline)
    return [
        messages.AliasChange(
            alias=row["alias"],
            version=row["version"],
            at=to_timestamp(row["at_us"]),
            actor=row["actor"],
            reason=row["reason"],
        )
        for row in found
    ]


async def store(ledger: Ledger, before: State, change: Change, order: Order) -> None:
    """Write a change with its events and its audit trail."""
    for version in change.versions:
        await _store_version(ledger, before, version, order)
    if change.deployment is not None and change.deployment != before.deployment:
        await _store_deployment(ledger, before, change, order)
    for alias, number in change.aliases:
        await ledger.connection.execute(
            """INSERT INTO alias_history (pipeline, alias, version, at_us, actor, reason)
               VALUES ($1, $2, $3, $4, $5, $6)""",
            before.pipeline,
            alias,
            number,
            order.at_us,
            order.actor,
            order.reason,
        )


async def _store_version(ledger: Ledger, before: State, version: records.VersionRecord, order: Order) -> None:
    version.emitted_at.CopyFrom(to_timestamp(ledger.now_us))
    await ledger.connection.execute(
        """INSERT INTO versions (pipeline, version, run_id, stage, record) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT (pipeline, version) DO UPDATE SET stage = $4, record = $5""",
        version.pipeline,
        version.version,
        version.run_id,
        version.stage,
        to_json(version).decode(),
    )
    place = f"{version.pipeline}/{version.version}"
    ledger.publish(MODELS, place, version)
    old = before.versions.get(version.version)
    ledger.act(_act(f"version/{place}", version.stage, order, old, version))


async def _store_deployment(ledger: Ledger, before: State, change: Change, order: Order) -> None:
    deployment = change.deployment
    assert deployment is not None
    deployment.emitted_at.CopyFrom(to_timestamp(ledger.now_us))
    record = to_json(deployment).decode()
    await ledger.connection.execute(
        """INSERT INTO deployments (pipeline, record, rollout, event_time_us) VALUES ($1, $2, $3, $4)
           ON CONFLICT (pipeline) DO UPDATE
           SET record = $2, rollout = $3, event_time_us = greatest(deployments.event_time_us, $4)""",
        before.pipeline,
        record,
        None if change.rollout is None else json.dumps(asdict(change.rollout)),
        order.at_us,
    )
    await ledger.connection.execute(
        "INSERT INTO deployment_history (pipeline, revision, record) VALUES ($1, $2, $3)",
        before.pipeline,
        deployment.revision,
        record,
    )
    ledger.publish(DEPLOYMENTS, before.pipeline, deployment)
    ledger.act(_act(f"deployment/{before.pipeline}", deployment.change, order, before.deployment, deployment))


def _act(
    place: str,
    action: str,
    order: Order,
    before: records.VersionRecord | records.DeploymentRecord | None,
    after: records.VersionRecord | records.DeploymentRecord,
) -> Act:
    return Act(place, action, order.actor, order.reason, _outline(before), _outline(after))


def _outline(record: records.VersionRecord | records.DeploymentRecord | None) -> Message | None:
    if not isinstance(record, records.VersionRecord):
        return record
    # Kilobytes that never change after registration: the manifest's hash stands for them.
    outline = records.VersionRecord()
    outline.CopyFrom(record)
    for name in ("reference", "features", "lineage"):
        outline.ClearField(name)
    return outline


def _version(raw: str) -> records.VersionRecord:
    return from_json(raw.encode(), records.VersionRecord())


def _rollout(raw: str) -> Rollout:
    fields = json.loads(raw)
    plan = Plan(tuple(Step(**step) for step in fields["plan"]["steps"]), fields["plan"]["limit"])
    return Rollout(plan, Progress(**fields["progress"]), fields["since_revision"])
