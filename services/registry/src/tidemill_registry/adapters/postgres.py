"""The registry's schema in PostgreSQL: migrations, transactions, and errors in the runtime's words."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import asyncpg
import structlog
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Fatal, Poison, Retryable
from tidemill_runtime.outbox import OutboxTable
from tidemill_runtime.refusals import advice
from tidemill_runtime.retries import delays
from tidemill_runtime.settings import PostgresSettings

SCHEMA = "registry"
# Advisory locks of the registry: any constant works, as long as it is nobody else's.
_LOCK_MIGRATE = 0x7469646572656701
_LOCK_DEFINITIONS = 0x7469646572656702

_CLOSE_S = 5.0
_NUMBERED = re.compile(r"(\d{4})_\w+\.sql")
# What passes by itself: the connection, the server, or another transaction in the way.
_PASSING = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.CannotConnectNowError,
    OSError,
    TimeoutError,
)
_UNSTORABLE = (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)

Connection = Any

log = structlog.get_logger(__name__)


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn what asyncpg raises into `Retryable` where it passes by itself, `Poison` for a bad text, else `Fatal`."""
    try:
        yield
    except _PASSING as error:
        raise Retryable(f"PostgreSQL: {error!r}{advice(error)}") from error
    except _UNSTORABLE as error:
        # Whoever sent the text is at fault; the service goes on.
        raise Poison(Reason.BAD_UTF8, "a text holds a NUL character", fix="leave it out") from error
    except asyncpg.ProgramLimitExceededError as error:
        raise Poison(Reason.OVERSIZED, "a text is too long for a key", fix="use a shorter one") from error
    except asyncpg.PostgresError as error:
        raise Fatal(f"PostgreSQL refuses a statement: {error!r}") from error


@asynccontextmanager
async def open_schema(settings: PostgresSettings, outbox: OutboxTable) -> AsyncIterator[Any]:
    """Lend a pool whose connections live in the registry's schema, migrated; waits for PostgreSQL to be there."""
    kwargs = settings.pool_kwargs()
    kwargs["server_settings"] = {"search_path": SCHEMA, "application_name": "tidemill-registry"}
    pool = await _connected(kwargs)
    try:
        async with translated(), pool.acquire() as connection:
            await migrate(connection, outbox)
        yield pool
    finally:
        await _close(pool)


async def _close(pool: Any) -> None:
    try:
        await asyncio.wait_for(pool.close(), _CLOSE_S)
    except (TimeoutError, *_PASSING):
        # The server is away: a farewell would wait for it.
        pool.terminate()


async def _connected(kwargs: dict[str, Any]) -> Any:
    for delay_s in delays(0.2):
        try:
            async with translated():
                return await asyncpg.create_pool(**kwargs)
        except Retryable as error:
            log.warning("waits_for_postgres", error=str(error))
            await asyncio.sleep(delay_s)
    raise AssertionError("delays never end")


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
