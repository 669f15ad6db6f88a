"""Locks of PostgreSQL on runs: one holder, and none lost for good when the server goes away."""

import asyncio
from typing import Any

import asyncpg
import pytest
from tidemill_runtime.errors import Retryable
from tidemill_testkit.eventually import aeventually
from tidemill_training.adapters.claims import Claims, open_claims

pytestmark = pytest.mark.servers


async def taken(claims: Claims, cause: str) -> bool | None:
    """Return whether the cause is free, or None while the server is away."""
    try:
        async with claims.claim(cause) as held:
            return held
    except Retryable:
        return None


async def test_a_cause_has_one_holder(database: str) -> None:
    async with asyncpg.create_pool(database) as pool, open_claims(pool) as mine, open_claims(pool) as other:
        async with mine.claim("a") as held:
            assert held
            assert not await taken(other, "a")
            assert not await taken(mine, "a")
        assert await taken(other, "a")


async def test_a_closed_connection_costs_a_claim_and_no_more(database: str) -> None:
    async with asyncpg.create_pool(database, min_size=1) as pool, open_claims(pool) as claims:
        assert await taken(claims, "a")
        admin: Any = await asyncpg.connect(database)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await admin.close()

        async def again() -> bool:
            return await taken(claims, "a") is True

        await aeventually(again, claim="the cause can be claimed again")


async def test_connections_that_broke_unnoticed_by_their_pool_do_not_use_it_up(database: str) -> None:
    async with asyncpg.create_pool(database, min_size=1, max_size=1) as pool, open_claims(pool) as claims:
        assert await taken(claims, "a")
        # What the driver does where what it reads cannot be: it says nothing to the pool.
        claims._connection._protocol.abort()
        async with asyncio.timeout(60):
            assert await taken(claims, "a")
