"""The accumulators of a slot, and the features that are read from them.

| kind | words | accumulates |
|---|---|---|
| COUNT | 1 | events or values |
| SUM | 1 | values, strictly in offset order |
| MIN, MAX | 1 | the extreme |
| NEWEST | 1 | event time of the newest |
| FIRST | 2 | event time, value |
| LAST | 3 | event time, offset, value |
| LAST_K | 2 k | event time and value of each, newest first |
| MOMENTS | 2 or 3 | mean, M2 and, for the skew, M3; its count lies in a COUNT beside it |
| DECAYED | 1 | values weighted by their age at the end of the bucket |
| DECAYED_COUNT | 1 | the weights themselves |
| DISTINCT, QUANTILES, HEAVY | 1 | a sketch in the variable-length area, pointed to |
"""

from dataclasses import dataclass
from enum import IntEnum

from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.expressions import Expression
from tidemill_features.expressions_tree import Type

COUNT = definition.AGGREGATION_FUNCTION_COUNT
SUM = definition.AGGREGATION_FUNCTION_SUM
MEAN = definition.AGGREGATION_FUNCTION_MEAN
MIN = definition.AGGREGATION_FUNCTION_MIN
MAX = definition.AGGREGATION_FUNCTION_MAX
LAST = definition.AGGREGATION_FUNCTION_LAST
FIRST = definition.AGGREGATION_FUNCTION_FIRST
LAST_K = definition.AGGREGATION_FUNCTION_LAST_K
RATE = definition.AGGREGATION_FUNCTION_RATE
VARIANCE = definition.AGGREGATION_FUNCTION_VARIANCE
STD = definition.AGGREGATION_FUNCTION_STD
SKEW = definition.AGGREGATION_FUNCTION_SKEW
TIME_SINCE_LAST = definition.AGGREGATION_FUNCTION_TIME_SINCE_LAST
HISTOGRAM = definition.AGGREGATION_FUNCTION_HISTOGRAM
DECAYED_SUM = definition.AGGREGATION_FUNCTION_DECAYED_SUM
EWMA = definition.AGGREGATION_FUNCTION_EWMA
APPROX_DISTINCT = definition.AGGREGATION_FUNCTION_APPROX_DISTINCT
QUANTILE = definition.AGGREGATION_FUNCTION_QUANTILE
TOP_K = definition.AGGREGATION_FUNCTION_TOP_K


class Kind(IntEnum):
    """What a partial accumulates; the numbers are part of the stored format's fingerprint."""

    COUNT = 1
    SUM = 2
    MIN = 3
    MAX = 4
    LAST = 5
    FIRST = 6
    NEWEST = 7
    MOMENTS = 8
    DECAYED = 9
    LAST_K = 10
    DISTINCT = 11
    QUANTILES = 12
    HEAVY = 13
    DECAYED_COUNT = 14


SKETCHES = frozenset({Kind.DISTINCT, Kind.QUANTILES, Kind.HEAVY})


class Dtype(IntEnum):
    """How a partial's value lies in its word; part of the fingerprint."""

    INT = 1
    FLOAT = 2
    # The word points into the shard's variable-length area.
    STRING = 3


@dataclass(frozen=True, slots=True)
class Input:
    """What one or more partials accumulate: an expression (None: the event itself) where a predicate holds.

    `low`, `high`: only values with low <= value < high are taken; a bin of a histogram.
    """

    expression: Expression | None
    where: Expression | None
    low: float | None = None
    high: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """Return what tells inputs apart; part of the fingerprint."""
        texts = [expression.canonical if expression else "" for expression in (self.expression, self.where)]
        bounds = () if self.low is None and self.high is None else (repr(self.low), repr(self.high))
        return (*texts, *bounds)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A partial before it has its place in the slot.

    `size`: of LAST_K and HEAVY how many are kept, of MOMENTS how many words; `beside`: of MOMENTS, the ring's partial
    that counts the same values.
    """

    kind: Kind
    dtype: Dtype
    input: int
    size: int = 0
    half_life_us: int = 0
    beside: int = -1


@dataclass(frozen=True, slots=True)
class Partial:
    """One accumulator of a slot. `word` is its first word within the slot."""

    kind: Kind
    dtype: Dtype
    input: int
    word: int
    size: int = 0
    half_life_us: int = 0
    beside: int = -1

    @property
    def words(self) -> int:
        """How many words it takes."""
        if self.kind is Kind.LAST_K:
            return 2 * self.size
        return {Kind.LAST: 3, Kind.FIRST: 2, Kind.MOMENTS: self.size}.get(self.kind, 1)

    @property
    def pointers(self) -> tuple[int, ...]:
        """Return the words of the slot that point into the variable-length area."""
        if self.kind in SKETCHES:
            return (self.word,)
        if self.dtype is not Dtype.STRING:
            return ()
        if self.kind is Kind.LAST_K:
            return tuple(self.word + 2 * place + 1 for place in range(self.size))
        return (self.word + self.words - 1,)


@dataclass(frozen=True, slots=True)
class RawPlan:
    """The raw events that a slot of an exact ring keeps beside its partials. `word`: what points to them in the slot.

    `inputs`: the view's inputs that the ring's partials take; `column_of`: the column of each, -1 where only events
    count; `columns`: of each distinct expression an input that has it, and how its values lie in a word; `room_bytes`:
    events that would need more are not kept.
    """

    word: int
    inputs: tuple[int, ...]
    column_of: tuple[int, ...]
    columns: tuple[tuple[int, Dtype], ...]
    room_bytes: int

    @property
    def mask_words(self) -> int:
        """Words of bits, one for each input."""
        return -(-len(self.inputs) // 64)

    @property
    def row_words(self) -> int:
        """Words of an event: its time and offset, its bits, and a value per column (of a string its length)."""
        return 2 + self.mask_words + len(self.columns)


@dataclass(frozen=True, slots=True)
class Feature:
    """One number of an aggregation, and where it is found: `count`, `value` and `weight` index the ring's partials.

    An aggregation of several numbers (last-k, top-k, a histogram) is as many features, `name.0`, `name.1`, …, told
    apart by `element`; `quantile` is that of a quantile. `max_age_us` is set for a last without a window: its age is
    then exact.
    """

    name: str
    function: definition.AggregationFunction.ValueType
    type: Type
    ring: int
    window_us: int
    count: int | None
    value: int | None
    max_age_us: int = 0
    weight: int | None = None
    element: int = 0
    quantile: float = 0.0
