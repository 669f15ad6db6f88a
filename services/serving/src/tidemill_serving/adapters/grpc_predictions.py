"""PredictionService over gRPC: messages in, the predictor's answers out."""

from typing import Any

from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import serving_pb2 as messages
from tidemill_contracts.serving.v1 import serving_pb2_grpc as services
from tidemill_runtime.errors import Poison
from tidemill_runtime.progress import from_wire, to_wire

from tidemill_serving.predictor import Ask, Predictor
from tidemill_serving.request import Row

Answer = messages.Prediction | Poison


class PredictionServicer(services.PredictionServiceServicer):
    """Predict and PredictBatch; a fault of the whole call is an error status, a fault of one row is its result."""

    def __init__(self, predictor: Predictor, *, durable_by_default: bool) -> None:
        self._predictor = predictor
        self._durable_by_default = durable_by_default

    async def Predict(  # noqa: N802 -- the wire's name
        self, request: messages.PredictRequest, context: Any
    ) -> messages.PredictResponse:
        ask = Ask(
            pipeline=request.pipeline,
            rows=[Row(request.fields, request.prediction_id)],
            as_of_us=request.as_of_us,
            include=from_wire(request.include) if request.include else {},
            durable=self._durable(request.log),
            return_features=True,
        )
        (answer,) = (await self._predictor.predict(ask)).answers
        if isinstance(answer, Poison):
            raise answer
        return messages.PredictResponse(prediction=answer)

    async def PredictBatch(  # noqa: N802 -- the wire's name
        self, request: messages.PredictBatchRequest, context: Any
    ) -> messages.PredictBatchResponse:
        ask = Ask(
            pipeline=request.pipeline,
            rows=[Row(row.fields, row.prediction_id) for row in request.rows],
            as_of_us=request.as_of_us,
            include=from_wire(request.include) if request.include else {},
            durable=self._durable(request.log),
            return_features=request.return_features,
        )
        asked = await self._predictor.predict(ask)
        return messages.PredictBatchResponse(
            results=[_result(answer) for answer in asked.answers],
            written=to_wire(asked.written),
        )

    def _durable(self, mode: messages.LogMode.ValueType) -> bool:
        if mode == messages.LOG_MODE_UNSPECIFIED:
            return self._durable_by_default
        if mode not in (messages.LOG_MODE_ASYNC, messages.LOG_MODE_DURABLE):
            raise Poison(Reason.OUT_OF_RANGE, f"no log mode {mode}", field="log", fix="use ASYNC or DURABLE")
        return mode == messages.LOG_MODE_DURABLE


def _result(answer: Answer) -> messages.RowResult:
    if isinstance(answer, Poison):
        message = f"{answer}; {answer.fix}" if answer.fix else str(answer)
        return messages.RowResult(error=messages.RowError(reason=answer.reason, field=answer.field, message=message))
    return messages.RowResult(prediction=answer)
