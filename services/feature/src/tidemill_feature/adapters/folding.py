"""Folding events into rings that lie in Redis: one code for what is live, caught up and built anew."""

from collections.abc import Callable, Sequence
from itertools import islice, repeat

from tidemill_features.fold import Ints, Rows, ViewShards
from tidemill_features.layout import LayoutError
from tidemill_runtime.errors import Fatal
from tidemill_runtime.positions import Partition

from tidemill_feature import metrics
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.online import Folding


async def fold(
    store: RedisStore, foldings: Sequence[Folding], topic_id: Callable[[Partition], bytes], *, anew: bool = False
) -> None:
    """Load the shards that events need and are not in memory, and fold. Raises `Retryable` before anything is folded.

    `anew`: those that are not in memory are empty, whatever Redis holds. Raises `Fatal` where Redis holds what this
    version cannot read.
    """
    places = [(folding, view, view.find(folding.events)) for folding in foldings for view in folding.shards]
    keys = [key for _, _, found in places for key in found.keys]
    raws = repeat(None) if anew else iter(await store.shards(keys) if keys else ())
    loaded: list[tuple[Folding, ViewShards, Ints]] = []
    for folding, view, found in places:
        metrics.shards_loaded.inc(len(found))
        mine = list(islice(raws, len(found.keys)))
        loaded.append((folding, view, _loaded(view, found, mine, folding.topic, topic_id)))
    for folding, view, rows in loaded:
        view.fold(folding.events, rows)


def _loaded(
    view: ViewShards, found: Rows, raws: Sequence[bytes | None], topic: str, topic_id: Callable[[Partition], bytes]
) -> Ints:
    try:
        return view.load(found, raws, lambda partition: topic_id(Partition(topic, partition)))
    except LayoutError as error:
        raise Fatal(str(error)) from error
