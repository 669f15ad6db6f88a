"""Versions, aliases and deployments in PostgreSQL: each change locks its pipeline, and is written with its events."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from tidemill_contracts.canonical import from_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import from_timestamp
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as messages
from tidemill_runtime.errors import Poison

from tidemill_registry.adapters import model_rows as rows
from tidemill_registry.adapters.ledger import Ledger, Ledgers
from tidemill_registry.adapters.postgres import hold_definitions
from tidemill_registry.adapters.run_book import locked_run, require_pipeline, store_run
from tidemill_registry.definitions import offered_by
from tidemill_registry.evidence import Paired, weigh
from tidemill_registry.lifecycle import (
    Change,
    NotAllowedError,
    Order,
    State,
    admit,
    promote_by_hand,
    roll_back_by_hand,
    set_baselines,
)
from tidemill_registry.rollout import plan_of


class ModelBook:
    """Registers versions, moves rollouts, and answers what is deployed."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers

    async def register(self, request: messages.RegisterVersionRequest, *, actor: str) -> records.VersionRecord:
        """Take in the version of a run: refuse it, crown it, or begin its rollout; once per run."""
        async with self._ledgers.writing() as ledger:
            await hold_definitions(ledger.connection)
            closure = _closure(await require_pipeline(ledger, request.pipeline))
            run = await locked_run(ledger, request.run_id)
            earlier = await rows.version_of_run(ledger.connection, run.run_id)
            if earlier is not None:
                return earlier
            if run.pipeline != request.pipeline or run.status != "started":
                raise Poison(
                    Reason.CONFLICT,
                    f"run {run.run_id} of {run.pipeline!r} has {run.status}: it registers no version of "
                    f"{request.pipeline!r}",
                    field="run_id",
                )
            state = replace(await rows.state_of(ledger.connection, request.pipeline), offered=offered_by(closure))
            candidate = _candidate(request, await rows.next_version(ledger.connection, request.pipeline))
            order = Order(actor, from_timestamp(request.event_time), f"run {run.run_id}")
            change = admit(state, candidate, order, plan_of(closure.pipelines[0]), request.cause_id)
            await rows.store(ledger, state, change, order)
            run.version = candidate.version
            await store_run(ledger, run)
        return next(version for version in change.versions if version.version == candidate.version)

    async def weigh(self, paired: Paired) -> Change | None:
        """Let evidence move a rollout; evidence of another step, or seen before, changes nothing."""
        async with self._ledgers.writing() as ledger:
            if not await rows.lock_deployment(ledger.connection, paired.pipeline):
                return None
            state = await rows.state_of(ledger.connection, paired.pipeline)
            change = weigh(paired, state)
            await rows.note_event_time(ledger.connection, paired.pipeline, paired.at_us)
            if change is not None:
                assert change.deployment is not None
                order = Order(change.deployment.actor, paired.at_us, change.deployment.summary)
                await rows.store(ledger, state, change, order)
        return change

    async def promote(self, request: messages.PromoteRequest, *, actor: str) -> records.DeploymentRecord:
        """Make a version champion by an operator's word."""
        at_us = from_timestamp(request.event_time)
        return await self._by_hand(
            request.pipeline,
            Order(actor, at_us, request.reason),
            lambda state, order: promote_by_hand(state, request.version, order),
            [request.version],
        )

    async def rollback(self, request: messages.RollbackRequest, *, actor: str) -> records.DeploymentRecord:
        """Take the challenger back, or the champion where no rollout is under way."""
        return await self._by_hand(
            request.pipeline, Order(actor, from_timestamp(request.event_time), request.reason), roll_back_by_hand
        )

    async def set_baselines(self, request: messages.SetBaselinesRequest, *, actor: str) -> records.DeploymentRecord:
        """Replace the versions that score beside the others."""
        versions = sorted(set(request.versions))
        return await self._by_hand(
            request.pipeline,
            Order(actor, 0, request.reason),
            lambda state, order: set_baselines(state, versions, order),
            versions,
        )

    async def _by_hand(
        self,
        pipeline: str,
        order: Order,
        act: Callable[[State, Order], Change | None],
        versions: Iterable[int] = (),
    ) -> records.DeploymentRecord:
        async with self._ledgers.writing() as ledger:
            await hold_definitions(ledger.connection)
            offered = offered_by(_closure(await require_pipeline(ledger, pipeline)))
            state = replace(await rows.state_of(ledger.connection, pipeline, versions), offered=offered)
            _require_versions(state, versions)
            timed = Order(order.actor, order.at_us or await _event_time(ledger, state), order.reason)
            try:
                change = act(state, timed)
            except NotAllowedError as error:
                raise Poison(Reason.CONFLICT, str(error), field="pipeline") from error
            if change is None or change.deployment is None:
                assert state.deployment is not None
                return state.deployment
            await rows.store(ledger, state, change, timed)
        return change.deployment

    async def version(self, pipeline: str, version: int) -> records.VersionRecord | None:
        """Return one version, or None."""
        async with self._ledgers.reading() as connection:
            return (await rows.versions(connection, pipeline, [version])).get(version)

    async def versions(self, pipeline: str) -> list[records.VersionRecord]:
        """Return every version of a pipeline, oldest first."""
        async with self._ledgers.reading() as connection:
            return list((await rows.versions(connection, pipeline)).values())

    async def deployment(self, pipeline: str) -> records.DeploymentRecord | None:
        """Return what is deployed now, or None."""
        async with self._ledgers.reading() as connection:
            return (await rows.state_of(connection, pipeline)).deployment

    async def history(self, pipeline: str) -> list[records.DeploymentRecord]:
        """Return every revision of a deployment, oldest first."""
        async with self._ledgers.reading() as connection:
            return await rows.deployment_history(connection, pipeline)

    async def aliases(self, pipeline: str) -> list[messages.AliasChange]:
        """Return every change of the pipeline's aliases, oldest first."""
        async with self._ledgers.reading() as connection:
            return await rows.alias_history(connection, pipeline)


def _closure(raw: str) -> definition.Definition:
    return from_json(raw.encode(), definition.DefinitionRecord()).definition


def _candidate(request: messages.RegisterVersionRequest, number: int) -> records.VersionRecord:
    candidate = records.VersionRecord(
        pipeline=request.pipeline,
        version=number,
        bundle=request.bundle,
        manifest_hash=request.manifest_hash,
        run_id=request.run_id,
        metrics=dict(request.metrics),
        gates=request.gates,
        features=request.features,
        lineage=request.lineage,
        views=dict(request.views),
        sources=dict(request.sources),
        created_at=request.event_time,
    )
    if request.HasField("reference"):
        candidate.reference.CopyFrom(request.reference)
    return candidate


def _require_versions(state: State, wanted: Iterable[int]) -> None:
    missing = [version for version in wanted if version not in state.versions]
    if missing:
        raise Poison(
            Reason.UNKNOWN_VERSION,
            f"{state.pipeline} has no version {missing[0]}",
            field="version",
            fix=f"list them: tidemill models list {state.pipeline}",
        )


async def _event_time(ledger: Ledger, state: State) -> int:
    """Return the newest event time that the pipeline's deployment knows; the wall clock before there is one."""
    return await rows.event_time(ledger.connection, state.pipeline) or ledger.now_us
