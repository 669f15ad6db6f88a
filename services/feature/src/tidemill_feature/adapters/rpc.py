"""FeatureService over gRPC."""

import asyncio
from collections.abc import Iterable
from time import perf_counter, time_ns

import grpc
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.feature.v1 import feature_pb2_grpc
from tidemill_features.reader import Place, Reader, Result
from tidemill_runtime.errors import Retryable

from tidemill_feature import metrics
from tidemill_feature.adapters.online_stream import OnlinePipeline
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.reading import answer, lookups
from tidemill_feature.registered import Definitions
from tidemill_feature.settings import Settings

# A caller that waits for positions is looked after this often; it may be another process that moves them on.
_FIRST_LOOK_S, _LAST_LOOK_S = 0.002, 0.05


class FeatureServicer(feature_pb2_grpc.FeatureServiceServicer):
    """Reads rings; any instance can, whichever partitions it holds."""

    def __init__(
        self,
        definitions: Definitions,
        store: RedisStore,
        online: OnlinePipeline,
        settings: Settings,
    ) -> None:
        self._definitions = definitions
        self._store = store
        self._online = online
        self._settings = settings
        self._reader = Reader([])
        self._revision = -1

    async def GetFeatures(  # noqa: N802 -- the method's name in the contract
        self, request: messages.GetFeaturesRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> messages.GetFeaturesResponse:
        began = perf_counter()
        as_of_us = request.as_of_us or time_ns() // 1000
        wanted = lookups(request, self._definitions.plans, self._settings.read_rows_max)
        reader = self._current_reader()
        asked = reader.request(wanted)
        metrics.read_rows.observe(sum(len(lookup.keys) for lookup in wanted))
        names = {lookup.view for lookup in wanted}
        include = {Place(one.topic, one.partition): one.next_offset for one in request.include}
        wait_s = _FIRST_LOOK_S
        while True:
            result = reader.values(asked, await self._store.shards(asked.keys), as_of_us)
            if unready := names.intersection(result.unready):
                raise Retryable(f"view {', '.join(sorted(unready))} is still being built from the log", retry_after_s=1)
            if _covers(result, include):
                metrics.read_seconds.observe(perf_counter() - began)
                return answer(result, as_of_us)
            # The deadline of the call ends this.
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LAST_LOOK_S)

    async def GetStats(  # noqa: N802
        self, request: messages.GetStatsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> messages.GetStatsResponse:
        return messages.GetStatsResponse(views=self._stats())

    def _current_reader(self) -> Reader:
        """Return a reader of what is registered now."""
        if self._revision != self._definitions.revision:
            self._revision = self._definitions.revision
            plans, settings = self._definitions.plans.values(), self._settings
            self._reader = Reader(plans, project=settings.project, group=settings.group)
        return self._reader

    def _stats(self) -> Iterable[messages.ViewStats]:
        for name, plan in sorted(self._definitions.plans.items()):
            view, stream = self._online.views.get(plan.hash), self._online.streams.get(plan.stream)
            if view is None or stream is None:
                continue
            yield messages.ViewStats(
                view=name,
                view_hash=plan.hash,
                events_folded=view.folded,
                duplicates=stream.duplicates,
                late_dropped=stream.late + view.too_late,
                null_keys=view.null_keys,
                dead_lettered=stream.refused,
            )


def _covers(result: Result, include: dict[Place, int]) -> bool:
    """Say whether the rings include these positions; topics that are not read do not count."""
    return all(result.positions[place] >= offset for place, offset in include.items() if place in result.positions)
