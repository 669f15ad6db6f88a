"""Which slots made a value: those of the feature's window, read from the very shards that the value was merged from.

Of a slot that an edge of an exact window cuts, its events are shown, and which of them count.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_features.area import pointed
from tidemill_features.edges import Edges, Span
from tidemill_features.layout import EMPTY, NEWEST_WORD, NEXT_OFFSET_WORD, empty_slot
from tidemill_features.partials import SKETCHES, Dtype, Feature, Kind, Partial
from tidemill_features.plan import HEADER_WORDS, RingPlan, ViewPlan
from tidemill_features.raw_events import overflowed, times_of
from tidemill_features.reader import Result
from tidemill_features.whole_sums import BEYOND

from tidemill_feature.answers import answer

_BUCKET_WORD, _NEWEST_EVENT_WORD = 0, 1
_FROM_IDENTITY = (Kind.MIN, Kind.MAX, Kind.NEWEST)
# These keep values as the events had them.
_KEEPING = (Kind.MIN, Kind.MAX, Kind.FIRST, Kind.LAST, Kind.LAST_K)


class _Shard:
    """One source partition's ring of one entity."""

    def __init__(self, raw: bytes, ring: RingPlan, partition: int) -> None:
        self.raw = raw
        self.ring = ring
        self.partition = partition
        self.words = np.frombuffer(raw[: ring.words * 8], "<i8")
        self.newest_us = int(self.words[NEWEST_WORD])

    def slot(self, bucket: int) -> Any:
        """Return the words of a bucket's slot, None where it holds nothing or another bucket."""
        first = HEADER_WORDS + bucket % self.ring.slots * self.ring.slot_words
        words = self.words[first : first + self.ring.slot_words]
        return words if int(words[_BUCKET_WORD]) == bucket else None


class _Part:
    """A slot of a shard, or what of it lies in an exact window."""

    def __init__(self, shard: _Shard, words: Any) -> None:
        self.shard = shard
        self.words = words
        self.events: list[messages.RawEvent] = []
        self.head_excluded = False
        self.hop_accuracy = False

    def cut(self, span: Span) -> None:
        """Leave of the slot what lies in a window that may cut it."""
        ring, newest_us = self.shard.ring, int(self.words[_NEWEST_EVENT_WORD])
        assert ring.raw is not None
        raw = pointed(self.shard.raw, ring.words * 8, int(self.words[ring.raw.word]))
        if overflowed(raw):
            if newest_us <= span.after_us:
                self.words = empty_slot(ring)
                return
            self.hop_accuracy, self.head_excluded = True, newest_us > span.until_us + ring.ahead_us
            return
        event_us, offsets = times_of(ring.raw, raw)
        inside = span.holds(event_us)
        self.events = [
            messages.RawEvent(offset=offset, event_time_us=at_us, counts=counts)
            for offset, at_us, counts in zip(offsets.tolist(), event_us.tolist(), inside.tolist(), strict=True)
        ]
        edges = Edges(ring)
        (cut,) = edges.folded([(raw, inside)])
        self.shard = _Shard(cut, edges.scratch, self.shard.partition)
        self.words = edges.slot(cut)


def explain(
    plan: ViewPlan, result: Result, raws: Sequence[bytes | None], as_of_us: int
) -> messages.ExplainFeaturesResponse:
    """Return the values of one entity, each with its slots; `result` was made from the fetched bytes, `raws`."""
    # The last of what was fetched are checkpoints; of a null key there is nothing else.
    shards = _shards(plan, raws[: len(raws) - len(result.positions)])
    row = answer(result, as_of_us, columnar=False).views[0].rows[0]
    features = [
        _feature(plan, feature, value, shards[feature.ring], as_of_us)
        for feature, value in zip(plan.features, row.values, strict=True)
    ]
    return messages.ExplainFeaturesResponse(
        view=plan.name,
        view_hash=plan.hash,
        stream=plan.stream,
        as_of_us=as_of_us,
        features=features,
        shards=[
            messages.RingShard(
                partition=shard.partition,
                next_offset=int(shard.words[NEXT_OFFSET_WORD]),
                newest_event_us=0 if shard.newest_us == EMPTY else shard.newest_us,
            )
            for shard in shards[0]
        ],
    )


def _shards(plan: ViewPlan, raws: Sequence[bytes | None]) -> list[list[_Shard]]:
    """Return the stored shards of each ring; `raws` hold them ring by ring, partition by partition."""
    found = []
    for index, ring in enumerate(plan.rings):
        mine = raws[index * plan.partitions : (index + 1) * plan.partitions]
        found.append([_Shard(raw, ring, partition) for partition, raw in enumerate(mine) if raw is not None])
    return found


def _feature(
    plan: ViewPlan, feature: Feature, value: messages.FeatureValue, shards: Sequence[_Shard], as_of_us: int
) -> messages.FeatureExplanation:
    ring = plan.rings[feature.ring]
    first, last = ring.window_buckets(as_of_us, feature.window_us)
    from_us, to_us = first * ring.hop_us, (last + 1) * ring.hop_us
    if ring.raw is not None:
        span = Span.of(feature, as_of_us)
        from_us, to_us = max(from_us, span.after_us + 1), span.until_us + 1
    return messages.FeatureExplanation(
        feature=feature.name,
        function=definition.AggregationFunction.Name(feature.function).removeprefix("AGGREGATION_FUNCTION_").lower(),
        value=value,
        window_us=feature.window_us,
        hop_us=ring.hop_us,
        from_us=from_us,
        to_us=to_us,
        slots=_slots(plan, feature, shards, range(first, last + 1), as_of_us),
    )


def _slots(
    plan: ViewPlan, feature: Feature, shards: Sequence[_Shard], buckets: range, as_of_us: int
) -> Iterator[messages.RingSlot]:
    ring = plan.rings[feature.ring]
    indices = (feature.count, feature.value, feature.weight)
    wanted = [ring.partials[index] for index in indices if index is not None]
    blank = empty_slot(ring)
    span = Span.of(feature, as_of_us)
    for bucket in buckets:
        for shard in shards:
            words = shard.slot(bucket)
            if words is None:
                continue
            part, newest_us = _Part(shard, words), int(words[_NEWEST_EVENT_WORD])
            if ring.raw is None:
                part.head_excluded = bucket == buckets[-1] and newest_us > as_of_us + ring.ahead_us
            elif newest_us > as_of_us or (bucket == buckets[0] and span.after_us != EMPTY):
                part.cut(span)
            yield messages.RingSlot(
                partition=shard.partition,
                from_us=bucket * ring.hop_us,
                to_us=(bucket + 1) * ring.hop_us,
                newest_event_us=newest_us,
                partials=[_partial(plan, feature, partial, part.words, blank, part.shard) for partial in wanted],
                head_excluded=part.head_excluded,
                events=part.events,
                hop_accuracy=part.hop_accuracy,
            )


def _partial(
    plan: ViewPlan, feature: Feature, partial: Partial, words: Any, blank: Any, shard: _Shard
) -> messages.Partial:
    name, word = _name(plan, partial), partial.word
    if partial.kind is Kind.LAST:
        if int(words[word]) == EMPTY:
            return messages.Partial(name=name)
        value = _scalar(feature, partial, words, word + 2, shard)
        return messages.Partial(name=name, value=value, event_time_us=int(words[word]), offset=int(words[word + 1]))
    if partial.kind in (Kind.FIRST, Kind.LAST_K):
        # Of the newest k the place that the feature stands for within the slot.
        word += 2 * feature.element
        if words[word] == blank[word]:
            return messages.Partial(name=name)
        value = _scalar(feature, partial, words, word + 1, shard)
        return messages.Partial(name=name, value=value, event_time_us=int(words[word]))
    if partial.kind in SKETCHES:
        # It says nothing in one number; the upper half of what points to it is its size.
        return messages.Partial(name=name, bytes=int(words[word]) >> 32)
    if partial.kind in _FROM_IDENTITY and words[word] == blank[word]:
        # The identity: nothing was compared yet.
        return messages.Partial(name=name)
    if partial.kind is Kind.SUM and partial.dtype is Dtype.INT and words[word] == BEYOND:
        return messages.Partial(name=name)
    return messages.Partial(name=name, value=_scalar(feature, partial, words, word, shard))


def _name(plan: ViewPlan, partial: Partial) -> str:
    part = plan.inputs[partial.input]
    name = f"{partial.kind.name.lower()}({part.expression.canonical if part.expression else '*'})"
    if part.low is not None or part.high is not None:
        low, high = (bound if bound is not None else "" for bound in (part.low, part.high))
        name += f" from {low} to {high}"
    return f"{name} where {part.where.canonical}" if part.where else name


def _scalar(feature: Feature, partial: Partial, words: Any, word: int, shard: _Shard) -> messages.Scalar:
    if partial.dtype is Dtype.STRING:
        text = pointed(shard.raw, shard.ring.words * 8, int(words[word])).decode("utf-8", "replace")
        return messages.Scalar(string_value=text)
    if partial.dtype is Dtype.FLOAT:
        return messages.Scalar(float64_value=float(words.view(np.float64)[word]))
    number = int(words[word])
    of_instants = partial.kind in _KEEPING and feature.type == definition.FIELD_TYPE_TIMESTAMP
    if of_instants or partial.kind is Kind.NEWEST:
        return messages.Scalar(timestamp_us=number)
    return messages.Scalar(int64_value=number)
