"""Which requests were accepted, which run each became, and how far it is; one row per cause."""

from dataclasses import dataclass
from typing import Any

from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_runtime.positions import Offsets, Partition
from tidemill_runtime.postgres import translated

from tidemill_training.spec import Done, from_line, to_line


@dataclass(frozen=True)
class OpenRun:
    """A cause whose run has not ended. `number`: the how-manieth of its pipeline, from 1.

    `attempts`: how many ended early; `early_end`: how the last one did, empty where nobody saw it; `answer`: what a
    process answered, where the run has yet to end with it.
    """

    cause_key: str
    request: monitoring.RetrainRequest
    fixed: bool
    run_id: str
    attempts: int
    early_end: str
    answer: Done | None
    number: int


class Ledger:
    """The queue of runs in PostgreSQL; raises `Retryable` where it is away."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def accept(self, place: Partition, offset: int, request: monitoring.RetrainRequest) -> bool:
        """Take in one request, in one transaction with its place in the log; False where its cause is known."""
        async with translated(), self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                """INSERT INTO requests (topic, partition, "offset", cause_key) VALUES ($1, $2, $3, $4)
                   ON CONFLICT DO NOTHING""",
                *place,
                offset,
                request.cause_key,
            )
            created = await connection.fetchval(
                """INSERT INTO runs (cause_key, pipeline, request) VALUES ($1, $2, $3)
                   ON CONFLICT (cause_key) DO NOTHING RETURNING true""",
                request.cause_key,
                request.pipeline,
                to_json(request).decode(),
            )
        return bool(created)

    async def open_causes(self, limit: int = 1_000) -> list[str]:
        """Return the causes whose runs have not ended, oldest first: more than all replicas work on at a time."""
        async with translated(), self._pool.acquire() as connection:
            rows = await connection.fetch(
                "SELECT cause_key FROM runs WHERE state = 'open' ORDER BY sequence LIMIT $1", limit
            )
        return [row["cause_key"] for row in rows]

    async def load(self, cause_key: str) -> OpenRun | None:
        """Return a run that has not ended, or None."""
        async with translated(), self._pool.acquire() as connection:
            row = await connection.fetchrow(
                """SELECT *, (SELECT count(*) FROM runs AS earlier
                              WHERE earlier.pipeline = runs.pipeline AND earlier.sequence <= runs.sequence) AS number
                   FROM runs WHERE cause_key = $1 AND state = 'open'""",
                cause_key,
            )
        if row is None:
            return None
        answer = None if row["answer"] is None else from_line(row["answer"])
        return OpenRun(
            cause_key=cause_key,
            request=from_json(row["request"].encode(), monitoring.RetrainRequest()),
            fixed=row["fixed"],
            run_id=row["run_id"] or "",
            attempts=row["attempts"],
            early_end=row["early_end"] or "",
            answer=answer if isinstance(answer, Done) else None,
            number=row["number"],
        )

    async def fix(self, cause_key: str, request: monitoring.RetrainRequest) -> None:
        """Keep the request with its complete positions: from now on every attempt reads the same records."""
        await self._execute(
            "UPDATE runs SET request = $2, fixed = true WHERE cause_key = $1", cause_key, to_json(request).decode()
        )

    async def note_attempt(self, cause_key: str) -> None:
        """Count an attempt before its process learns what to do: it may end the whole service."""
        await self._execute("UPDATE runs SET attempts = attempts + 1, early_end = NULL WHERE cause_key = $1", cause_key)

    async def note_early_end(self, cause_key: str, reason: str) -> None:
        """Keep how the attempt that was counted last has ended."""
        await self._execute("UPDATE runs SET early_end = $2 WHERE cause_key = $1", cause_key, reason)

    async def take_back(self, run: OpenRun) -> None:
        """Uncount the attempt that followed `run` as it was loaded."""
        await self._execute(
            "UPDATE runs SET attempts = attempts - 1, early_end = $2 WHERE cause_key = $1",
            run.cause_key,
            run.early_end or None,
        )

    async def keep(self, cause_key: str, answer: Done) -> None:
        """Keep what is to be registered: whatever ends early from now on, nothing is trained again."""
        await self._execute("UPDATE runs SET answer = $2 WHERE cause_key = $1", cause_key, to_line(answer))

    async def note(self, cause_key: str, record: training.RunRecord) -> None:
        """Keep the newest record of a run that goes on."""
        await self._execute(
            "UPDATE runs SET record = $2, run_id = $3 WHERE cause_key = $1",
            cause_key,
            to_json(record).decode(),
            record.run_id or None,
        )

    async def end(self, cause_key: str, record: training.RunRecord) -> None:
        """Close a run with its last record."""
        await self._execute(
            "UPDATE runs SET record = $2, run_id = $3, state = $4, answer = NULL WHERE cause_key = $1",
            cause_key,
            to_json(record).decode(),
            record.run_id or None,
            record.status,
        )

    async def find(self, run_id: str) -> training.RunRecord | None:
        """Return the newest record of a run, or None."""
        async with translated(), self._pool.acquire() as connection:
            raw = await connection.fetchval("SELECT record FROM runs WHERE run_id = $1", run_id)
        return None if raw is None else from_json(raw.encode(), training.RunRecord())

    async def ask_cancel(self, run_id: str, reason: str) -> bool:
        """Ask for a run to be cancelled; False where it has ended or there is none."""
        async with translated(), self._pool.acquire() as connection:
            asked = await connection.fetchval(
                "UPDATE runs SET cancel_reason = $2 WHERE run_id = $1 AND state = 'open' RETURNING true",
                run_id,
                reason,
            )
        return bool(asked)

    async def cancel_reason(self, cause_key: str) -> str | None:
        """Return why a run is to be cancelled, or None."""
        async with translated(), self._pool.acquire() as connection:
            reason: str | None = await connection.fetchval(
                "SELECT cancel_reason FROM runs WHERE cause_key = $1", cause_key
            )
        return reason

    async def unfinished(self, offsets: Offsets) -> int:
        """Return how many runs asked for before these offsets have not ended."""
        async with translated(), self._pool.acquire() as connection:
            count: int = await connection.fetchval(
                """SELECT count(DISTINCT runs.cause_key)
                   FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS wanted (topic, partition, next_offset)
                   JOIN requests ON requests.topic = wanted.topic AND requests.partition = wanted.partition
                                AND requests."offset" < wanted.next_offset
                   JOIN runs ON runs.cause_key = requests.cause_key
                   WHERE runs.state = 'open'""",
                [place.topic for place in offsets],
                [place.number for place in offsets],
                list(offsets.values()),
            )
        return count

    async def _execute(self, statement: str, *arguments: object) -> None:
        async with translated(), self._pool.acquire() as connection:
            await connection.execute(statement, *arguments)
