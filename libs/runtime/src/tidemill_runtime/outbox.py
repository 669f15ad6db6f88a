"""The transactional outbox: a change and its event are written in one PostgreSQL transaction, then relayed in order.

One relay per schema (advisory lock) sends unsent rows in id order. It never asks for "id greater than the last sent":
serial ids commit out of order, and a row that commits late would be skipped. Order per key holds because a writer locks
the object's row before it enqueues. Delivery is at least once: a row is marked after Kafka acknowledged it. What Kafka
would not take is refused to the writer, whose change then does not happen either.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import structlog
from tidemill_contracts.reasons import Reason

from tidemill_runtime import metrics
from tidemill_runtime.consumer import sleep_unless
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.health import Health
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.outgoing import Outgoing
from tidemill_runtime.postgres import PASSING
from tidemill_runtime.producer import Producer
from tidemill_runtime.retries import delays

# Rows of one round trip; a round is acknowledged whole before the next.
_ROUND = 500
_FALLBACK_S = 1.0
_PRUNE_EVERY_S = 60.0
_KEEP_SENT = "1 hour"
# Kafka takes 1 MiB by default, with the batch that a record comes in.
MAX_RECORD_BYTES = 1_000_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OutboxTable:
    """The outbox of one schema; `enqueue` belongs to the writer's transaction."""

    schema: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", self.schema):
            raise ValueError(f"{self.schema!r} is no schema name")

    @property
    def channel(self) -> str:
        return f"{self.schema}_outbox"

    def ddl(self) -> str:
        """Return the idempotent statements that create the table in its existing schema."""
        return f"""
            CREATE TABLE IF NOT EXISTS {self.schema}.outbox (
                id bigserial PRIMARY KEY,
                topic text NOT NULL,
                key bytea,
                value bytea,
                headers jsonb NOT NULL DEFAULT '[]',
                created_at timestamptz NOT NULL DEFAULT now(),
                sent_at timestamptz
            );
            CREATE INDEX IF NOT EXISTS outbox_unsent ON {self.schema}.outbox (id) WHERE sent_at IS NULL;
        """

    async def enqueue(self, connection: Any, records: Sequence[Outgoing]) -> None:
        """Write records into the caller's open transaction; they are sent after it commits.

        Raises `Poison` for one that is larger than Kafka takes: the transaction is to be rolled back.
        """
        if not connection.is_in_transaction():
            raise RuntimeError("an outbox row is written in the transaction of the change that it tells of")
        for record in records:
            if (size := _size(record)) > MAX_RECORD_BYTES:
                raise Poison(
                    Reason.OVERSIZED,
                    f"the change makes a record of {size:,} bytes in {record.topic}; at most {MAX_RECORD_BYTES:,} fit",
                    fix="make it smaller: fewer or shorter parts",
                )
        rows = [(record.topic, record.key, record.value, _headers_json(record.headers)) for record in records]
        await connection.executemany(
            f"INSERT INTO {self.schema}.outbox (topic, key, value, headers) VALUES ($1, $2, $3, $4::jsonb)",  # noqa: S608
            rows,
        )
        # Delivered at commit; wakes the relay wherever it runs.
        await connection.execute(f"NOTIFY {self.channel}")


def _size(record: Outgoing) -> int:
    headers = sum(len(name) + len(value) for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


def _headers_json(headers: Sequence[tuple[str, bytes]]) -> str:
    return json.dumps([[name, value.decode("latin-1")] for name, value in headers])


def _outgoing(row: Any) -> Outgoing:
    headers = [(name, value.encode("latin-1")) for name, value in json.loads(row["headers"])]
    return Outgoing(row["topic"], row["value"], row["key"], headers)


class OutboxRelay(Component):
    """Sends what was enqueued, in id order, as soon as it is committed; a `Component` for `running`.

    Several replicas may run one; whoever holds the advisory lock works, the others wait for it.
    """

    def __init__(self, pool: Any, producer: Producer, table: OutboxTable, *, health: Health | None = None) -> None:
        self._pool = pool
        self._producer = producer
        self._table = table
        self._name = f"{table.schema}.outbox"
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._rounds = asyncio.Condition()
        self._fault: str | None = None
        self._pruned_s = monotonic()
        if health is not None:
            health.require_ready(f"outbox:{table.schema}", self.fault)

    def fault(self) -> str | None:
        """Return what is wrong, for readiness."""
        return self._fault

    def stop(self) -> None:
        """Send what is committed, then end."""
        self._stopping.set()
        self._wake.set()

    def wake(self) -> None:
        """Say that a transaction with new rows has committed; saves the notification's way round."""
        self._wake.set()

    async def drained(self) -> None:
        """Return once every row that was committed before this call is acknowledged by Kafka."""
        while await self._unsent():
            async with self._rounds:
                self._wake.set()
                await self._rounds.wait()

    async def _unsent(self) -> int:
        try:
            return int(
                await self._pool.fetchval(f"SELECT count(*) FROM {self._name} WHERE sent_at IS NULL")  # noqa: S608
            )
        except PASSING as error:
            raise Retryable(f"PostgreSQL: {error!r}") from error

    async def run(self) -> None:
        """Relay until `stop`; PostgreSQL or Kafka being away is waited out.

        So is a record that Kafka refuses, since later ones of its key may not pass it: `fault` says so, and it goes
        once its topic takes records of that size.
        """
        waits = delays()
        while not self._stopping.is_set():
            try:
                async with self._pool.acquire() as connection:
                    await self._relay_on(connection)
                    waits = delays()
            except (*PASSING, Retryable, Poison) as error:
                self._fault = f"outbox: {error!r}"
                log.warning("outbox_waits", schema=self._table.schema, error=repr(error))
                await sleep_unless(self._stopping, next(waits))

    async def _relay_on(self, connection: Any) -> None:
        await connection.add_listener(self._table.channel, self._on_notify)
        try:
            while not await self._lock(connection):
                self._fault = None
                await self._tell()
                await sleep_unless(self._stopping, _FALLBACK_S)
                if self._stopping.is_set():
                    return
            self._fault = None
            await self._relay(connection)
        finally:
            if not connection.is_closed():
                await connection.remove_listener(self._table.channel, self._on_notify)

    async def _lock(self, connection: Any) -> bool:
        return bool(await connection.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", self._name))

    async def _relay(self, connection: Any) -> None:
        while True:
            self._wake.clear()
            while await self._round(connection):
                pass
            await self._tell()
            if self._stopping.is_set():
                return
            await self._prune(connection)
            try:
                await asyncio.wait_for(self._wake.wait(), _FALLBACK_S)
            except TimeoutError:
                # A notification may be lost with a connection; a look costs one indexed query.
                continue

    async def _tell(self) -> None:
        async with self._rounds:
            self._rounds.notify_all()

    async def _round(self, connection: Any) -> int:
        rows = await connection.fetch(
            f"SELECT id, topic, key, value, headers::text AS headers FROM {self._name} "  # noqa: S608
            f"WHERE sent_at IS NULL ORDER BY id LIMIT {_ROUND}"
        )
        if not rows:
            return 0
        await self._producer.send_all([_outgoing(row) for row in rows])
        await connection.execute(
            f"UPDATE {self._name} SET sent_at = now() WHERE id = ANY($1::bigint[])",  # noqa: S608
            [row["id"] for row in rows],
        )
        for row in rows:
            metrics.outbox_relayed.labels(row["topic"]).inc()
        return len(rows)

    async def _prune(self, connection: Any) -> None:
        if monotonic() - self._pruned_s < _PRUNE_EVERY_S:
            return
        self._pruned_s = monotonic()
        await connection.execute(
            f"DELETE FROM {self._name} WHERE sent_at < now() - interval '{_KEEP_SENT}'"  # noqa: S608
        )

    def _on_notify(self, *_: object) -> None:
        self._wake.set()
