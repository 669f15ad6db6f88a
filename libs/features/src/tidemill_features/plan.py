"""From a declared view to what folding and reading it need: rings, their slots, and the expressions that fill them.

A view's windows are grouped by hop class; every class is one ring. A ring's slot holds one *partial* per distinct
(expression, where, aggregate), so that windows and aggregates of one column share what they can.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn

from tidemill_contracts.canonical import view_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.expressions import Expression, compile_expression, schema_of
from tidemill_features.expressions_tree import Type

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

# The hop classes. Few of them, so that windows of one view share rings.
HOPS_MS = (
    SECOND_MS,
    5 * SECOND_MS,
    10 * SECOND_MS,
    30 * SECOND_MS,
    MINUTE_MS,
    5 * MINUTE_MS,
    15 * MINUTE_MS,
    30 * MINUTE_MS,
    HOUR_MS,
    6 * HOUR_MS,
    DAY_MS,
)
HOPS_PER_WINDOW = 12
MAX_SLOTS = 400

HEADER_WORDS = 8
# The bucket number and the newest event time, before the partials.
SLOT_PREFIX_WORDS = 2

COUNT = definition.AGGREGATION_FUNCTION_COUNT
SUM = definition.AGGREGATION_FUNCTION_SUM
MEAN = definition.AGGREGATION_FUNCTION_MEAN
MIN = definition.AGGREGATION_FUNCTION_MIN
MAX = definition.AGGREGATION_FUNCTION_MAX
LAST = definition.AGGREGATION_FUNCTION_LAST


class PlanError(ValueError):
    """The view cannot be computed as declared; the message names the view, the feature and the reason."""


class Kind(IntEnum):
    """What a partial accumulates; the numbers are part of the stored format's fingerprint."""

    COUNT = 1
    SUM = 2
    MIN = 3
    MAX = 4
    # Three words: event time, offset, value.
    LAST = 5


class Dtype(IntEnum):
    """How a partial's value lies in its word; part of the fingerprint."""

    INT = 1
    FLOAT = 2
    # The word points into the shard's variable-length area.
    STRING = 3


@dataclass(frozen=True, slots=True)
class Input:
    """What one or more partials accumulate: an expression (None: the event itself) where a predicate holds."""

    expression: Expression | None
    where: Expression | None


@dataclass(frozen=True, slots=True)
class Partial:
    """One accumulator of a slot. `word` is its first word within the slot."""

    kind: Kind
    dtype: Dtype
    input: int
    word: int

    @property
    def words(self) -> int:
        return 3 if self.kind is Kind.LAST else 1


@dataclass(frozen=True, slots=True)
class Feature:
    """One aggregation, and where in its ring it is found: `count` and `value` index the ring's partials.

    `max_age_us` is set for a last without a window: its age is then exact.
    """

    name: str
    function: definition.AggregationFunction.ValueType
    type: Type
    ring: int
    window_us: int
    count: int | None
    value: int | None
    max_age_us: int = 0


@dataclass(frozen=True, slots=True)
class RingPlan:
    """One hop class of a view. A shard is `words` words of eight bytes: a header, then slots of `slot_words`."""

    hop_us: int
    slots: int
    partials: tuple[Partial, ...]
    fingerprint: int
    slot_words: int
    words: int
    has_strings: bool

    def bucket(self, instant_us: int) -> int:
        """Return the number of the bucket that holds an instant."""
        return instant_us // self.hop_us

    def window_buckets(self, as_of_us: int, window_us: int) -> tuple[int, int]:
        """Return the first and last bucket that a window ending at `as_of_us` covers."""
        return (as_of_us - window_us) // self.hop_us, as_of_us // self.hop_us


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """A view, ready to be folded and read."""

    name: str
    stream: str
    hash: str
    entity: tuple[str, ...]
    entity_types: tuple[Type, ...]
    partitions: int
    max_age_us: int
    inputs: tuple[Input, ...]
    rings: tuple[RingPlan, ...]
    features: tuple[Feature, ...]
    # A view that is built anew gets shards beside the old ones; numbered from 0.
    build: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The stream's fields that folding reads, sorted."""
        names = set(self.entity)
        for part in self.inputs:
            for expression in (part.expression, part.where):
                names.update(expression.columns if expression else ())
        return tuple(sorted(names))

    @property
    def bytes_per_key(self) -> int:
        """Memory of one entity with events in one partition, without Redis's own overhead and without strings."""
        return sum(ring.words * 8 for ring in self.rings)


def hop_ms(window_ms: int) -> int:
    """Return the hop class of a window: the largest hop that divides it in at least twelve.

    >>> [hop_ms(hours * 3_600_000) // 60_000 for hours in (2, 6, 24, 168)]
    [5, 30, 60, 360]
    """
    return max((hop for hop in HOPS_MS if hop * HOPS_PER_WINDOW <= window_ms), default=HOPS_MS[0])


def slots_of(window_us: int, hop_us: int) -> int:
    """Return the slots of a ring: the window's buckets with the head, and one to spare for events just after a read."""
    return -(-window_us // hop_us) + 2


def compile_view(view: definition.View, stream: definition.Stream) -> ViewPlan:
    """Return the plan of a view.

    Raises `PlanError` or `ExpressionError` where the definition cannot be computed; `tidemill check` says so earlier.
    """
    return _Compiler(view, stream).plan()


def compile_views(
    views: Mapping[str, definition.View], streams: Mapping[str, definition.Stream]
) -> dict[str, ViewPlan]:
    """Return the plan of every view, by name."""
    return {name: compile_view(view, streams[view.stream]) for name, view in views.items()}


class _Compiler:
    """Collects the inputs and partials that a view's aggregations share."""

    def __init__(self, view: definition.View, stream: definition.Stream) -> None:
        self._view = view
        self._stream = stream
        self._schema = schema_of(stream.fields)
        self._inputs: list[Input] = []
        self._input_keys: dict[tuple[str | None, str | None], int] = {}
        self._rings: dict[int, list[tuple[Kind, Dtype, int]]] = {}
        self._longest_us: dict[int, int] = {}

    def plan(self) -> ViewPlan:
        view = self._view
        features = [self._feature(aggregation) for aggregation in view.features]
        hops = sorted(self._rings)
        order = {hop: index for index, hop in enumerate(hops)}
        longest_us = max(self._longest_us.values(), default=0)
        return ViewPlan(
            name=view.name,
            stream=view.stream,
            hash=view_hash(view, self._stream),
            entity=tuple(view.entity),
            entity_types=tuple(self._entity_type(name) for name in view.entity),
            partitions=self._stream.partitions,
            max_age_us=view.max_age_ms * 1000 or longest_us,
            inputs=tuple(self._inputs),
            rings=tuple(self._ring(hop) for hop in hops),
            features=tuple(
                Feature(
                    name=feature.name,
                    function=feature.function,
                    type=feature.type,
                    ring=order[feature.ring],
                    window_us=feature.window_us,
                    count=feature.count,
                    value=feature.value,
                    max_age_us=feature.max_age_us,
                )
                for feature in features
            ),
        )

    def _entity_type(self, name: str) -> Type:
        if name not in self._schema:
            raise PlanError(f"view {self._view.name!r}: no field {name!r} in stream {self._stream.name!r}")
        kind = self._schema[name].type
        if kind == definition.FIELD_TYPE_FLOAT64:
            raise PlanError(f"view {self._view.name!r}: entity field {name!r} is a float; equal floats are no identity")
        return kind

    def _feature(self, aggregation: definition.Aggregation) -> Feature:
        """Return the feature with its hop in place of the ring's index."""
        window_us, max_age_us = aggregation.window_ms * 1000, 0
        if not window_us:
            if aggregation.function != LAST or not self._view.max_age_ms:
                self._refuse(aggregation, "has no window; only last may go without one, in a view with max_age")
            window_us = max_age_us = self._view.max_age_ms * 1000
        hop_us = hop_ms(window_us // 1000) * 1000
        if slots_of(window_us, hop_us) > MAX_SLOTS:
            self._refuse(aggregation, f"its window needs {slots_of(window_us, hop_us)} slots, at most {MAX_SLOTS} fit")
        self._longest_us[hop_us] = max(self._longest_us.get(hop_us, 0), window_us)
        count, value = self._partials(aggregation, self._rings.setdefault(hop_us, []))
        kind = aggregation.type
        return Feature(aggregation.name, aggregation.function, kind, hop_us, window_us, count, value, max_age_us)

    def _partials(
        self, aggregation: definition.Aggregation, ring: list[tuple[Kind, Dtype, int]]
    ) -> tuple[int | None, int | None]:
        """Return where the feature's count and value lie among the ring's partials, adding what is missing."""
        expression = compile_expression(aggregation.expression, self._schema) if aggregation.expression else None
        where = compile_expression(aggregation.where, self._schema) if aggregation.where else None
        if aggregation.function == COUNT:
            return self._count(expression, where, ring), None
        if expression is None:
            self._refuse(aggregation, "needs an expression")
        dtype = _dtype(expression.type)
        kind = {SUM: Kind.SUM, MEAN: Kind.SUM, MIN: Kind.MIN, MAX: Kind.MAX, LAST: Kind.LAST}.get(aggregation.function)
        if kind is None:
            self._refuse(aggregation, "is an aggregate that this release does not compute")
        no_sum = (definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_TIMESTAMP)
        if kind is Kind.SUM and expression.type in no_sum:
            self._refuse(aggregation, "sums or averages something that is no number")
        if dtype is Dtype.STRING and kind is not Kind.LAST:
            self._refuse(aggregation, "orders strings; only last takes them")
        value = _place(ring, (kind, dtype, self._input(expression, where)))
        return (None if kind is Kind.LAST else self._count(expression, where, ring)), value

    def _count(
        self, expression: Expression | None, where: Expression | None, ring: list[tuple[Kind, Dtype, int]]
    ) -> int:
        """Return the partial that counts values; a column that is never null is counted by its events."""
        counted = expression if expression is not None and expression.nullable else None
        return _place(ring, (Kind.COUNT, Dtype.INT, self._input(counted, where)))

    def _input(self, expression: Expression | None, where: Expression | None) -> int:
        key = (expression.canonical if expression else None, where.canonical if where else None)
        if key not in self._input_keys:
            self._input_keys[key] = len(self._inputs)
            self._inputs.append(Input(expression, where))
        return self._input_keys[key]

    def _ring(self, hop_us: int) -> RingPlan:
        slots = slots_of(self._longest_us[hop_us], hop_us)
        partials: list[Partial] = []
        word = SLOT_PREFIX_WORDS
        for kind, dtype, index in self._rings[hop_us]:
            partials.append(Partial(kind, dtype, index, word))
            word += partials[-1].words
        return RingPlan(
            hop_us,
            slots,
            tuple(partials),
            self._fingerprint(hop_us, slots),
            slot_words=word,
            words=HEADER_WORDS + slots * word,
            has_strings=any(partial.dtype is Dtype.STRING for partial in partials),
        )

    def _fingerprint(self, hop_us: int, slots: int) -> int:
        """Return a number that differs wherever bytes of one layout would be misread under another."""
        parts: list[str] = [str(hop_us), str(slots)]
        for kind, dtype, index in self._rings[hop_us]:
            part = self._inputs[index]
            texts = [expression.canonical if expression else "" for expression in (part.expression, part.where)]
            parts.append(f"{int(kind)}:{int(dtype)}:{texts!r}")
        return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "little", signed=True)

    def _refuse(self, aggregation: definition.Aggregation, why: str) -> NoReturn:
        raise PlanError(f"view {self._view.name!r}: feature {aggregation.name!r} {why}")


def _dtype(kind: Type) -> Dtype:
    if kind == definition.FIELD_TYPE_STRING:
        return Dtype.STRING
    return Dtype.FLOAT if kind == definition.FIELD_TYPE_FLOAT64 else Dtype.INT


def _place(ring: list[tuple[Kind, Dtype, int]], wanted: tuple[Kind, Dtype, int]) -> int:
    """Return the index of a partial in the ring, appending it where it is missing."""
    if wanted not in ring:
        ring.append(wanted)
    return ring.index(wanted)
