"""FeatureService over gRPC."""

from collections.abc import Iterable, Mapping, Sequence
from time import time_ns
from typing import Protocol

import grpc
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.feature.v1 import feature_pb2_grpc
from tidemill_features.fold import Counts
from tidemill_features.reader import Lookup, Place, Result
from tidemill_runtime.errors import Retryable

from tidemill_feature.adapters.builds import Builds
from tidemill_feature.adapters.reads import Reads
from tidemill_feature.answers import answer
from tidemill_feature.explaining import explain
from tidemill_feature.online import StreamCounts
from tidemill_feature.reading import entity_values, instant, is_version, key_bytes_max, lookups, plan_of


class Folded(Protocol):
    """What an instance's online role has folded since it started."""

    @property
    def views(self) -> Mapping[str, Counts]:
        """Return counts by the hash of a view."""
        ...

    @property
    def streams(self) -> Mapping[str, StreamCounts]:
        """Return counts by stream."""
        ...


class FeatureServicer(feature_pb2_grpc.FeatureServiceServicer):
    """Reads through `reads`; counts are those of this instance alone."""

    def __init__(self, reads: Reads, folded: Folded) -> None:
        self._reads = reads
        self._folded = folded

    async def GetFeatures(  # noqa: N802 -- the method's name in the contract
        self, request: messages.GetFeaturesRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> messages.GetFeaturesResponse:
        as_of_us = instant(request.as_of_us, time_ns() // 1000)
        wanted = lookups(request.views, self._reads.definitions, self._reads.rows_max)
        include = {Place(one.topic, one.partition): one.next_offset for one in request.include}
        result = await self._reads.values(wanted, as_of_us, include)
        _check_versions([view.view_hash for view in request.views], result)
        return answer(result, as_of_us, columnar=request.columnar)

    async def ExplainFeatures(  # noqa: N802
        self, request: messages.ExplainFeaturesRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> messages.ExplainFeaturesResponse:
        as_of_us = instant(request.as_of_us, time_ns() // 1000)
        definitions = self._reads.definitions
        plan = plan_of(request.view, definitions, request.view_hash)
        key = entity_values(request.key.values, plan, key_bytes_max(plan, definitions))
        # Values and slots are made from the same bytes.
        asked, raws, result = await self._reads.once([Lookup(plan.name, [key])], as_of_us)
        _check_versions([request.view_hash], result)
        return explain(asked.views[0].reader.plan, result, raws, as_of_us)

    async def GetStats(  # noqa: N802
        self, request: messages.GetStatsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> messages.GetStatsResponse:
        return messages.GetStatsResponse(views=self._stats())

    def _stats(self) -> Iterable[messages.ViewStats]:
        for name, plan in sorted(self._reads.definitions.plans.items()):
            view, stream = self._folded.views.get(plan.hash), self._folded.streams.get(plan.stream)
            if view is None or stream is None:
                continue
            yield messages.ViewStats(
                view=name,
                view_hash=plan.hash,
                events_folded=view.folded,
                duplicates=stream.duplicates,
                late_dropped=stream.left_out + view.too_late,
                null_keys=view.null_keys,
                dead_lettered=stream.refused,
            )


class BuildingServicer(FeatureServicer):
    """Also has views built anew."""

    def __init__(self, reads: Reads, folded: Folded, builds: Builds) -> None:
        super().__init__(reads, folded)
        self._builds = builds

    async def Rebuild(  # noqa: N802
        self, request: messages.RebuildRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> messages.RebuildResponse:
        return await self._builds.rebuild(request)

    async def GetBuilds(  # noqa: N802
        self, request: messages.GetBuildsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> messages.GetBuildsResponse:
        return await self._builds.builds(request)


def _check_versions(wanted: Sequence[str], result: Result) -> None:
    """Raise `Retryable` where rings still hold an earlier version than the one asked for, which is registered."""
    for view_hash, view in zip(wanted, result.views, strict=True):
        if not is_version(view_hash, view.view_hash):
            raise Retryable(f"this version of view {view.view!r} is still being built", retry_after_s=1)
