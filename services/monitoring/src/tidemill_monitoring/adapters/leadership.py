"""One joiner at a time: a PostgreSQL session that holds an advisory lock, and through which the joiner writes.

The lock and the transactions share one connection, so that whoever loses the lock cannot write any more:
no epoch is needed.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import asyncpg
import structlog
from tidemill_runtime.consumer import sleep_unless
from tidemill_runtime.errors import Retryable, StateLost
from tidemill_runtime.health import Health
from tidemill_runtime.postgres import PASSING
from tidemill_runtime.refusals import advice
from tidemill_runtime.settings import PostgresSettings

from tidemill_monitoring.adapters.schema import create_tables

_LOCK = "monitoring.join"
_ASK_EVERY_S = 0.5

# The joiner looks up by key only. Plans are made once, when tables may still be empty: without these, a plan that reads
# a small table whole would be kept while it grows. Commits wait for the disk: what is published after one must not be
# numbered anew where PostgreSQL crashes.
SESSION = {
    "application_name": "tidemill-monitoring-join",
    "synchronous_commit": "on",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

log = structlog.get_logger(__name__)


class Leadership:
    """The joiner's connection; opening waits until no other replica holds the lock."""

    def __init__(self, postgres: PostgresSettings, health: Health) -> None:
        self._postgres = postgres
        self._connection: Any = None
        self._closing = asyncio.Event()
        self._fault: str | None = "not connected yet"
        health.require_ready("join:leadership", lambda: self._fault)

    async def __aenter__(self) -> Self:
        while True:
            try:
                await self.renew()
            except Retryable as error:
                if self._fault != str(error):
                    log.warning("waits_for_leadership", detail=str(error))
                self._fault = str(error)
                await sleep_unless(self._closing, _ASK_EVERY_S)
            else:
                return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        await self._close()

    async def renew(self) -> None:
        """Hold the lock, on a new connection where the old one is gone. Raises `Retryable` while another holds it."""
        if self._connection is not None and not self._connection.is_closed():
            return
        try:
            await self._connect()
        except PASSING as error:
            await self._close()
            raise Retryable(f"PostgreSQL: {error!r}{advice(error)}") from error

    async def _connect(self) -> None:
        self._connection = await asyncpg.connect(
            self._postgres.url(),
            command_timeout=self._postgres.timeout_s,
            timeout=self._postgres.timeout_s,
            server_settings=SESSION,
        )
        if not await self._connection.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", _LOCK):
            await self._close()
            raise Retryable("another replica joins; this one stands by")
        await create_tables(self._connection)
        self._fault = None
        log.info("leads")

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Give the connection for one statement of its own. Raises `StateLost` where it is gone."""
        connection = self._connection
        if connection is None or connection.is_closed():
            raise StateLost("PostgreSQL: the joiner's connection is closed")
        try:
            yield connection
        except PASSING as error:
            self._fault = f"PostgreSQL: {error!r}"
            await self._close()
            raise StateLost(self._fault) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """Give the connection within a transaction. Raises `StateLost` where it is gone."""
        async with self.connection() as connection, connection.transaction():
            yield connection
