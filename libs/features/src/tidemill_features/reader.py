"""Reading rings: which keys a request needs, and from their bytes the values; no I/O, so that any service may read.

    request = reader.request([Lookup("origin", [("JFK",), ("LGA",)])])
    result = reader.values(request, await redis.mget(request.keys), as_of_us)

All entities of a view are merged at once. Buckets merge in the order of (bucket, partition), floats strictly so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.topics import events_topic

from tidemill_features.finalise import NOT_FOUND, FeatureValues, Known, Merged, finalise
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

    def __init__(self, plan: RingPlan, features: Sequence[Feature], partitions: int) -> None:
        self.plan = plan
        self.features = features
        self._partitions = partitions
        self._longest_us = max(feature.window_us for feature in features)
        self._blank = empty_shard(plan, NO_TOPIC_ID, 0).tobytes()
        self._slot = empty_slot(plan)
        # Where each word of each slot lies within the shards of an entity: [slot, partition, word].
        shard = np.arange(partitions)[:, None] * plan.words + HEADER_WORDS
        slot = np.arange(plan.slots)[:, None, None] * plan.slot_words
        self._at = slot + shard + np.arange(plan.slot_words)

    def shards(self, raws: Sequence[bytes | None]) -> "Shards":
        """Return stored shards, entity by entity and within it partition by partition, as words."""
        words = to_words(raws, self.plan, self._blank)
        return Shards(words.reshape(len(raws) // self._partitions, self._partitions, self.plan.words), raws)

    def merge(self, shards: "Shards", as_of_us: int) -> list[Merged]:
        """Return each feature's merged partials."""
        plan, partitions = self.plan, self._partitions
        first, last = plan.window_buckets(as_of_us, self._longest_us)
        buckets = np.arange(first, last + 1)
        entities = len(shards.words)
        at = self._at[buckets % plan.slots].reshape(-1, plan.slot_words)
        # [entity, (bucket, partition), word]: the order in which partials merge.
        slots = shards.words.reshape(entities, partitions * plan.words).take(at, axis=1)
        dead = slots[:, :, 0] != buckets.repeat(partitions)
        beyond = shards.words[:, :, NEWEST_WORD] > as_of_us
        if beyond.any():
            dead[:, -partitions:] |= beyond
        np.copyto(slots, self._slot, where=dead[:, :, None])
        merged, newest = [], {}
        for feature in self.features:
            start = (plan.window_buckets(as_of_us, feature.window_us)[0] - first) * partitions
            window = slots[:, start:]
            if feature.function == LAST:
                merged.append(self._last(feature, window, start, shards))
                continue
            if start not in newest:
                newest[start] = np.maximum.reduce(window[:, :, 1], axis=1)
            merged.append(self._merge(feature, window, newest[start]))
        return merged

    def _merge(self, feature: Feature, window: Ints, event_us: Ints) -> Merged:
        partials = self.plan.partials
        count = None
        if feature.count is not None:
            count = np.add.reduce(window[:, :, partials[feature.count].word], axis=1)
        if feature.value is None:
            return Merged(count, None, event_us)
        partial = partials[feature.value]
        lane = _typed(window, partial.dtype)[:, :, partial.word]
        if partial.kind is Kind.SUM:
            # accumulate adds one after the other; reduce adds in pairs, so that bits would hang on the shape.
            return Merged(count, np.add.accumulate(lane, axis=1)[:, -1], event_us)
        ufunc = np.minimum if partial.kind is Kind.MIN else np.maximum
        return Merged(count, ufunc.reduce(lane, axis=1), event_us)

    def _last(self, feature: Feature, window: Ints, start: int, shards: "Shards") -> Merged:
        assert feature.value is not None
        partial = self.plan.partials[feature.value]
        times = window[:, :, partial.word]
        # Equal times lie in one bucket, so that of equal times the highest partition comes last.
        chosen = times.shape[1] - 1 - times[:, ::-1].argmax(axis=1)
        rows = np.arange(len(times))
        event_us = times[rows, chosen]
        if partial.dtype is not Dtype.STRING:
            return Merged(None, _typed(window, partial.dtype)[rows, chosen, partial.word + 2], event_us)
        pointers = window[rows, chosen, partial.word + 2]
        return Merged(None, self._strings(pointers, event_us, (chosen + start) % self._partitions, shards), event_us)

    def _strings(self, pointers: Ints, event_us: Ints, partition: Ints, shards: "Shards") -> Any:
        area = self.plan.words * 8
        strings = np.full(len(pointers), None, object)
        for row in np.flatnonzero(event_us != EMPTY).tolist():
            raw = shards.raws[row * self._partitions + int(partition[row])]
            assert raw is not None
            strings[row] = pointed(raw, area, int(pointers[row])).decode("utf-8", "surrogatepass")
        return strings


def _typed(words: Ints, dtype: Dtype) -> Any:
    return words.view(np.float64) if dtype is Dtype.FLOAT else words


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
            RingReader(ring, [feature for feature in plan.features if feature.ring == index], plan.partitions)
            for index, ring in enumerate(plan.rings)
        ]

    def request(self, keys: Iterable[Sequence[EntityValue]], into: list[bytes]) -> ViewRequest:
        """Append to `into` the keys of every shard wanted, ring by ring, within it entity by entity."""
        numbers: dict[Sequence[EntityValue], int] = {}
        heads: list[bytes] = []
        rows = []
        for key in keys:
            values = tuple(key)
            number = numbers.get(values)
            if number is None:
                entity = entity_key(values)
                number = numbers[values] = -1 if entity is None else len(heads)
                if entity is not None:
                    heads.append(self._prefix + entity)
            rows.append(number)
        first = len(into)
        for suffixes in self._suffixes:
            into.extend([head + suffix for head in heads for suffix in suffixes])
        row_of = np.array(rows, np.int64)
        return ViewRequest(self, len(heads), row_of, first)

    def values(self, request: ViewRequest, raws: Sequence[bytes | None], as_of_us: int) -> ViewValues:
        """Return the features of every row of a lookup. Raises `LayoutError`."""
        plan, size = self.plan, request.entities * self.plan.partitions
        features: dict[str, FeatureValues] = {}
        excluded = np.zeros(request.entities, np.bool_)
        for index, ring in enumerate(self._rings):
            first = request.first_key + index * size
            shards = ring.shards(raws[first : first + size])
            if index == 0:
                # Every ring of a view takes in the same events, so that the first one's headers speak for all.
                newest_us = shards.newest_us()
                entity = Known(newest_us, shards.found(), as_of_us, plan.max_age_us)
                excluded = newest_us > as_of_us
            for feature, merged in zip(ring.features, ring.merge(shards, as_of_us), strict=True):
                features[feature.name] = finalise(feature, merged, entity, as_of_us)
        ordered = [features[feature.name] for feature in plan.features]
        rows = request.row_of
        if len(rows) == request.entities:
            return ViewValues(plan.name, plan.hash, ordered, excluded)
        null_key = rows < 0
        spread = [_spread(feature, rows, null_key) for feature in ordered]
        return ViewValues(plan.name, plan.hash, spread, _take(excluded, rows, null_key, False))


def _spread(feature: FeatureValues, rows: Ints, null_key: Bools) -> FeatureValues:
    """Give each row its entity's value; NOT_FOUND where the key is null."""
    nothing = {"O": None, "f": np.nan}.get(feature.values.dtype.kind, 0)
    return FeatureValues(
        feature.name,
        feature.type,
        feature.counts,
        _take(feature.values, rows, null_key, nothing),
        _take(feature.status, rows, null_key, NOT_FOUND),
        _take(feature.event_us, rows, null_key, 0),
    )


def _take(values: Any, rows: Ints, null_key: Bools, nothing: Any) -> Any:
    if not len(values):
        return np.full(len(rows), nothing, values.dtype)
    taken = values[rows]
    if null_key.any():
        taken[null_key] = nothing
    return taken


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
