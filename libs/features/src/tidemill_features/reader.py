"""Reading rings: which keys a request needs, and from their bytes the values; no I/O, so that any service may read.

    request = reader.request([Lookup("origin", [("JFK",), ("LGA",)])])
    result = reader.values(request, await redis.mget(request.keys), as_of_us)

All entities of a view are merged at once, and with them those of every view of the same shape. Buckets merge in the
order of (bucket, partition), floats strictly so.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.topics import events_topic

from tidemill_features.finalise import NOT_FOUND, FeatureValues, Known, finalise, nothing_of
from tidemill_features.layout import (
    DEFAULT_GROUP,
    DEFAULT_PROJECT,
    Checkpoint,
    EntityValue,
    build_id,
    builds_in,
    checkpoint_key,
    entity_key,
    shard_prefix,
    shard_suffix,
)
from tidemill_features.merging import RingReader
from tidemill_features.plan import ViewPlan

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Most are what they were at the last read.
_unpacked = lru_cache(1024)(Checkpoint.unpack)


class Lookup(NamedTuple):
    """A view and the entities asked for, each a value per field of the view's entity; repeats cost nothing."""

    view: str
    keys: Sequence[Sequence[EntityValue]]


class Place(NamedTuple):
    """A partition of a topic (logical name)."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """One lookup, resolved: distinct entities, and which of them each row wants (-1: its key is null)."""

    reader: "ViewReader"
    entities: int
    row_of: Ints
    first_key: int

    def shards(self, raws: Sequence[bytes | None], ring: int) -> Sequence[bytes | None]:
        """Return those of the fetched bytes that are the shards of one of the view's rings."""
        size = self.entities * self.reader.plan.partitions
        first = self.first_key + ring * size
        return raws[first : first + size]


@dataclass(frozen=True, slots=True)
class Request:
    """What to fetch in one trip: all shards, then all checkpoints."""

    keys: list[bytes]
    views: list[ViewRequest]
    places: list[Place]


class ViewValues:
    """A view's features for the rows of one lookup.

    `names`: of the features, in the view's order; `whole`: the features of the rows of all look-ups that were merged
    together, under the first view's names: this one's rows begin at `first`. `head_excluded`: the bucket of `as_of` was
    left out of at least one partition, since newer events were folded already.
    """

    __slots__ = ("_features", "first", "head_excluded", "names", "view", "view_hash", "whole")

    def __init__(
        self, reader: "ViewReader", whole: Sequence[FeatureValues], head_excluded: Bools, first: int = 0
    ) -> None:
        self.view, self.view_hash, self.names = reader.plan.name, reader.plan.hash, reader.names
        self.whole, self.first, self.head_excluded = whole, first, head_excluded
        self._features: list[FeatureValues] | None = None

    @property
    def features(self) -> list[FeatureValues]:
        """Return the view's features in its order, for its rows and under its names."""
        if self._features is None:
            rows, named = len(self.head_excluded), list(zip(self.whole, self.names, strict=True))
            if all(len(feature.status) == rows and feature.name == name for feature, name in named):
                self._features = list(self.whole)
            else:
                part = slice(self.first, self.first + rows)
                self._features = [_cut(feature, name, part) for feature, name in named]
        return self._features


@dataclass(frozen=True, slots=True)
class Result:
    """Values of all lookups, and how far the rings had come.

    `positions`: the next offset of every partition of the views' streams; 0 where nothing was folded yet.
    `unready`: views that a checkpoint does not cover yet, since they are still being built from the log. `moved`: from
    now on another version or build of a view is read, or more partitions: the same question, asked again, sees them.
    """

    views: list[ViewValues]
    positions: dict[Place, int]
    unready: list[str]
    moved: bool = False


class Merger:
    """Merges entities of views of one shape, which differ in nothing but names and in what was folded into them."""

    def __init__(self, plan: ViewPlan) -> None:
        self._max_age_us = plan.max_age_us
        self._features = len(plan.features)
        self._rings: list[tuple[RingReader, list[int]]] = []
        for index, ring in enumerate(plan.rings):
            places = [place for place, feature in enumerate(plan.features) if feature.ring == index]
            reader = RingReader(ring, [plan.features[place] for place in places], plan.partitions)
            self._rings.append((reader, places))

    @staticmethod
    def shape(plan: ViewPlan) -> Hashable:
        """Return what is equal for views that one merger serves."""
        features = tuple(replace(feature, name="") for feature in plan.features)
        return plan.partitions, plan.max_age_us, plan.rings, features

    def values(
        self, views: Sequence[ViewRequest], raws: Sequence[bytes | None], as_of_us: int
    ) -> tuple[list[FeatureValues], Bools]:
        """Return the features of all entities of some look-ups, one behind the other. Raises `LayoutError`."""
        found: dict[int, FeatureValues] = {}
        excluded = np.zeros(0, np.bool_)
        for index, (ring, places) in enumerate(self._rings):
            shards = ring.shards([raw for view in views for raw in view.shards(raws, index)])
            if index == 0:
                # Every ring of a view takes in the same events, so that the first one's headers speak for all.
                newest_us = shards.newest_us()
                entity = Known(newest_us, shards.found(), as_of_us, self._max_age_us)
                excluded = np.zeros(len(newest_us), np.bool_)
            for place, feature, merged in zip(
                places, ring.features, ring.merge(shards, as_of_us, ahead=entity.any_ahead), strict=True
            ):
                found[place] = finalise(feature, ring.plan, merged, entity, as_of_us)
                if merged.left_out is not None:
                    excluded |= merged.left_out
        return [found[place] for place in range(self._features)], excluded


class ViewReader:
    """Reads one view."""

    def __init__(self, plan: ViewPlan, merger: Merger, project: str = DEFAULT_PROJECT) -> None:
        self.plan = plan
        self.merger = merger
        self.build = build_id(plan.hash, plan.build)
        self.topic = events_topic(plan.stream)
        self.names = [feature.name for feature in plan.features]
        self._prefix = shard_prefix(project, plan.hash, plan.build)
        self._suffixes = [[shard_suffix(ring, p) for p in range(plan.partitions)] for ring in plan.rings]

    def request(self, keys: Iterable[Sequence[EntityValue]], into: list[bytes]) -> ViewRequest:
        """Append to `into` the keys of every shard wanted, ring by ring, within it entity by entity."""
        wanted = list(map(tuple, keys))
        distinct = dict.fromkeys(wanted)
        entities = list(map(entity_key, distinct))
        heads = [self._prefix + entity for entity in entities if entity is not None]
        first = len(into)
        for suffixes in self._suffixes:
            into.extend([head + suffix for head in heads for suffix in suffixes])
        if len(heads) == len(wanted):
            return ViewRequest(self, len(heads), np.arange(len(heads)), first)
        number = count()
        of = {key: -1 if entity is None else next(number) for key, entity in zip(distinct, entities, strict=True)}
        return ViewRequest(self, len(heads), np.array([of[key] for key in wanted], np.int64), first)

    def values(
        self, request: ViewRequest, features: Sequence[FeatureValues], excluded: Bools, first: int
    ) -> ViewValues:
        """Return the features of a look-up's rows; its entities begin at `first` of those that were merged."""
        rows = request.row_of
        if len(rows) == request.entities:
            return ViewValues(self, features, excluded[first : first + request.entities], first)
        without = rows < 0
        null_key = without if np.count_nonzero(without) else None
        rows = rows + first if null_key is None else np.where(without, 0, rows + first)
        spread = [_spread(feature, rows, null_key) for feature in features]
        return ViewValues(self, spread, _take(excluded, rows, null_key, False))


def _cut(feature: FeatureValues, name: str, part: slice) -> FeatureValues:
    return FeatureValues(
        name,
        feature.type,
        feature.counts,
        feature.values[part],
        feature.status[part],
        feature.event_us[part],
        None if feature.coarse is None else feature.coarse[part],
    )


def _spread(feature: FeatureValues, rows: Ints, null_key: Bools | None) -> FeatureValues:
    """Give each row its entity's value; NOT_FOUND where the key is null (None: nowhere)."""
    return FeatureValues(
        feature.name,
        feature.type,
        feature.counts,
        _take(feature.values, rows, null_key, nothing_of(feature.values)),
        _take(feature.status, rows, null_key, NOT_FOUND),
        _take(feature.event_us, rows, null_key, 0),
        None if feature.coarse is None else _take(feature.coarse, rows, null_key, False),
    )


def _take(values: Any, rows: Ints, null_key: Bools | None, nothing: Any) -> Any:
    if not len(values):
        return np.full(len(rows), nothing, values.dtype)
    taken = values.take(rows)
    if null_key is not None:
        taken[null_key] = nothing
    return taken


def _merged(views: Sequence[ViewRequest], raws: Sequence[bytes | None], as_of_us: int) -> list[ViewValues]:
    """Return the values of look-ups in their order, those of one shape merged together. Raises `LayoutError`."""
    alike: dict[Merger, list[ViewRequest]] = {}
    for view in views:
        alike.setdefault(view.reader.merger, []).append(view)
    found: dict[int, ViewValues] = {}
    for merger, members in alike.items():
        features, excluded = merger.values(members, raws, as_of_us)
        first = 0
        for view in members:
            found[id(view)] = view.reader.values(view, features, excluded, first)
            first += view.entities
    return [found[id(view)] for view in views]


class Reader:
    """Reads a set of views in one trip.

    `plans` may hold several of one name, the oldest first: versions of a view that was defined anew. What is read is
    the newest version, and of it the newest build, that the checkpoints of all partitions cover. The checkpoints come
    with the values, so that a reader follows the worker by itself, and one answer never mixes two of them.
    """

    def __init__(
        self, plans: Iterable[ViewPlan], *, project: str = DEFAULT_PROJECT, group: str = DEFAULT_GROUP
    ) -> None:
        self._project, self._group = project, group
        self._versions: dict[str, list[ViewPlan]] = {}
        for plan in plans:
            self._versions.setdefault(plan.name, []).append(plan)
        newest = [versions[-1] for versions in self._versions.values()]
        self._partitions = {plan.stream: plan.partitions for plan in newest}
        self._mergers: dict[Hashable, Merger] = {}
        self.views = {plan.name: self._view(plan) for plan in newest}
        # What the checkpoints said when it was last chosen what to read.
        self._followed: tuple[Any, Any] = ({}, {})
        self._lay_out()

    def request(self, lookups: Iterable[Lookup]) -> Request:
        """Return what to fetch. Raises `KeyError` for a view that is not read here."""
        keys: list[bytes] = []
        views = [self.views[lookup.view].request(lookup.keys, keys) for lookup in lookups]
        keys.extend(self._checkpoint_keys)
        return Request(keys, views, self._places)

    def values(self, request: Request, raws: Sequence[bytes | None], as_of_us: int) -> Result:
        """Return the values of all lookups as of one instant, from the fetched bytes. Raises `LayoutError`."""
        views = _merged(request.views, raws, as_of_us)
        stored = raws[len(raws) - len(request.places) :]
        checkpoints = {
            place: _unpacked(raw) for place, raw in zip(request.places, stored, strict=True) if raw is not None
        }
        positions = {p: checkpoints[p].next_offset if p in checkpoints else 0 for p in request.places}
        covered = _covered(checkpoints)
        # Those of the request first: another request may have moved this reader on meanwhile.
        read = self.views | {view.reader.plan.name: view.reader for view in request.views}
        unready = [name for name, reader in read.items() if not _is_ready(reader, covered)]
        return Result(views, positions, unready, self._follow(checkpoints, covered))

    def _view(self, plan: ViewPlan) -> ViewReader:
        shape = Merger.shape(plan)
        if shape not in self._mergers:
            self._mergers[shape] = Merger(plan)
        return ViewReader(plan, self._mergers[shape], self._project)

    def _lay_out(self) -> None:
        """List the checkpoints that every request fetches."""
        self._places = [
            Place(events_topic(stream), p) for stream, count in sorted(self._partitions.items()) for p in range(count)
        ]
        self._checkpoint_keys = [checkpoint_key(self._project, self._group, *place) for place in self._places]

    def _follow(self, checkpoints: Mapping[Place, Checkpoint], covered: Mapping[str, frozenset[bytes]]) -> bool:
        """Read from now on what the checkpoints say is there; return whether that is something else than before."""
        counts: dict[str, int] = {}
        for place, point in checkpoints.items():
            counts[place.topic] = max(counts.get(place.topic, 0), point.partitions)
        if (covered, counts) == self._followed:
            return False
        self._followed = covered, counts
        partitions = {s: max(count, counts.get(events_topic(s), 0)) for s, count in self._partitions.items()}
        moved = partitions != self._partitions
        self._partitions = partitions
        self._lay_out()
        for name, versions in self._versions.items():
            current = self.views[name].plan
            chosen = _newest(versions, covered.get(events_topic(current.stream), frozenset())) or current
            plan = replace(chosen, partitions=partitions[chosen.stream])
            if plan != current:
                self.views[name] = self._view(plan)
                moved = True
        return moved


def _covered(checkpoints: Mapping[Place, Checkpoint]) -> dict[str, frozenset[bytes]]:
    """Return, by topic, the builds that all its checkpoints cover."""
    covered: dict[str, frozenset[bytes]] = {}
    for place, point in checkpoints.items():
        covered[place.topic] = covered.get(place.topic, point.readable) & point.readable
    return covered


def _is_ready(reader: ViewReader, covered: Mapping[str, frozenset[bytes]]) -> bool:
    """Say whether the rings of a view are built; without any checkpoint there was nothing to build them from."""
    return reader.topic not in covered or reader.build in covered[reader.topic]


def _newest(versions: Sequence[ViewPlan], covered: frozenset[bytes]) -> ViewPlan | None:
    """Return the newest version, with its newest build, among those covered."""
    for version in reversed(versions):
        if builds := builds_in(covered, version.hash):
            return replace(version, build=builds[-1])
    return None
