"""Building views anew from the log, and following how far that is."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub

from tidemill.clients.calls import Connection


@dataclass(frozen=True, slots=True)
class BuildState:
    """How far all that is being built is: records done and in all, and whether everything asked about is read."""

    done: int
    total: int
    ready: bool
    views: tuple[feature.ViewBuild, ...]


class BuildClient:
    """Calls of `FeatureService` about builds; every one raises `ClientError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = FeatureServiceStub(connection.channel)

    def rebuild(self, view: str, stream: str) -> list[str]:
        """Have one view built anew, or all of a stream; return their names."""
        request = feature.RebuildRequest(view=view, stream=stream)
        return list(self._connection.call(self._stub.Rebuild, request).views)

    def state(self, views: list[str]) -> BuildState:
        """Return how far some views are; all of them where none is named."""
        name = views[0] if len(views) == 1 else ""
        answer = self._connection.call(self._stub.GetBuilds, feature.GetBuildsRequest(view=name))
        wanted = [one for one in answer.views if not one.old and (not views or one.view in views)]
        done = sum(place.next_offset - place.first_offset for place in answer.partitions)
        total = sum(place.end_offset - place.first_offset for place in answer.partitions)
        return BuildState(done, total, all(one.ready for one in wanted), tuple(wanted))

    def follow(
        self, views: list[str], every_s: float = 0.5, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[BuildState]:
        """Yield how far some views are until all of them are read."""
        while True:
            state = self.state(views)
            yield state
            if state.ready:
                return
            sleep(every_s)
