"""Reads of features, whichever door they come through: one trip to Redis, again while a caller waits for positions."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Protocol

from tidemill_features.plan import ViewPlan
from tidemill_features.reader import Lookup, Place, Reader, Request, Result
from tidemill_runtime.errors import Retryable

from tidemill_feature import metrics
from tidemill_feature.reading import plan_of
from tidemill_feature.registered import Definitions
from tidemill_feature.settings import Settings

# A caller that waits for positions is looked after this often; it may be another process that moves them on.
_FIRST_LOOK_S, _LAST_LOOK_S = 0.002, 0.05
# Sets of views that are asked for together, each with a reader of its own.
_READERS = 256
# A reader follows versions, builds and partitions; whoever moves that often is asked for no longer.
_MOVES_MAX = 4


class Shards(Protocol):
    """Where shards and checkpoints lie."""

    async def shards(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return stored values, None where there is none."""
        ...


class Reads:
    """Reads rings; any instance can, whichever partitions it holds."""

    def __init__(self, definitions: Definitions, store: Shards, settings: Settings) -> None:
        self.definitions = definitions
        self.rows_max = settings.read_rows_max
        self._store = store
        self._settings = settings
        self._revision = -1
        self._reader = lru_cache(_READERS)(self._reader_of)

    async def values(
        self, wanted: Sequence[Lookup], as_of_us: int, include: Mapping[Place, int] | None = None
    ) -> Result:
        """Return the values of all look-ups as of one instant, once the rings include the positions asked for.

        Raises `Poison` for a view that is not registered any more, `Retryable` while a view is being built that no
        former version stands in for. The deadline of the caller ends a wait.
        """
        began = perf_counter()
        metrics.read_rows.observe(sum([len(lookup.keys) for lookup in wanted]))
        wait_s = _FIRST_LOOK_S
        while True:
            _, _, result = await self.once(wanted, as_of_us)
            if not include or _covers(result, include):
                metrics.read_seconds.observe(perf_counter() - began)
                _count_coarse(result)
                return result
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LAST_LOOK_S)

    async def once(self, wanted: Sequence[Lookup], as_of_us: int) -> tuple[Request, Sequence[bytes | None], Result]:
        """Return values with the request and the fetched bytes that they were made from. Raises `Retryable`."""
        reader = self._current(wanted)
        for _ in range(_MOVES_MAX):
            asked = reader.request(wanted)
            raws = await self._store.shards(asked.keys)
            result = reader.values(asked, raws, as_of_us)
            if not result.moved:
                break
        unready = {lookup.view for lookup in wanted}.intersection(result.unready)
        unready |= {view.reader.plan.name for view in asked.views if not self._keyed_alike(view.reader.plan)}
        if unready:
            raise Retryable(f"view {', '.join(sorted(unready))} is still being built from the log", retry_after_s=1)
        return asked, raws, result

    def _keyed_alike(self, plan: ViewPlan) -> bool:
        """Say whether keys of the view as it is registered are keys of the version that answers."""
        registered = self.definitions.plans.get(plan.name, plan)
        return (plan.entity, plan.entity_types) == (registered.entity, registered.entity_types)

    def _current(self, wanted: Sequence[Lookup]) -> Reader:
        """Return the reader of these views."""
        if self._revision != self.definitions.revision:
            self._revision = self.definitions.revision
            self._reader.cache_clear()
        return self._reader(frozenset([lookup.view for lookup in wanted]))

    def _reader_of(self, views: frozenset[str]) -> Reader:
        """Return a reader of these views as they are registered now: it fetches no other stream's checkpoints."""
        # A view may have been retired while a caller waits for positions.
        names = [plan_of(view, self.definitions).name for view in sorted(views)]
        # Old versions too: one answers until its successor is built.
        plans = [plan for name in names for plan in self.definitions.versions[name]]
        return Reader(plans, project=self._settings.project, group=self._settings.group)


def _count_coarse(result: Result) -> None:
    for view in result.views:
        if all(one.coarse is None for one in view.whole):
            continue
        coarse = sum([int(one.coarse.sum()) for one in view.features if one.coarse is not None])
        if coarse:
            metrics.read_hop_accuracy.labels(view.view).inc(coarse)


def _covers(result: Result, include: Mapping[Place, int]) -> bool:
    """Say whether the rings include these positions; topics that are not read do not count."""
    return all(result.positions[place] >= offset for place, offset in include.items() if place in result.positions)
