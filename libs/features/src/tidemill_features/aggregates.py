"""What each aggregate keeps: from a declared aggregation to the partials that it reads, shared where they can be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from tidemill_contracts.bounds import MAX_EDGES, MAX_K
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features import partials as p
from tidemill_features.decay import MAX_HALF_LIVES, MAX_HALF_LIVES_PER_HOP
from tidemill_features.expressions import Expression, Schema, compile_expression
from tidemill_features.expressions_tree import FLOAT64, STRING, TIMESTAMP, Type
from tidemill_features.partials import Dtype, Input, Kind, Wanted
from tidemill_features.sketch_heavy import counters_of

_SINGLE = {p.SUM: Kind.SUM, p.MEAN: Kind.SUM, p.MIN: Kind.MIN, p.MAX: Kind.MAX}
_MOMENT_WORDS = {p.VARIANCE: 2, p.STD: 2, p.SKEW: 3}
# These take numbers and conditions: no strings and no instants.
_ARITHMETIC = frozenset({p.SUM, p.MEAN, p.DECAYED_SUM, p.EWMA, p.QUANTILE, p.HISTOGRAM, *_MOMENT_WORDS})


class RefusedError(ValueError):
    """The aggregation cannot be computed; the message is the rest of a sentence that names it."""


@dataclass(frozen=True, slots=True)
class Read:
    """Where one number of an aggregation is found: indices into the ring's partials."""

    count: int | None
    value: int | None
    weight: int | None = None
    element: int = 0


class Inputs:
    """The inputs of a view, each once."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.all: list[Input] = []
        self._numbers: dict[tuple[str, ...], int] = {}

    def compiled(self, text: str) -> Expression | None:
        """Return an expression; None where the definition has none."""
        return compile_expression(text, self._schema) if text else None

    def place(self, wanted: Input) -> int:
        """Return the number of an input."""
        if wanted.key not in self._numbers:
            self._numbers[wanted.key] = len(self.all)
            self.all.append(wanted)
        return self._numbers[wanted.key]


def reads_of(aggregation: definition.Aggregation, inputs: Inputs, ring: list[Wanted], hop_us: int) -> list[Read]:
    """Return what an aggregation reads, one entry per number, adding to the ring what is missing.

    Raises `RefusedError` or `ExpressionError`.
    """
    return _Aggregation(aggregation, inputs, ring, hop_us).reads()


class _Aggregation:
    def __init__(self, aggregation: definition.Aggregation, inputs: Inputs, ring: list[Wanted], hop_us: int) -> None:
        self._declared = aggregation
        self._inputs = inputs
        self._ring = ring
        self._hop_us = hop_us
        self._expression = inputs.compiled(aggregation.expression)
        self._where = inputs.compiled(aggregation.where)

    def reads(self) -> list[Read]:
        function = self._declared.function
        if function in (p.COUNT, p.RATE):
            return [Read(self._count(), None)]
        if function == p.TIME_SINCE_LAST:
            # Without a predicate the slots' own newest event time says it.
            return [Read(None, self._newest() if self._where is not None else None)]
        if self._expression is None:
            _refuse("needs an expression")
        if function in _ARITHMETIC and self._expression.type in (STRING, TIMESTAMP):
            _refuse("calculates with something that is no number")
        build = self._builders().get(function)
        if build is None:
            _refuse("is an aggregate that this release does not compute")
        return build(self._expression)

    def _builders(self) -> dict[int, Callable[[Expression], list[Read]]]:
        return {
            p.SUM: self._single,
            p.MEAN: self._single,
            p.MIN: self._single,
            p.MAX: self._single,
            p.VARIANCE: self._moments,
            p.STD: self._moments,
            p.SKEW: self._moments,
            p.FIRST: self._one,
            p.LAST: self._one,
            p.LAST_K: self._last_k,
            p.HISTOGRAM: self._histogram,
            p.DECAYED_SUM: self._decayed,
            p.EWMA: self._decayed,
            p.APPROX_DISTINCT: self._sketch,
            p.QUANTILE: self._sketch,
            p.TOP_K: self._top_k,
        }

    def _single(self, expression: Expression) -> list[Read]:
        dtype = dtype_of(expression.type)
        if dtype is Dtype.STRING:
            _refuse("orders strings; only first, last, last-k, top-k and approx-distinct take them")
        value = self._place(_SINGLE[self._declared.function], dtype)
        return [Read(self._count(), value)]

    def _one(self, expression: Expression) -> list[Read]:
        kind = Kind.FIRST if self._declared.function == p.FIRST else Kind.LAST
        return [Read(None, self._place(kind, dtype_of(expression.type)))]

    def _moments(self, _: Expression) -> list[Read]:
        count = self._count()
        words = _MOMENT_WORDS[self._declared.function]
        wanted = Wanted(Kind.MOMENTS, Dtype.FLOAT, self._input(), size=words, beside=count)
        return [Read(count, _place(self._ring, wanted))]

    def _decayed(self, _: Expression) -> list[Read]:
        half_life_us = self._declared.half_life_ms * 1000
        if half_life_us <= 0:
            _refuse("needs a half-life")
        if half_life_us * MAX_HALF_LIVES_PER_HOP < self._hop_us:
            _refuse(f"has a half-life below its hop of {self._hop_us // 1_000_000} s / {MAX_HALF_LIVES_PER_HOP}")
        if self._declared.window_ms * 1000 + self._hop_us > half_life_us * MAX_HALF_LIVES:
            _refuse(f"has a window that spans, with its hop, more than {MAX_HALF_LIVES:,} half-lives")
        value = self._place(Kind.DECAYED, Dtype.FLOAT, half_life_us=half_life_us)
        if self._declared.function == p.DECAYED_SUM:
            return [Read(self._count(), value)]
        counted = Wanted(Kind.DECAYED_COUNT, Dtype.FLOAT, self._counted_input(), half_life_us=half_life_us)
        return [Read(self._count(), value, weight=_place(self._ring, counted))]

    def _last_k(self, expression: Expression) -> list[Read]:
        value = self._place(Kind.LAST_K, dtype_of(expression.type), size=self._k())
        return [Read(None, value, element=element) for element in range(self._k())]

    def _top_k(self, expression: Expression) -> list[Read]:
        if expression.type == FLOAT64:
            _refuse("counts floats; round or cast what top-k takes")
        value = self._place(Kind.HEAVY, dtype_of(expression.type), size=counters_of(self._k()))
        count = self._count()
        return [Read(count, value, element=element) for element in range(self._k())]

    def _sketch(self, expression: Expression) -> list[Read]:
        if self._declared.function == p.QUANTILE:
            if not 0 <= self._declared.quantile <= 1:
                _refuse("takes a quantile from 0 to 1")
            return [Read(self._count(), self._place(Kind.QUANTILES, Dtype.FLOAT))]
        return [Read(self._count(), self._place(Kind.DISTINCT, dtype_of(expression.type)))]

    def _histogram(self, expression: Expression) -> list[Read]:
        edges = self._declared.edges
        if not 1 <= len(edges) <= MAX_EDGES or any(low >= high for low, high in pairwise(edges)):
            _refuse(f"takes 1 to {MAX_EDGES} edges that rise")
        bounds: Sequence[float | None] = [None, *edges, None]
        bins = [Input(expression, self._where, low, high) for low, high in pairwise(bounds)]
        wanted = [Wanted(Kind.COUNT, Dtype.INT, self._inputs.place(one)) for one in bins]
        return [Read(_place(self._ring, one), None, element=place) for place, one in enumerate(wanted)]

    def _k(self) -> int:
        if not 1 <= self._declared.k <= MAX_K:
            _refuse(f"takes a k from 1 to {MAX_K}")
        return self._declared.k

    def _newest(self) -> int:
        return _place(self._ring, Wanted(Kind.NEWEST, Dtype.INT, self._inputs.place(Input(None, self._where))))

    def _count(self) -> int:
        """Return the partial that counts the values."""
        return _place(self._ring, Wanted(Kind.COUNT, Dtype.INT, self._counted_input()))

    def _counted_input(self) -> int:
        """Return the input that counts the values; a column that is never null is counted by its events."""
        counted = self._expression if self._expression is not None and self._expression.nullable else None
        return self._inputs.place(Input(counted, self._where))

    def _input(self) -> int:
        return self._inputs.place(Input(self._expression, self._where))

    def _place(self, kind: Kind, dtype: Dtype, *, size: int = 0, half_life_us: int = 0) -> int:
        return _place(self._ring, Wanted(kind, dtype, self._input(), size=size, half_life_us=half_life_us))


def _refuse(why: str) -> NoReturn:
    raise RefusedError(why)


def dtype_of(kind: Type) -> Dtype:
    """Return how values of a type lie in a word."""
    if kind == STRING:
        return Dtype.STRING
    return Dtype.FLOAT if kind == FLOAT64 else Dtype.INT


def _place(ring: list[Wanted], wanted: Wanted) -> int:
    """Return the index of a partial in the ring, appending it where it is missing."""
    if wanted not in ring:
        ring.append(wanted)
    return ring.index(wanted)
