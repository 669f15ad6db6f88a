"""Streams, views and pipelines in PostgreSQL."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace

from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as messages
from tidemill_runtime.errors import Poison

from tidemill_registry import sentences
from tidemill_registry.adapters import model_rows as rows
from tidemill_registry.adapters.ledger import Ledger, Ledgers
from tidemill_registry.adapters.postgres import Connection, lock_definitions
from tidemill_registry.adapters.run_book import open_runs
from tidemill_registry.audit import Act
from tidemill_registry.compatibility import Break
from tidemill_registry.definitions import (
    Change,
    Ending,
    InvalidDefinitionError,
    Key,
    Plan,
    UnknownObjectError,
    offered_by,
    plan_changes,
)
from tidemill_registry.lifecycle import Order, end, outdated

TOPIC = "registry.pipelines.v1"
_UNKNOWN = {
    "stream": Reason.UNKNOWN_STREAM,
    "view": Reason.UNKNOWN_VIEW,
    "pipeline": Reason.UNKNOWN_PIPELINE,
}

# Creates the topics of the streams, with all their partitions; returns once they exist.
CreateTopics = Callable[[Sequence[definition.Stream]], Awaitable[None]]


class DefinitionBook:
    """Applies definitions and answers what is registered."""

    def __init__(self, ledgers: Ledgers, create_topics: CreateTopics) -> None:
        self._ledgers = ledgers
        self._create_topics = create_topics

    async def apply(self, request: messages.ApplyDefinitionRequest, *, actor: str) -> Plan:
        """Register what differs, all or nothing; the topics of its streams exist before anybody hears of them.

        Raises `Poison` where the definition is not sound, or breaks what is there and is not allowed to; a dry run
        returns the breaks.
        """
        if request.dry_run:
            async with self._ledgers.reading() as connection:
                plan = await _planned(request, await _registered(connection), connection)
                return replace(plan, outdated=await _outdated(connection, plan))
        async with self._ledgers.writing() as ledger:
            await lock_definitions(ledger.connection)
            registered = await _registered(ledger.connection)
            plan = await _planned(request, registered, ledger.connection)
            refused = [one for one in plan.breaks if one.final or not request.allow_breaking]
            if refused:
                raise _refused(refused)
            differing = [change for change in plan.changes if change.change != "unchanged"]
            streams = [change.object.closure.streams[0] for change in differing if _has_topics(change)]
            await self._create_topics(streams)
            for change in differing:
                act = Act(_place(change), change.change, actor, _why(change, plan.breaks, request.reason))
                await _store(ledger, change, registered.get(change.object.key), act)
                if (change.object.kind, change.change) == ("pipeline", "retired"):
                    await _end_versions(ledger, change.object.name, act)
            return replace(plan, outdated=await _outdated(ledger.connection, plan))

    async def get(self, kind: str, name: str) -> definition.DefinitionRecord | None:
        """Return one object, or None."""
        async with self._ledgers.reading() as connection:
            raw = await connection.fetchval("SELECT record FROM definitions WHERE kind = $1 AND name = $2", kind, name)
        record = None if raw is None else _parsed(raw)
        return None if record is None or record.retired else record

    async def list(self, kind: str = "") -> list[definition.DefinitionRecord]:
        """Return all objects that there are, or those of one kind, by kind and name."""
        async with self._ledgers.reading() as connection:
            rows = await connection.fetch(
                "SELECT record FROM definitions WHERE $1 = '' OR kind = $1 ORDER BY kind, name", kind
            )
        return [record for row in rows if not (record := _parsed(row["record"])).retired]


async def _planned(
    request: messages.ApplyDefinitionRequest,
    registered: dict[Key, definition.DefinitionRecord],
    connection: Connection,
) -> Plan:
    ending = Ending(request.retire_views, request.retire_pipelines, request.retire_streams)
    if ending.objects():
        readers = await _readers(connection, leaving=ending.pipelines) if ending.views else {}
        ending = replace(ending, readers=readers, users=await _users(connection, ending.pipelines))
    try:
        return plan_changes(request.definition, registered, ending, allow_breaking=request.allow_breaking)
    except InvalidDefinitionError as error:
        raise Poison(Reason.UNDECODABLE, str(error), field="definition", fix="run `tidemill check`") from error
    except UnknownObjectError as error:
        raise Poison(_UNKNOWN[error.kind], str(error), field=f"retire_{error.kind}s") from error


async def _outdated(connection: Connection, plan: Plan) -> list[str]:
    """Return what is to be said of champions that the pipelines cannot compute as they are applied."""
    found = []
    for change in plan.changes:
        # One that ends has nothing to offer.
        if change.object.kind != "pipeline" or not change.object.closure.pipelines:
            continue
        state = await rows.state_of(connection, change.object.name)
        champion = state.versions.get(state.champion)
        why = None if champion is None else outdated(champion, offered_by(change.object.closure))
        if champion is not None and why is not None:
            found.append(sentences.left_behind(champion, why))
    return found


async def _readers(connection: Connection, *, leaving: Collection[str]) -> dict[str, list[str]]:
    """Return, by view, the model versions in use that read it, but for those of some pipelines."""
    found: dict[str, list[str]] = {}
    for version in await rows.versions_in_use(connection):
        for view in version.views if version.pipeline not in leaving else ():
            found.setdefault(view, []).append(_called(version))
    return found


async def _users(connection: Connection, pipelines: Iterable[str]) -> dict[str, list[str]]:
    """Return, by pipeline, its versions in use and its runs under way."""
    versions = await rows.versions_in_use(connection)
    return {
        name: [
            *(_called(version) for version in versions if version.pipeline == name),
            *(f"run {run.run_id} ({run.status})" for run in await open_runs(connection, name)),
        ]
        for name in pipelines
    }


def _called(version: records.VersionRecord) -> str:
    return f"{version.pipeline} v{version.version} ({version.stage})"


async def _end_versions(ledger: Ledger, pipeline: str, act: Act) -> None:
    """Take every version of a retired pipeline out of use; nobody is told to answer with any of them."""
    await rows.lock_deployment(ledger.connection, pipeline)
    state = await rows.state_of(ledger.connection, pipeline, await rows.versions(ledger.connection, pipeline))
    at_us = await rows.event_time(ledger.connection, pipeline) or ledger.now_us
    order = Order(act.actor, at_us, act.reason)
    await rows.store(ledger, state, end(state, order), order)


def _place(change: Change) -> str:
    return f"{change.object.kind}/{change.object.name}"


def _why(change: Change, breaks: Sequence[Break], reason: str) -> str:
    """Return why an object was changed, with what that was allowed to break."""
    item = change.object
    own = [one for one in breaks if f"{one.subject}.".startswith(f"{item.kind}s.{item.name}.")]
    return "; ".join([*filter(None, [reason]), *(one.sentence() for one in own)])


def _refused(breaks: Sequence[Break]) -> Poison:
    """Return the answer to a definition that breaks what is there; every break is a violation of its own."""
    first, others = breaks[0], len(breaks) - 1
    more = f" (and {others} more)" if others else ""
    return Poison(
        Reason.BREAKING_CHANGE,
        f"{first.message}{more}; breaks {', '.join(first.breaks)}",
        field=first.subject,
        fix=first.fix,
        violations=[(one.subject, one.sentence()) for one in breaks],
    )


async def _registered(connection: Connection) -> dict[Key, definition.DefinitionRecord]:
    records = [_parsed(row["record"]) for row in await connection.fetch("SELECT record FROM definitions")]
    return {(record.kind, record.name): record for record in records}


async def _store(ledger: Ledger, change: Change, before: definition.DefinitionRecord | None, act: Act) -> None:
    item = change.object
    record = definition.DefinitionRecord(
        kind=item.kind,
        name=item.name,
        revision=change.revision,
        hash=item.hash,
        definition=item.closure,
        applied_at=to_timestamp(ledger.now_us),
        actor=act.actor,
        retired=change.change == "retired",
        removed_fields=change.removed,
        retired_stream=change.was,
    )
    await ledger.connection.execute(
        """INSERT INTO definitions (kind, name, revision, hash, record) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT (kind, name) DO UPDATE SET revision = $3, hash = $4, record = $5""",
        item.kind,
        item.name,
        change.revision,
        item.hash,
        to_json(record).decode(),
    )
    ledger.publish(TOPIC, _place(change), record)
    ledger.act(replace(act, before=None if before is None else _outline(before), after=_outline(record)))


def _outline(record: definition.DefinitionRecord) -> definition.DefinitionRecord:
    # The hash stands for the content, which the topic and the table hold.
    return definition.DefinitionRecord(
        kind=record.kind, name=record.name, revision=record.revision, hash=record.hash, retired=record.retired
    )


def _parsed(raw: str) -> definition.DefinitionRecord:
    return from_json(raw.encode(), definition.DefinitionRecord())


def _has_topics(change: Change) -> bool:
    return change.object.kind == "stream" and change.change != "retired"
