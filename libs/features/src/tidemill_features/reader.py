"""Reading rings: which keys a request needs, and from their bytes the values; no I/O, so that any service may read.

    request = reader.request([Lookup("origin", [("JFK",), ("LGA",)])])
    result = reader.values(request, await redis.mget(request.keys), as_of_us)

All entities of a view are merged at once. Buckets merge in the order of (bucket, partition), floats strictly so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.topics import events_topic

from tidemill_features.finalise import NOT_FOUND, FeatureValues, Merged, finalise, known
from tidemill_features.layout import (
    DEFAULT_GROUP,
    DEFAULT_PROJECT,
    EMPTY,
    NEWEST_WORD,
    NEXT_OFFSET_WORD,
    NO_TOPIC_ID,
    Checkpoint,
    EntityValue,
    checkpoint_key,
    empty_shard,
    empty_slot,
    entity_key,
    shard_prefix,
    shard_suffix,
    to_words,
    view_id,
)
from tidemill_features.plan import HEADER_WORDS, LAST, Dtype, Feature, Kind, RingPlan, ViewPlan
from tidemill_features.ring import pointed

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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


@dataclass(frozen=True, slots=True)
class Request:
    """What to fetch in one trip: all shards, then all checkpoints."""

    keys: list[bytes]
    views: list[ViewRequest]
    places: list[Place]


@dataclass(frozen=True, slots=True)
class ViewValues:
    """A view's features for the rows of one lookup, in the view's order."""

    view: str
    view_hash: str
    features: list[FeatureValues]
    # The bucket of `as_of` was left out of at least one partition, since newer events were folded already.
    head_excluded: Bools


@dataclass(frozen=True, slots=True)
class Result:
    """Values of all lookups, and how far the rings had come.

    `positions`: the next offset of every partition of the views' streams; 0 where nothing was folded yet.
    `unready`: views that a checkpoint does not cover yet, since they are still being built from the log.
    """

    views: list[ViewValues]
    positions: dict[Place, int]
    unready: list[str]


class RingReader:
    """Merges the shards of one ring."""

    def __init__(self, plan: RingPlan, features: Sequence[Feature]) -> None:
        self.plan = plan
        self.features = features
        self._longest_us = max(feature.window_us for feature in features)
        self._blank = empty_shard(plan, NO_TOPIC_ID, 0)
        self._slot = empty_slot(plan)

    def headers(self, raws: Sequence[bytes | None], partitions: int) -> "Shards":
        """Return stored shards as words: int64[entities, partitions, words]."""
        words = to_words(raws, self.plan, self._blank)
        return Shards(words.reshape(-1, partitions, self.plan.words), raws)

    def merge(self, shards: "Shards", as_of_us: int) -> tuple[list[Merged], Bools]:
        """Return each feature's merged partials, and the entities whose head bucket was left out somewhere."""
        plan = self.plan
        first, last = plan.window_buckets(as_of_us, self._longest_us)
        buckets = np.arange(first, last + 1)
        entities, partitions, _ = shards.words.shape
        slots = shards.words[:, :, HEADER_WORDS:].reshape(entities, partitions, plan.slots, plan.slot_words)
        # [entity, bucket, partition, word]: the order in which partials merge.
        taken = slots.transpose(0, 2, 1, 3)[:, buckets % plan.slots]
        dead = taken[..., 0] != buckets[:, None]
        beyond = shards.words[:, :, NEWEST_WORD] > as_of_us
        dead[:, -1] |= beyond
        taken[dead] = self._slot
        flat = taken.reshape(entities, len(buckets) * partitions, plan.slot_words)
        merged = []
        for feature in self.features:
            start = plan.window_buckets(as_of_us, feature.window_us)[0] - first
            merged.append(self._merge(feature, flat, start * partitions, shards))
        return merged, np.asarray(beyond.any(axis=1), np.bool_)

    def _merge(self, feature: Feature, flat: Ints, start: int, shards: "Shards") -> Merged:
        window = flat[:, start:]
        if feature.function == LAST:
            return self._last(feature, window, start, shards)
        count = None if feature.count is None else window[:, :, self.plan.partials[feature.count].word].sum(axis=1)
        event_us = window[:, :, 1].max(axis=1)
        if feature.value is None:
            return Merged(count, None, event_us)
        partial = self.plan.partials[feature.value]
        values: Any = window.view(np.float64) if partial.dtype is Dtype.FLOAT else window
        lane = values[:, :, partial.word]
        if partial.kind is Kind.SUM:
            # accumulate adds one after the other; sum and reduce add in pairs, so that bits would hang on the shape.
            return Merged(count, np.add.accumulate(lane, axis=1)[:, -1], event_us)
        return Merged(count, lane.min(axis=1) if partial.kind is Kind.MIN else lane.max(axis=1), event_us)

    def _last(self, feature: Feature, window: Ints, start: int, shards: "Shards") -> Merged:
        assert feature.value is not None
        partial = self.plan.partials[feature.value]
        times = window[:, :, partial.word]
        # Equal times lie in one bucket, so that of equal times the highest partition comes last.
        chosen = times.shape[1] - 1 - times[:, ::-1].argmax(axis=1)
        rows = np.arange(len(times))
        words = window[rows, chosen, partial.word + 2]
        event_us = times[rows, chosen]
        if partial.dtype is Dtype.FLOAT:
            return Merged(None, words.view(np.float64), event_us)
        if partial.dtype is Dtype.INT:
            return Merged(None, words, event_us)
        return Merged(None, self._strings(words, event_us, (chosen + start) % shards.words.shape[1], shards), event_us)

    def _strings(self, pointers: Ints, event_us: Ints, partition: Ints, shards: "Shards") -> Any:
        partitions, area = shards.words.shape[1], self.plan.words * 8
        strings = np.full(len(pointers), None, object)
        for row in np.flatnonzero(event_us != EMPTY).tolist():
            raw = shards.raws[row * partitions + int(partition[row])]
            assert raw is not None
            strings[row] = pointed(raw, area, int(pointers[row])).decode("utf-8", "surrogatepass")
        return strings


@dataclass(frozen=True, slots=True)
class Shards:
    """Stored shards: `words` int64[entities, partitions, words], and the bytes that they were."""

    words: Ints
    raws: Sequence[bytes | None]

    def newest_us(self) -> Ints:
        """Return the newest event time of each entity, EMPTY where there is none."""
        return np.asarray(self.words[:, :, NEWEST_WORD].max(axis=1), np.int64)

    def found(self) -> Bools:
        """Return which entities have a shard: a stored one always includes at least one record."""
        return np.asarray((self.words[:, :, NEXT_OFFSET_WORD] > 0).any(axis=1), np.bool_)


class ViewReader:
    """Reads one view."""

    def __init__(self, plan: ViewPlan, project: str = DEFAULT_PROJECT) -> None:
        self.plan = plan
        self._prefix = shard_prefix(project, plan.hash)
        self._suffixes = [[shard_suffix(ring, p) for p in range(plan.partitions)] for ring in plan.rings]
        self._rings = [
            RingReader(ring, [feature for feature in plan.features if feature.ring == index])
            for index, ring in enumerate(plan.rings)
        ]

    @cached_property
    def keys_per_entity(self) -> int:
        """How many shards an entity can have."""
        return self.plan.partitions * len(self.plan.rings)

    def request(self, keys: Sequence[Sequence[EntityValue]], into: list[bytes]) -> ViewRequest:
        """Append to `into` the keys of every shard wanted, ring by ring, within it entity by entity."""
        seen: dict[bytes, int] = {}
        row_of = np.empty(len(keys), np.int64)
        for row, values in enumerate(keys):
            entity = entity_key(values)
            row_of[row] = -1 if entity is None else seen.setdefault(entity, len(seen))
        first = len(into)
        heads = [self._prefix + entity for entity in seen]
        for suffixes in self._suffixes:
            into.extend([head + suffix for head in heads for suffix in suffixes])
        return ViewRequest(self, len(seen), row_of, first)

    def values(self, request: ViewRequest, raws: Sequence[bytes | None], as_of_us: int) -> ViewValues:
        """Return the features of every row of a lookup. Raises `LayoutError`."""
        plan, rows = self.plan, request.row_of
        if not request.entities:
            return ViewValues(plan.name, plan.hash, self._nothing(len(rows)), np.zeros(len(rows), np.bool_))
        size = request.entities * plan.partitions
        features: dict[str, FeatureValues] = {}
        excluded = np.zeros(request.entities, np.bool_)
        for index, ring in enumerate(self._rings):
            first = request.first_key + index * size
            shards = ring.headers(raws[first : first + size], plan.partitions)
            entity = known(shards.newest_us(), shards.found(), as_of_us, plan.max_age_us)
            merged, beyond = ring.merge(shards, as_of_us)
            excluded |= beyond
            for feature, partials in zip(ring.features, merged, strict=True):
                features[feature.name] = finalise(feature, partials, entity, as_of_us)
        ordered = [_spread(features[feature.name], rows) for feature in plan.features]
        return ViewValues(plan.name, plan.hash, ordered, excluded[rows] & (rows >= 0))

    def _nothing(self, rows: int) -> list[FeatureValues]:
        """Return NOT_FOUND for every row."""
        none = known(np.full(rows, EMPTY), np.zeros(rows, np.bool_), 0, 0)
        values = []
        for feature in self.plan.features:
            ring = self.plan.rings[feature.ring]
            dtype = ring.partials[feature.value].dtype if feature.value is not None else Dtype.INT
            value = np.zeros(rows, {Dtype.INT: np.int64, Dtype.FLOAT: np.float64, Dtype.STRING: object}[dtype])
            merged = Merged(np.zeros(rows, np.int64), value, np.full(rows, EMPTY))
            values.append(finalise(feature, merged, none, 0))
        return values


def _spread(feature: FeatureValues, rows: Ints) -> FeatureValues:
    """Give each row its entity's value; NOT_FOUND where the key is null."""
    null_key = rows < 0
    spread = FeatureValues(
        feature.name,
        feature.type,
        feature.values[rows],
        feature.nulls[rows],
        feature.status[rows],
        feature.event_us[rows],
    )
    if null_key.any():
        spread.nulls[null_key] = True
        spread.status[null_key] = NOT_FOUND
        spread.event_us[null_key] = 0
        spread.values[null_key] = {"O": None, "f": np.nan}.get(spread.values.dtype.kind, 0)
    return spread


class Reader:
    """Reads a set of views in one trip."""

    def __init__(
        self, plans: Iterable[ViewPlan], *, project: str = DEFAULT_PROJECT, group: str = DEFAULT_GROUP
    ) -> None:
        self.views = {plan.name: ViewReader(plan, project) for plan in plans}
        self._ids = {name: view_id(reader.plan.hash) for name, reader in self.views.items()}
        streams = {reader.plan.stream: reader.plan.partitions for reader in self.views.values()}
        self._places = [
            Place(events_topic(stream), p) for stream, count in sorted(streams.items()) for p in range(count)
        ]
        self._checkpoint_keys = [checkpoint_key(project, group, *place) for place in self._places]

    def request(self, lookups: Iterable[Lookup]) -> Request:
        """Return what to fetch. Raises `KeyError` for a view that is not read here."""
        keys: list[bytes] = []
        views = [self.views[lookup.view].request(lookup.keys, keys) for lookup in lookups]
        keys.extend(self._checkpoint_keys)
        return Request(keys, views, self._places)

    def values(self, request: Request, raws: Sequence[bytes | None], as_of_us: int) -> Result:
        """Return the values of all lookups as of one instant, from the fetched bytes. Raises `LayoutError`."""
        views = [view.reader.values(view, raws, as_of_us) for view in request.views]
        positions, unready = self._progress(request, raws)
        return Result(views, positions, unready)

    def _progress(self, request: Request, raws: Sequence[bytes | None]) -> tuple[dict[Place, int], list[str]]:
        stored = raws[len(raws) - len(request.places) :]
        checkpoints = {
            place: Checkpoint.unpack(raw) for place, raw in zip(request.places, stored, strict=True) if raw is not None
        }
        positions = {p: checkpoints[p].next_offset if p in checkpoints else 0 for p in request.places}
        return positions, self._unready(checkpoints)

    def _unready(self, checkpoints: Mapping[Place, Checkpoint]) -> list[str]:
        unready = []
        for name, reader in self.views.items():
            topic = events_topic(reader.plan.stream)
            held = [point for place, point in checkpoints.items() if place.topic == topic]
            if any(self._ids[name] not in point.views for point in held):
                unready.append(name)
        return unready
