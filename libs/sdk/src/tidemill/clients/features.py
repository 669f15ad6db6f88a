"""Online feature values."""

from collections.abc import Sequence

from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub

from tidemill.clients.calls import Connection


class FeatureClient:
    """Calls of `FeatureService`; every one raises `CallError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = FeatureServiceStub(connection.channel)

    def read(self, view: str, keys: Sequence[feature.EntityKey], as_of_us: int = 0) -> feature.GetFeaturesResponse:
        """Return a view's values for some entities, as of an instant (0: now)."""
        request = feature.GetFeaturesRequest(views=[feature.ViewKeys(view=view, keys=keys)], as_of_us=as_of_us)
        return self._connection.call(self._stub.GetFeatures, request)
