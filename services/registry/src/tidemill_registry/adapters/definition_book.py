"""Streams, views and pipelines in PostgreSQL."""

from collections.abc import Awaitable, Callable, Sequence

from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Poison

from tidemill_registry.adapters.ledger import Ledger, Ledgers
from tidemill_registry.adapters.postgres import LOCK_DEFINITIONS, Connection
from tidemill_registry.audit import Act
from tidemill_registry.compatibility import Break
from tidemill_registry.definitions import Change, InvalidDefinitionError, Key, Plan, plan_changes

TOPIC = "registry.pipelines.v1"

# Creates the topics of the streams; returns once they exist.
CreateTopics = Callable[[Sequence[definition.Stream]], Awaitable[None]]


class DefinitionBook:
    """Applies definitions and answers what is registered."""

    def __init__(self, ledgers: Ledgers, create_topics: CreateTopics) -> None:
        self._ledgers = ledgers
        self._create_topics = create_topics

    async def apply(self, applied: definition.Definition, *, actor: str, dry_run: bool) -> Plan:
        """Register what differs, all or nothing; the topics of its streams exist before anybody hears of them.

        Raises `Poison` where the definition is not sound, or breaks what is there; a dry run returns the breaks.
        """
        if dry_run:
            async with self._ledgers.reading() as connection:
                return _planned(applied, await _registered(connection))
        async with self._ledgers.writing() as ledger:
            # One apply at a time: whether it conflicts depends on everything that is registered.
            await ledger.connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_DEFINITIONS)
            registered = await _registered(ledger.connection)
            plan = _planned(applied, registered)
            if plan.breaks:
                raise _refused(plan.breaks)
            differing = [change for change in plan.changes if change.change != "unchanged"]
            await self._create_topics([change.object.closure.streams[0] for change in differing if _is_stream(change)])
            for change in differing:
                await _store(ledger, change, registered.get(change.object.key), actor)
        return plan

    async def get(self, kind: str, name: str) -> definition.DefinitionRecord | None:
        """Return one object, or None."""
        async with self._ledgers.reading() as connection:
            raw = await connection.fetchval("SELECT record FROM definitions WHERE kind = $1 AND name = $2", kind, name)
        return None if raw is None else _parsed(raw)

    async def list(self, kind: str = "") -> list[definition.DefinitionRecord]:
        """Return all objects, or those of one kind, by kind and name."""
        async with self._ledgers.reading() as connection:
            rows = await connection.fetch(
                "SELECT record FROM definitions WHERE $1 = '' OR kind = $1 ORDER BY kind, name", kind
            )
        return [_parsed(row["record"]) for row in rows]


def _planned(
    applied: definition.Definition, registered: dict[Key, definition.DefinitionRecord]
) -> Plan:
    try:
        return plan_changes(applied, registered)
    except InvalidDefinitionError as error:
        raise Poison(Reason.UNDECODABLE, str(error), field="definition", fix="run `tidemill check`") from error


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


async def _store(
    ledger: Ledger, change: Change, before: definition.DefinitionRecord | None, actor: str
) -> None:
    item = change.object
    record = definition.DefinitionRecord(
        kind=item.kind,
        name=item.name,
        revision=change.revision,
        hash=item.hash,
        definition=item.closure,
        applied_at=to_timestamp(ledger.now_us),
        actor=actor,
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
    ledger.publish(TOPIC, f"{item.kind}/{item.name}", record)
    ledger.act(
        Act(
            object=f"{item.kind}/{item.name}",
            action=change.change,
            actor=actor,
            reason="",
            before=None if before is None else _outline(before),
            after=_outline(record),
        )
    )


def _outline(record: definition.DefinitionRecord) -> definition.DefinitionRecord:
    # The hash stands for the content, which the topic and the table hold.
    return definition.DefinitionRecord(
        kind=record.kind, name=record.name, revision=record.revision, hash=record.hash
    )


def _parsed(raw: str) -> definition.DefinitionRecord:
    return from_json(raw.encode(), definition.DefinitionRecord())


def _is_stream(change: Change) -> bool:
    return change.object.kind == "stream"
