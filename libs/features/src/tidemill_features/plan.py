"""From a declared view to what folding and reading it need: rings, their slots, and the expressions that fill them.

A view's windows are grouped by hop class; every class is one ring. A ring's slot holds one *partial* per distinct
(expression, where, aggregate), so that windows and aggregates of one column share what they can.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from tidemill_contracts.bounds import MAX_EDGE_EVENTS
from tidemill_contracts.canonical import view_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.aggregates import Inputs, RefusedError, dtype_of, reads_of
from tidemill_features.expressions import schema_of
from tidemill_features.expressions_tree import Type
from tidemill_features.hops import MAX_SLOTS, hop_ms, slots_of
from tidemill_features.partials import (
    HISTOGRAM,
    LAST,
    LAST_K,
    SKETCHES,
    TOP_K,
    Dtype,
    Feature,
    Input,
    Partial,
    RawPlan,
    Wanted,
)
from tidemill_features.sketch_heavy import NOMINAL_STRING_BYTES
from tidemill_features.sketches import max_bytes

WORD_BYTES = 8
HEADER_WORDS = 8
# The bucket number and the newest event time, before the partials.
SLOT_PREFIX_WORDS = 2
# What one entity may take with events in one partition, where its view does not say.
DEFAULT_BUDGET_BYTES = 256 * 1024

# Raw events that a slot of an exact view keeps, where the view does not say.
EDGE_EVENTS = 128

# Aggregates of several numbers, each a feature of its own.
_SEVERAL = frozenset({LAST_K, TOP_K, HISTOGRAM})


class PlanError(ValueError):
    """The view cannot be computed as declared; the message names the view, the feature and the reason."""


@dataclass(frozen=True, slots=True)
class RingPlan:
    """One hop class of a view. A shard is `words` words of eight bytes: a header, then slots of `slot_words`.

    `pointers`: the words of a slot that point into the variable-length area. `raw`: None where windows move in hops.
    `ahead_us`: how far producers' clocks may go ahead; events so near after a read are taken for events of now.
    """

    hop_us: int
    slots: int
    partials: tuple[Partial, ...]
    fingerprint: int
    slot_words: int
    words: int
    pointers: tuple[int, ...]
    raw: RawPlan | None = None
    ahead_us: int = 0

    def window_buckets(self, as_of_us: int, window_us: int) -> tuple[int, int]:
        """Return the first and last bucket that a window ending at `as_of_us` covers."""
        return (as_of_us - window_us) // self.hop_us, as_of_us // self.hop_us

    @property
    def variable_bytes(self) -> int:
        """The most that the variable-length area takes, strings at their nominal length."""
        found = 0
        for partial in self.partials:
            sketch = partial.kind in SKETCHES
            found += max_bytes(partial) if sketch else len(partial.pointers) * NOMINAL_STRING_BYTES
        if self.raw is not None:
            found += WORD_BYTES + self.raw.room_bytes
        return found * self.slots


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """A view, ready to be folded and read.

    `required`: the fields without which an event is none of the view's: those of the entity, and those it reads that
    may not be null. The offline log has events without them where a definition was broken on purpose.
    """

    name: str
    stream: str
    hash: str
    entity: tuple[str, ...]
    entity_types: tuple[Type, ...]
    required: tuple[str, ...]
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
        """Memory of one entity with events in one partition, without Redis's own overhead, strings and sketches."""
        return sum(ring.words * 8 for ring in self.rings)

    @property
    def max_bytes_per_key(self) -> int:
        """The same with all sketches and raw events full, and strings at their nominal length."""
        return self.bytes_per_key + sum(ring.variable_bytes for ring in self.rings)


def compile_view(view: definition.View, stream: definition.Stream) -> ViewPlan:
    """Return the plan of a view.

    Raises `PlanError` or `ExpressionError` where the definition cannot be computed; `tidemill check` says so earlier.
    """
    return _Compiler(view, stream).plan()


class _Compiler:
    """Collects the inputs and partials that a view's aggregations share."""

    def __init__(self, view: definition.View, stream: definition.Stream) -> None:
        self._view = view
        self._stream = stream
        self._schema = schema_of(stream.fields)
        self._inputs = Inputs(self._schema)
        self._rings: dict[int, list[Wanted]] = {}
        self._longest_us: dict[int, int] = {}

    def plan(self) -> ViewPlan:
        view = self._view
        if not 0 <= view.edge_events <= MAX_EDGE_EVENTS:
            raise PlanError(f"view {view.name!r}: edge_events is 1 to {MAX_EDGE_EVENTS:,}, not {view.edge_events}")
        windows = [self._window(aggregation) for aggregation in view.features]
        hops = sorted({hop_us for _, hop_us in windows})
        self._rings = {hop_us: [] for hop_us in hops}
        features = [
            feature
            for aggregation, (window_us, hop_us) in zip(view.features, windows, strict=True)
            for feature in self._features(aggregation, window_us, hop_us, hops.index(hop_us))
        ]
        longest_us = max(self._longest_us.values(), default=0)
        plan = ViewPlan(
            name=view.name,
            stream=view.stream,
            hash=view_hash(view, self._stream),
            entity=tuple(view.entity),
            entity_types=tuple(self._entity_type(name) for name in view.entity),
            required=self._required(),
            partitions=self._stream.partitions,
            max_age_us=view.max_age_ms * 1000 or longest_us,
            inputs=tuple(self._inputs.all),
            rings=tuple(self._ring(hop) for hop in hops),
            features=tuple(features),
        )
        self._check_budget(plan)
        return plan

    def _required(self) -> tuple[str, ...]:
        expressions = [one for part in self._inputs.all for one in (part.expression, part.where) if one is not None]
        read = {name for one in expressions for name in one.columns if not self._schema[name].nullable}
        return (*self._view.entity, *sorted(read - set(self._view.entity)))

    def _entity_type(self, name: str) -> Type:
        if name not in self._schema:
            raise PlanError(f"view {self._view.name!r}: no field {name!r} in stream {self._stream.name!r}")
        kind = self._schema[name].type
        if kind == definition.FIELD_TYPE_FLOAT64:
            raise PlanError(f"view {self._view.name!r}: entity field {name!r} is a float; equal floats are no identity")
        return kind

    def _window(self, aggregation: definition.Aggregation) -> tuple[int, int]:
        """Return a feature's window and its hop, in microseconds."""
        window_us = aggregation.window_ms * 1000
        if not window_us:
            if aggregation.function != LAST or not self._view.max_age_ms:
                self._refuse(aggregation, "has no window; only last may go without one, in a view with max_age")
            window_us = self._view.max_age_ms * 1000
        hop_us = hop_ms(window_us // 1000) * 1000
        if slots_of(window_us, hop_us) > MAX_SLOTS:
            needed, days = slots_of(window_us, hop_us), MAX_SLOTS - slots_of(0, hop_us)
            why = f"needs {needed} slots for its window, and at most {MAX_SLOTS} fit: that is {days} days"
            self._refuse(aggregation, why)
        self._longest_us[hop_us] = max(self._longest_us.get(hop_us, 0), window_us)
        return window_us, hop_us

    def _features(self, aggregation: definition.Aggregation, window_us: int, hop_us: int, ring: int) -> list[Feature]:
        try:
            reads = reads_of(aggregation, self._inputs, self._rings[hop_us], hop_us)
        except RefusedError as error:
            self._refuse(aggregation, str(error))
        name = aggregation.name
        return [
            Feature(
                name=f"{name}.{read.element}" if aggregation.function in _SEVERAL else name,
                function=aggregation.function,
                type=aggregation.type,
                ring=ring,
                window_us=window_us,
                count=read.count,
                value=read.value,
                max_age_us=0 if aggregation.window_ms else window_us,
                weight=read.weight,
                element=read.element,
                quantile=aggregation.quantile,
            )
            for read in reads
        ]

    def _ring(self, hop_us: int) -> RingPlan:
        slots = slots_of(self._longest_us[hop_us], hop_us)
        partials: list[Partial] = []
        word = SLOT_PREFIX_WORDS
        for one in self._rings[hop_us]:
            partials.append(Partial(one.kind, one.dtype, one.input, word, one.size, one.half_life_us, one.beside))
            word += partials[-1].words
        pointers = [pointer for partial in partials for pointer in partial.pointers]
        raw = None
        if self._view.accuracy == definition.ACCURACY_EXACT:
            raw = self._raw(partials, word)
            pointers.append(word)
            word += 1
        return RingPlan(
            hop_us,
            slots,
            tuple(partials),
            self._fingerprint(hop_us, slots, raw),
            slot_words=word,
            words=HEADER_WORDS + slots * word,
            pointers=tuple(pointers),
            raw=raw,
            ahead_us=self._stream.max_future_ms * 1000,
        )

    def _raw(self, partials: Sequence[Partial], word: int) -> RawPlan:
        """Return what an exact ring's slots keep of their events; expressions that inputs share are kept once."""
        inputs = sorted({partial.input for partial in partials})
        columns: dict[str, tuple[int, Dtype]] = {}
        column_of = []
        for number in inputs:
            expression = self._inputs.all[number].expression
            if expression is None:
                column_of.append(-1)
                continue
            columns.setdefault(expression.canonical, (number, dtype_of(expression.type)))
            column_of.append(list(columns).index(expression.canonical))
        raw = RawPlan(word, tuple(inputs), tuple(column_of), tuple(columns.values()), 0)
        strings = sum(dtype is Dtype.STRING for _, dtype in raw.columns)
        event_bytes = raw.row_words * WORD_BYTES + strings * NOMINAL_STRING_BYTES
        return replace(raw, room_bytes=(self._view.edge_events or EDGE_EVENTS) * event_bytes)

    def _fingerprint(self, hop_us: int, slots: int, raw: RawPlan | None) -> int:
        """Return a number that differs wherever bytes of one layout would be misread under another."""
        parts: list[str] = [str(hop_us), str(slots)]
        for one in self._rings[hop_us]:
            part = self._inputs.all[one.input]
            # Partials without a size or a half-life are spelt as they were before there were any: their shards are
            # the same bytes.
            options = f":{one.size}:{one.half_life_us}" if one.size or one.half_life_us else ""
            parts.append(f"{int(one.kind)}:{int(one.dtype)}:{list(part.key)!r}{options}")
        if raw is not None:
            parts.append(f"raw:{raw.room_bytes}")
        return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "little", signed=True)

    def _check_budget(self, plan: ViewPlan) -> None:
        budget = self._view.budget_bytes or DEFAULT_BUDGET_BYTES
        if plan.max_bytes_per_key > budget:
            exact = self._view.accuracy == definition.ACCURACY_EXACT
            fewer = "keep fewer raw events (edge_events)" if exact else "drop sketches"
            raise PlanError(
                f"view {plan.name!r} needs up to {plan.max_bytes_per_key:,} bytes for an entity with events in one "
                f"partition; its budget is {budget:,}: shorten windows, {fewer}, or give the view a larger one, as "
                'budget="512KiB"'
            )

    def _refuse(self, aggregation: definition.Aggregation, why: str) -> NoReturn:
        raise PlanError(f"view {self._view.name!r}: feature {aggregation.name!r} {why}")
