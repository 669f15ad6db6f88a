"""Building views anew on request, and how far what is being built has come; any instance knows, from Redis."""

from collections.abc import Iterable, Sequence

from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_contracts.topics import events_topic
from tidemill_features.layout import Checkpoint, build_id
from tidemill_features.plan import ViewPlan
from tidemill_runtime.errors import Poison
from tidemill_runtime.positions import Partition

from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_feature.reading import plan_of
from tidemill_feature.registered import Definitions


async def stream_points(
    store: RedisStore, definitions: Definitions, streams: Iterable[str]
) -> dict[str, Sequence[Checkpoint]]:
    """Return the checkpoints that there are, by stream; an operator may have added partitions."""
    # Read first: what is retired meanwhile is told as it was.
    counts = {stream: definitions.catalogue.streams[stream].partitions for stream in sorted(streams)}
    found: dict[str, Sequence[Checkpoint]] = {}
    for stream, count in counts.items():
        held = await _checkpoints(store, events_topic(stream), count)
        most = max((point.partitions for point in held), default=0)
        found[stream] = held if most <= count else await _checkpoints(store, events_topic(stream), most)
    return found


async def _checkpoints(store: RedisStore, topic: str, count: int) -> list[Checkpoint]:
    found = await store.checkpoints([Partition(topic, number) for number in range(count)])
    return [point for point in found.values() if point is not None]


class Builds:
    """What the service does for `features rebuild` and `features backfill`."""

    def __init__(self, definitions: Definitions, store: RedisStore, book: ViewBook) -> None:
        self._definitions = definitions
        self._store = store
        self._book = book

    async def rebuild(self, request: messages.RebuildRequest) -> messages.RebuildResponse:
        """Want views built anew; the workers notice within a second. Raises `Poison` for what is not registered."""
        if bool(request.view) == bool(request.stream):
            raise Poison(Reason.MISSING_FIELD, "name a view, or a stream", field="view")
        if request.view:
            plans = [plan_of(request.view, self._definitions)]
        else:
            plans = [plan for plan in self._definitions.plans.values() if plan.stream == request.stream]
        if not plans:
            raise Poison(Reason.UNKNOWN_STREAM, f"no view reads a stream {request.stream!r}", field="stream")
        await self._book.rebuild(plans)
        return messages.RebuildResponse(views=sorted(plan.name for plan in plans))

    async def builds(self, request: messages.GetBuildsRequest) -> messages.GetBuildsResponse:
        """Return which versions and builds there are, and how far those are that are being built."""
        definitions = self._definitions
        definitions.take(await self._book.read())
        names = [plan_of(request.view, definitions).name] if request.view else sorted(definitions.versions)
        newest = {name: plan.hash for name, plan in definitions.plans.items()}
        plans = [plan for name in names for plan in definitions.versions[name]]
        points = await stream_points(self._store, definitions, {plan.stream for plan in plans})
        views = [_view(plan, plan.hash != newest[plan.name], points[plan.stream]) for plan in plans]
        progress = await self._book.progress() if not all(view.ready for view in views) else {}
        topics = {events_topic(view.stream) for view in views if not view.ready}
        partitions = [
            messages.BuildProgress(
                topic=place.topic,
                partition=place.number,
                first_offset=one.first,
                next_offset=one.next,
                end_offset=max(one.end, one.next),
            )
            for place, one in sorted(progress.items())
            if place.topic in topics
        ]
        return messages.GetBuildsResponse(views=views, partitions=partitions)


def _view(plan: ViewPlan, old: bool, points: Sequence[Checkpoint]) -> messages.ViewBuild:
    ready = all(build_id(plan.hash, plan.build) in point.readable for point in points)
    return messages.ViewBuild(
        view=plan.name, view_hash=plan.hash, build=plan.build, ready=ready, old=old, stream=plan.stream
    )
