"""TrainingService: an operator's requests go by the topic like everybody's; runs are answered from the ledger."""

from collections.abc import AsyncIterator
from uuid import uuid4

import grpc
from tidemill_contracts.canonical import to_json
from tidemill_contracts.reasons import Reason
from tidemill_contracts.training.v1 import training_pb2 as messages
from tidemill_contracts.training.v1 import training_pb2_grpc as services
from tidemill_runtime.actor import require_actor
from tidemill_runtime.errors import Poison
from tidemill_runtime.producer import Outgoing, Producer

from tidemill_training.adapters.executor import Parts
from tidemill_training.adapters.positions import latest_clock
from tidemill_training.requests import TOPIC, operator_request, timed
from tidemill_training.run_records import ENDINGS

Context = grpc.aio.ServicerContext[object, object]

# Another replica's run is looked up this often while it is watched.
_WATCH_EVERY_S = 1.0


class TrainingServicer(services.TrainingServiceServicer):
    """Answers TrainingService."""

    def __init__(self, parts: Parts, producer: Producer) -> None:
        self._parts = parts
        self._producer = producer
        self._ledger = parts.ledger
        self._feed = parts.feed

    async def SubmitRun(  # noqa: N802 -- the wire's name
        self, request: messages.SubmitRunRequest, context: Context
    ) -> messages.SubmitRunResponse:
        actor = require_actor(context)
        asked = operator_request(request, key=request.idempotency_key or str(uuid4()), actor=actor)
        clock = await latest_clock(self._parts.settings.kafka, asked.pipeline)
        if clock is None:
            # Whose clock runs is registered; of another it is not the time that is missing.
            await self._parts.registry.definition(asked.pipeline)
        complete = timed(asked, clock, self._parts.clock())
        headers = [("content-type", b"application/json")]
        await self._producer.send(Outgoing(TOPIC, to_json(complete), complete.pipeline.encode(), headers))
        return messages.SubmitRunResponse(request_id=complete.request_id)

    async def CancelRun(  # noqa: N802 -- the wire's name
        self, request: messages.CancelRunRequest, context: Context
    ) -> messages.CancelRunResponse:
        actor = require_actor(context)
        if not request.reason.strip():
            raise Poison(Reason.MISSING_FIELD, "say why the run is cancelled", field="reason", fix="fill in reason")
        await self._found(request.run_id)
        await self._ledger.ask_cancel(request.run_id, f"{actor}: {request.reason}")
        self._feed.wake()
        while (run := await self._found(request.run_id)).status not in ENDINGS:
            await self._feed.changed(_WATCH_EVERY_S)
        return messages.CancelRunResponse(run=run)

    async def GetRun(  # noqa: N802 -- the wire's name
        self, request: messages.GetRunRequest, context: Context
    ) -> messages.GetRunResponse:
        return messages.GetRunResponse(run=await self._found(request.run_id))

    async def WatchRun(  # noqa: N802 -- the wire's name
        self, request: messages.WatchRunRequest, context: Context
    ) -> AsyncIterator[messages.WatchRunResponse]:
        last: messages.RunRecord | None = None
        while last is None or last.status not in ENDINGS:
            run = await self._found(request.run_id)
            if run != last:
                last = run
                yield messages.WatchRunResponse(run=run)
            if run.status not in ENDINGS:
                await self._feed.changed(_WATCH_EVERY_S)

    async def _found(self, run_id: str) -> messages.RunRecord:
        run = await self._ledger.find(run_id)
        if run is None:
            raise Poison(
                Reason.UNKNOWN_ENTITY, f"no run {run_id!r}", field="run_id", fix="list them: tidemill runs PIPELINE"
            )
        return run
