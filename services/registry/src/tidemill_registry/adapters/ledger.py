"""One transaction per change: state, events and audit trail are written together or not at all."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import Message
from tidemill_contracts.canonical import to_json
from tidemill_runtime.outbox import OutboxTable
from tidemill_runtime.postgres import translated
from tidemill_runtime.producer import Outgoing

from tidemill_registry.adapters.postgres import Connection
from tidemill_registry.audit import Act, Head, link

AUDIT = "registry.audit.v1"


class Ledger:
    """What one open transaction has done so far; events and acts are written when it ends."""

    def __init__(self, connection: Connection, now_us: int) -> None:
        self.connection = connection
        # Wall clock of the change, for `emitted_at` and the audit trail.
        self.now_us = now_us
        self.events: list[Outgoing] = []
        self.acts: list[Act] = []

    def publish(self, topic: str, key: str, message: Message) -> None:
        """Publish the message, as JSON, once the transaction has committed."""
        self.events.append(Outgoing(topic, to_json(message), key.encode()))

    def act(self, act: Act) -> None:
        """Put what was done into the audit trail."""
        self.acts.append(act)


class Ledgers:
    """Opens transactions on the registry's schema."""

    def __init__(self, pool: Any, outbox: OutboxTable, clock: Callable[[], int], wake: Callable[[], None]) -> None:
        """Take the pool, the outbox, a wall clock (µs) and what wakes the outbox's relay."""
        self._pool = pool
        self._outbox = outbox
        self._clock = clock
        self._wake = wake

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Ledger]:
        """Open a transaction; what was published in it is enqueued, and what was done audited, before it commits."""
        async with translated(), self._pool.acquire() as connection:
            async with connection.transaction():
                ledger = Ledger(connection, self._clock())
                yield ledger
                await self._audit(ledger)
                if ledger.events:
                    await self._outbox.enqueue(connection, ledger.events)
            if ledger.events:
                self._wake()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """Lend a connection for queries."""
        async with translated(), self._pool.acquire() as connection:
            yield connection

    async def _audit(self, ledger: Ledger) -> None:
        """Link the acts to the chain. Its head is the last lock that any change takes, so that none waits in a ring."""
        if not ledger.acts:
            return
        row = await ledger.connection.fetchrow("SELECT sequence, hash FROM audit_head FOR UPDATE")
        head = Head(row["sequence"], row["hash"])
        rows = []
        for act in ledger.acts:
            record = link(head, act, ledger.now_us)
            head = Head(record.sequence, record.hash)
            rows.append((record.sequence, record.object, record.hash, to_json(record).decode()))
            ledger.publish(AUDIT, record.object, record)
        await ledger.connection.executemany(
            "INSERT INTO audit (sequence, object, hash, record) VALUES ($1, $2, $3, $4)", rows
        )
        await ledger.connection.execute("UPDATE audit_head SET sequence = $1, hash = $2", head.sequence, head.hash)
