"""Building views anew from the log, and following how far that is."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

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


@dataclass
class Progress:
    """Records done and in all over the partitions that are being built, and those that were: their share stays."""

    _seen: dict[tuple[str, int], int] = field(default_factory=dict)

    def note(self, partitions: Iterable[feature.BuildProgress]) -> tuple[int, int]:
        """Take in what is being built now; one that is no longer among it is done. Return (done, total)."""
        left = 0
        for one in partitions:
            self._seen[one.topic, one.partition] = one.end_offset - one.first_offset
            left += one.end_offset - one.next_offset
        total = sum(self._seen.values())
        return total - left, total


class BuildClient:
    """Calls of `FeatureService` about builds; every one raises `ClientError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = FeatureServiceStub(connection.channel)

    def rebuild(self, view: str, stream: str) -> list[str]:
        """Have one view built anew, or all of a stream; return their names."""
        request = feature.RebuildRequest(view=view, stream=stream)
        return list(self._connection.call(self._stub.Rebuild, request).views)

    def state(self, views: list[str], progress: Progress) -> BuildState:
        """Return how far some views are, all of them where none is named; `progress` is that of earlier answers."""
        name = views[0] if len(views) == 1 else ""
        answer = self._connection.call(self._stub.GetBuilds, feature.GetBuildsRequest(view=name))
        wanted = [one for one in answer.views if not one.old and (not views or one.view in views)]
        return BuildState(*progress.note(answer.partitions), all(one.ready for one in wanted), tuple(wanted))

    def follow(
        self, views: list[str], every_s: float = 0.5, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[BuildState]:
        """Yield how far some views are until all of them are read."""
        progress = Progress()
        while True:
            state = self.state(views, progress)
            yield state
            if state.ready:
                return
            sleep(every_s)
