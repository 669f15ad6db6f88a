"""PostgreSQL in the runtime's words: which of its errors pass by themselves, and a pool that waits for the server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import structlog
from tidemill_contracts.reasons import Reason

from tidemill_runtime.errors import Fatal, Poison, Retryable
from tidemill_runtime.refusals import advice
from tidemill_runtime.retries import delays
from tidemill_runtime.settings import PostgresSettings

# What passes by itself: the connection, the server, or another transaction in the way.
PASSING = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # What the client says where the server closed the connection between two statements.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.CannotConnectNowError,
    OSError,
    TimeoutError,
)
_UNSTORABLE = (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)
_CLOSE_S = 5.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn what asyncpg raises into `Retryable` where it passes by itself, `Poison` for a bad text, else `Fatal`."""
    try:
        yield
    except PASSING as error:
        raise Retryable(f"PostgreSQL: {error!r}{advice(error)}") from error
    except _UNSTORABLE as error:
        # Whoever sent the text is at fault; the service goes on.
        raise Poison(Reason.BAD_UTF8, "a text holds a NUL character", fix="leave it out") from error
    except asyncpg.ProgramLimitExceededError as error:
        raise Poison(Reason.OVERSIZED, "a text is too long for a key", fix="use a shorter one") from error
    except asyncpg.PostgresError as error:
        raise Fatal(f"PostgreSQL refuses a statement: {error!r}") from error


@asynccontextmanager
async def open_pool(
    settings: PostgresSettings, schema: str, prepare: Callable[[Any], Awaitable[object]]
) -> AsyncIterator[Any]:
    """Lend a pool whose connections see a service's schema, prepared on one of them; waits for PostgreSQL."""
    options = settings.pool_kwargs()
    options["server_settings"] = {"search_path": schema, "application_name": f"tidemill-{schema}"}
    pool = await _prepared(options, prepare)
    try:
        yield pool
    finally:
        await _close(pool)


async def _prepared(options: dict[str, Any], prepare: Callable[[Any], Awaitable[object]]) -> Any:
    for delay_s in delays(0.2):
        try:
            async with translated():
                pool = await asyncpg.create_pool(**options)
            try:
                async with translated(), pool.acquire() as connection:
                    await prepare(connection)
            except BaseException:
                pool.terminate()
                raise
        except Retryable as error:
            log.warning("waits_for_postgres", error=str(error))
            await asyncio.sleep(delay_s)
        else:
            return pool
    raise AssertionError("delays never end")


async def _close(pool: Any) -> None:
    try:
        await asyncio.wait_for(pool.close(), _CLOSE_S)
    except (TimeoutError, *PASSING):
        # The server is away: a farewell would wait for it.
        pool.terminate()
