"""Training runs in PostgreSQL: one per cause."""

from uuid import UUID, uuid5

from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import registry_pb2 as messages
from tidemill_runtime.errors import Poison

from tidemill_registry.adapters.ledger import Ledger, Ledgers
from tidemill_registry.adapters.postgres import Connection
from tidemill_registry.audit import Act

STARTED = "started"
ENDINGS = ("succeeded", "failed", "cancelled")
# Run ids follow from their cause, so that a replay names its runs alike.
_NAMESPACE = UUID("6f3f6f0a-5a6d-5c0b-9d3e-0c5d1a7e2b41")


class RunBook:
    """Starts and finishes runs."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers

    async def start(self, request: messages.StartRunRequest, *, actor: str) -> tuple[messages.Run, bool]:
        """Return the run of a cause and whether this call created it.

        A run that has not ended counts one more attempt; one that has ended is returned as it is.
        """
        async with self._ledgers.writing() as ledger:
            await require_pipeline(ledger, request.pipeline)
            run = messages.Run(
                run_id=str(uuid5(_NAMESPACE, request.cause_key)),
                pipeline=request.pipeline,
                cause_key=request.cause_key,
                cause_kind=request.cause_kind,
                request_id=request.request_id,
                status=STARTED,
                attempts=1,
                started_at=to_timestamp(ledger.now_us),
            )
            if request.HasField("requested_at"):
                run.requested_at.CopyFrom(request.requested_at)
            created = await ledger.connection.fetchval(
                """INSERT INTO runs (run_id, pipeline, cause_key, record) VALUES ($1, $2, $3, $4)
                   ON CONFLICT (cause_key) DO NOTHING RETURNING true""",
                run.run_id,
                run.pipeline,
                run.cause_key,
                to_json(run).decode(),
            )
            if created:
                ledger.act(Act(f"run/{run.run_id}", STARTED, actor, request.cause_kind, after=run))
                return run, True
            run = await locked_run(ledger, str(uuid5(_NAMESPACE, request.cause_key)))
            if run.status == STARTED:
                run.attempts += 1
                await store_run(ledger, run)
            return run, False

    async def finish(self, request: messages.FinishRunRequest, *, actor: str) -> messages.Run:
        """End a run; repeating the same ending returns it, another one is a conflict."""
        if request.status not in ENDINGS:
            raise Poison(
                Reason.OUT_OF_RANGE,
                f"a run does not end as {request.status!r}",
                field="status",
                fix=f"use one of: {', '.join(ENDINGS)}",
            )
        async with self._ledgers.writing() as ledger:
            before = await locked_run(ledger, request.run_id)
            if before.status == request.status:
                return before
            if before.status != STARTED:
                raise Poison(Reason.CONFLICT, f"run {request.run_id} has {before.status} already", field="status")
            run = messages.Run()
            run.CopyFrom(before)
            run.status, run.reason = request.status, request.reason
            run.finished_at.CopyFrom(to_timestamp(ledger.now_us))
            if request.HasField("details"):
                run.details.CopyFrom(request.details)
            await store_run(ledger, run)
            ledger.act(Act(f"run/{run.run_id}", run.status, actor, run.reason, before, run))
        return run

    async def list(self, pipeline: str, limit: int) -> list[messages.Run]:
        """Return the newest runs of a pipeline, or of all, newest first."""
        async with self._ledgers.reading() as connection:
            rows = await connection.fetch(
                "SELECT record FROM runs WHERE $1 = '' OR pipeline = $1 ORDER BY sequence DESC LIMIT $2",
                pipeline,
                limit,
            )
        return [_parsed(row["record"]) for row in rows]


async def require_pipeline(ledger: Ledger, pipeline: str) -> str:
    """Lock the pipeline's row for the transaction and return its record; every change of its versions queues here.

    Raises `Poison` where nobody registered it, or it was retired.
    """
    raw: str | None = await ledger.connection.fetchval(
        "SELECT record FROM definitions WHERE kind = 'pipeline' AND name = $1 FOR UPDATE", pipeline
    )
    if raw is None:
        raise Poison(
            Reason.UNKNOWN_PIPELINE, f"no pipeline {pipeline!r}", field="pipeline", fix="register it: tidemill apply"
        )
    if from_json(raw.encode(), definition.DefinitionRecord()).retired:
        message, fix = f"pipeline {pipeline!r} was retired", "apply it again to go on with it"
        raise Poison(Reason.UNKNOWN_PIPELINE, message, field="pipeline", fix=fix)
    return raw


async def open_runs(connection: Connection, pipeline: str) -> list[messages.Run]:
    """Return the runs of a pipeline that are under way."""
    found = await connection.fetch(
        "SELECT record FROM runs WHERE pipeline = $1 AND record->>'status' = $2 ORDER BY sequence", pipeline, STARTED
    )
    return [_parsed(row["record"]) for row in found]


async def locked_run(ledger: Ledger, run_id: str) -> messages.Run:
    """Return a run, locked for the transaction. Raises `Poison` where there is none."""
    raw = await ledger.connection.fetchval("SELECT record FROM runs WHERE run_id = $1 FOR UPDATE", run_id)
    if raw is None:
        raise Poison(Reason.UNKNOWN_ENTITY, f"no run {run_id!r}", field="run_id", fix="start it first: StartRun")
    return _parsed(raw)


async def store_run(ledger: Ledger, run: messages.Run) -> None:
    """Write a changed run."""
    await ledger.connection.execute("UPDATE runs SET record = $2 WHERE run_id = $1", run.run_id, to_json(run).decode())


def _parsed(raw: str) -> messages.Run:
    return from_json(raw.encode(), messages.Run())
