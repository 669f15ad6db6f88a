"""One worker per run over all replicas: session locks of PostgreSQL, gone the moment a process is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from asyncpg import InterfaceError
from tidemill_runtime.postgres import translated

# First half of the two-part lock key: training's runs.
_CLASS = 0x74726E

log = structlog.get_logger(__name__)


class Claims:
    """Holds this process's locks on one connection of its own.

    Where that connection breaks, another replica may take up the same run; that costs time and changes nothing, since
    every effect of a run is keyed by its cause.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._connection: Any = None
        self._one = asyncio.Lock()
        self._held: set[str] = set()

    @asynccontextmanager
    async def claim(self, cause_key: str) -> AsyncIterator[bool]:
        """Hold the cause within the block where it is free; yields whether it is held. Raises `Retryable`."""
        held = await self._try(cause_key)
        try:
            yield held
        finally:
            if held:
                await self._release(cause_key)

    async def close(self) -> None:
        """Give the connection back, its locks with it; also a broken one: not always does the pool notice by itself."""
        connection, self._connection = self._connection, None
        if connection is not None:
            async with translated():
                await self._pool.release(connection)

    async def _try(self, cause_key: str) -> bool:
        async with self._one:
            # A session may take its own lock twice: what this process holds is known here.
            if cause_key in self._held:
                return False
            free = await self._lock(cause_key)
            if free:
                self._held.add(cause_key)
            return free

    async def _lock(self, cause_key: str) -> bool:
        async with translated():
            if not _usable(self._connection):
                await self.close()
                self._connection = await self._pool.acquire()
                for held in self._held:
                    await self._ask(held)
            return await self._ask(cause_key)

    async def _ask(self, cause_key: str) -> bool:
        free = await self._connection.fetchval("SELECT pg_try_advisory_lock($1, hashtext($2))", _CLASS, cause_key)
        return bool(free)

    async def _release(self, cause_key: str) -> None:
        async with self._one:
            self._held.discard(cause_key)
            if not _usable(self._connection):
                log.info("claim_lost", cause_key=cause_key)
                return
            async with translated():
                await self._connection.execute("SELECT pg_advisory_unlock($1, hashtext($2))", _CLASS, cause_key)


def _usable(connection: Any) -> bool:
    """Return whether a pool's connection still lives; its pool takes a broken one back, and then it answers nothing."""
    if connection is None:
        return False
    try:
        return not connection.is_closed()
    except InterfaceError:
        return False


@asynccontextmanager
async def open_claims(pool: Any) -> AsyncIterator[Claims]:
    """Lend claims whose locks are released at the end."""
    claims = Claims(pool)
    try:
        yield claims
    finally:
        await claims.close()
