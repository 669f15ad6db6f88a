"""The registry's schema in PostgreSQL: migrations and locks."""

import re
from importlib import resources
from typing import Any

import structlog
from tidemill_runtime.outbox import OutboxTable
from tidemill_runtime.postgres import translated

SCHEMA = "registry"
# Advisory locks of the registry: any constant works, as long as it is nobody else's.
_LOCK_MIGRATE = 0x7469646572656701
_LOCK_DEFINITIONS = 0x7469646572656702

_NUMBERED = re.compile(r"(\d{4})_\w+\.sql")

Connection = Any

log = structlog.get_logger(__name__)


async def lock_definitions(connection: Connection) -> None:
    """Let one apply work at a time: whether it conflicts depends on everything that is registered."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_DEFINITIONS)


async def hold_definitions(connection: Connection) -> None:
    """Let no apply retire a view that a version is about to come into use with. Taken before any row's lock."""
    await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", _LOCK_DEFINITIONS)


async def migrate(connection: Connection, outbox: OutboxTable) -> list[int]:
    """Apply the numbered SQL files that this database has not seen, each once, in order; returns their numbers.

    Several registries may start at once: an advisory lock lets one work, and the others find nothing left to do.
    """
    applied: list[int] = []
    async with translated(), connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_MIGRATE)
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (number integer PRIMARY KEY, applied_at timestamptz DEFAULT now())"
        )
        seen = {row["number"] for row in await connection.fetch("SELECT number FROM migrations")}
        for number, sql in migrations():
            if number not in seen:
                await connection.execute(sql)
                await connection.execute("INSERT INTO migrations (number) VALUES ($1)", number)
                applied.append(number)
        await connection.execute(outbox.ddl())
    if applied:
        log.info("migrated", numbers=applied)
    return applied


def migrations() -> list[tuple[int, str]]:
    """Return the package's SQL files by number."""
    folder = resources.files("tidemill_registry") / "migrations"
    found = [(match, item) for item in folder.iterdir() if (match := _NUMBERED.fullmatch(item.name))]
    return sorted((int(match.group(1)), item.read_text()) for match, item in found)
