"""Online feature values, for programs with and without asyncio."""

from collections.abc import Sequence
from datetime import datetime

from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub

from tidemill.clients.calls import AsyncConnection, Connection
from tidemill.clients.errors import ClientError
from tidemill.clients.feature_table import FeatureTable, Key, instant_of, keys_of, table_of

READ_DEADLINE_S = 5.0


class FeatureClient:
    """Calls of `FeatureService`; every one raises `ClientError`.

    A read that was not answered (the service restarts, or is busy) is asked again, at most four times and within its
    deadline; what the service refuses is not.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = FeatureServiceStub(connection.channel)

    def get_features(
        self,
        view: str,
        keys: Sequence[Key],
        as_of: datetime | None = None,
        *,
        version: str = "",
        deadline_s: float = READ_DEADLINE_S,
    ) -> FeatureTable:
        """Return a view's features, a row per key, as of a moment (now, unless told).

        `version`: the view's hash, or its first digits, where no other version will do.
        """
        request = _request(view, keys, as_of, version)
        return table_of(keys, self._connection.call(self._stub.GetFeatures, request, deadline_s=deadline_s))

    def explain(
        self, view: str, key: Key, as_of: datetime | None = None, *, deadline_s: float = READ_DEADLINE_S
    ) -> feature.ExplainFeaturesResponse:
        """Return one key's values with the slots that made them."""
        request = feature.ExplainFeaturesRequest(view=view, key=keys_of([key])[0], as_of_us=_as_of_us(as_of))
        return self._connection.call(self._stub.ExplainFeatures, request, deadline_s=deadline_s)


class AsyncFeatureClient:
    """The same for asyncio."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._stub = FeatureServiceStub(connection.channel)

    async def get_features(
        self,
        view: str,
        keys: Sequence[Key],
        as_of: datetime | None = None,
        *,
        version: str = "",
        deadline_s: float = READ_DEADLINE_S,
    ) -> FeatureTable:
        """Return a view's features, a row per key, as of a moment (now, unless told)."""
        request = _request(view, keys, as_of, version)
        return table_of(keys, await self._connection.call(self._stub.GetFeatures, request, deadline_s=deadline_s))


def _request(view: str, keys: Sequence[Key], as_of: datetime | None, version: str) -> feature.GetFeaturesRequest:
    asked = feature.ViewKeys(view=view, keys=keys_of(keys), view_hash=version)
    return feature.GetFeaturesRequest(views=[asked], as_of_us=_as_of_us(as_of), columnar=True)


def _as_of_us(as_of: datetime | None) -> int:
    if as_of is None:
        return 0
    found = instant_of(as_of, "as_of")
    if not found:
        message = f"as_of {as_of}: calls write now as this instant; ask for a microsecond later"
        raise ClientError(message, reached=True, reason="out_of_range", field="as_of")
    return found
