"""Folding events into rings that lie in Redis: one code for what is live, caught up and built anew."""

from collections.abc import Callable, Sequence

from tidemill_features.fold import Rows, Shard, ViewShards
from tidemill_features.layout import LayoutError
from tidemill_runtime.errors import Fatal
from tidemill_runtime.positions import Partition

from tidemill_feature import metrics
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.online import Folding


async def fold(store: RedisStore, foldings: Sequence[Folding], topic_id: Callable[[Partition], bytes]) -> None:
    """Load the shards that events need and are not in memory, and fold. Raises `Retryable` before anything is folded.

    Raises `Fatal` where Redis holds what this version cannot read.
    """
    wanted: list[tuple[ViewShards, Shard, bytes]] = []
    places: list[tuple[Folding, ViewShards, Rows]] = []
    for folding in foldings:
        for view in folding.shards:
            found = view.find(folding.events)
            places.append((folding, view, found))
            missing = found.missing
            wanted.extend((view, shard, topic_id(Partition(folding.topic, shard.partition))) for shard in missing)
    if wanted:
        await _load(store, wanted)
    for folding, view, found in places:
        view.fold(folding.events, found)


async def _load(store: RedisStore, wanted: Sequence[tuple[ViewShards, Shard, bytes]]) -> None:
    keys = [view.keys(shard) for view, shard, _ in wanted]
    raws = iter(await store.shards([key for found in keys for key in found]))
    try:
        for (view, shard, topic_id), found in zip(wanted, keys, strict=True):
            view.load(shard, [next(raws) for _ in found], topic_id)
    except LayoutError as error:
        raise Fatal(str(error)) from error
    metrics.shards_loaded.inc(len(wanted))
