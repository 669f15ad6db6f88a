"""Predictions: request fields in, probability and exact version out."""

from tidemill_contracts.serving.v1 import serving_pb2 as serving
from tidemill_contracts.serving.v1.serving_pb2_grpc import PredictionServiceStub

from tidemill.clients.calls import Connection


class PredictionClient:
    """Calls of `PredictionService`; every one raises `CallError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = PredictionServiceStub(connection.channel)

    def predict(self, request: serving.PredictBatchRequest) -> serving.PredictBatchResponse:
        """Return one result per row: a prediction, or why there is none."""
        return self._connection.call(self._stub.PredictBatch, request)
