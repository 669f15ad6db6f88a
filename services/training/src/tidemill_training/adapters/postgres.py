"""Training's schema in PostgreSQL, and its errors in the runtime's words."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import structlog
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Fatal, Poison, Retryable
from tidemill_runtime.refusals import advice
from tidemill_runtime.retries import delays
from tidemill_runtime.settings import PostgresSettings

SCHEMA = "training"
# Any constant that is nobody else's.
_LOCK_SCHEMA = 0x7469646574726101
_CLOSE_S = 5.0
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
_DDL = f"""
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
-- One row per record of the topic that was accepted: a redelivery changes nothing.
CREATE TABLE IF NOT EXISTS {SCHEMA}.requests (
    topic     text    NOT NULL,
    partition integer NOT NULL,
    "offset"  bigint  NOT NULL,
    cause_key text    NOT NULL,
    PRIMARY KEY (topic, partition, "offset")
);
-- One row per cause: what is to be done, and where it stands.
CREATE TABLE IF NOT EXISTS {SCHEMA}.runs (
    cause_key     text    PRIMARY KEY,
    sequence      bigint  GENERATED ALWAYS AS IDENTITY,
    pipeline      text    NOT NULL,
    request       json    NOT NULL,
    -- The request's positions are complete: every attempt reads the same records.
    fixed         boolean NOT NULL DEFAULT false,
    run_id        text    UNIQUE,
    attempts      integer NOT NULL DEFAULT 0,
    cancel_reason text,
    -- "open", then "succeeded", "failed" or "cancelled".
    state         text    NOT NULL DEFAULT 'open',
    -- The newest RunRecord.
    record        json
);
CREATE INDEX IF NOT EXISTS open_runs ON {SCHEMA}.runs (sequence) WHERE state = 'open';
"""

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
async def open_schema(settings: PostgresSettings) -> AsyncIterator[Any]:
    """Lend a pool whose connections see training's schema, made where it is missing; waits for PostgreSQL."""
    options = settings.pool_kwargs()
    options["server_settings"] = {"search_path": SCHEMA, "application_name": "tidemill-training"}
    pool = await _connected(options)
    try:
        yield pool
    finally:
        try:
            await asyncio.wait_for(pool.close(), _CLOSE_S)
        except (TimeoutError, *_PASSING):
            # The server is away: a farewell would wait for it.
            pool.terminate()


async def _connected(options: dict[str, Any]) -> Any:
    for delay_s in delays(0.2):
        try:
            async with translated():
                pool = await asyncpg.create_pool(**options)
                async with pool.acquire() as connection, connection.transaction():
                    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_SCHEMA)
                    await connection.execute(_DDL)
                return pool
        except Retryable as error:
            log.warning("waits_for_postgres", error=str(error))
            await asyncio.sleep(delay_s)
    raise AssertionError("delays never end")
