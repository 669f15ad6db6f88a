"""What a windowed feature is, in plain Python over all events: the specification that engines are compared with.

It knows nothing of Tidemill's code. Integers, extremes, counts, first and last values are exact; a float sum is given
twice: as a fraction, and with the rounding of the order that the stored format lays down. Where that leaves the range
of floats, or a sum of integers that of int64, the sum and its mean are null. Variance, skew and decayed sums are
fractions or decimals of fifty digits; distinct counts, quantiles and top-k are those of all values.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from math import inf, isfinite
from typing import Any


@dataclass(frozen=True)
class Logged:
    """One record of a stream's log; `fields` are the event's."""

    partition: int
    offset: int
    event_us: int
    identity: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """One aggregation: its window, the ring that holds it, and its expression and predicate as functions of the fields.

    `exact_age`: a last without a window of its own, whose value must be no older than `window_us` to the microsecond.
    `edge_events`: the window is exact, and cut where a bucket of a partition has at most so many events; 0: it moves in
    hops. `ahead_us`: what lies after the read by no more than this may count in the bucket of its instant.
    """

    name: str
    function: str
    window_us: int
    hop_us: int
    slots: int
    value: Callable[[dict[str, Any]], Any] | None = None
    where: Callable[[dict[str, Any]], Any] | None = None
    exact_age: bool = False
    element: int = 0
    edges: tuple[float, ...] = ()
    quantile: float = 0.0
    half_life_us: int = 0
    edge_events: int = 0
    ahead_us: int = 0


@dataclass(frozen=True)
class Answer:
    """A status and a value; `exact` is the value without rounding, where they may differ.

    `scale`: the largest magnitude that went into it; `coarse`: of an exact window, one that could not be cut.
    """

    status: str
    value: Any = None
    exact: Fraction | None = None
    scale: float = 0.0
    coarse: bool = False


def counted(log: Iterable[Logged], dedup_us: int, lateness_us: int, *, late_counts: bool) -> list[Logged]:
    """Return the records that count: no duplicates, and no late ones unless the policy is to correct."""
    kept: list[Logged] = []
    newest: dict[int, int] = {}
    times: dict[tuple[int, str], int] = {}
    for record in sorted(log, key=lambda record: (record.partition, record.offset)):
        before = newest.get(record.partition, record.event_us)
        seen = times.get((record.partition, record.identity))
        duplicate = seen is not None and seen >= before - dedup_us
        late = record.event_us < before - lateness_us
        times[record.partition, record.identity] = record.event_us
        newest[record.partition] = max(before, record.event_us)
        if not duplicate and (late_counts or not late):
            kept.append(record)
    return kept


def brute_force(wanted: Wanted, events: Iterable[Logged], as_of_us: int, max_age_us: int) -> Answer:
    """Return a feature of one entity from its events that count and lie before the cut."""
    events = list(events)
    if not events:
        return Answer("NOT_FOUND")
    if max(event.event_us for event in events) < as_of_us - max_age_us:
        return Answer("OUTSIDE_MAX_AGE", 0 if wanted.function in _COUNTING else None)
    newest, first = max(event.event_us for event in events), as_of_us - wanted.window_us
    if newest // wanted.hop_us - first // wanted.hop_us >= wanted.slots:
        return Answer("BEYOND_KEPT")
    if not wanted.edge_events:
        return _aggregated(wanted, _taken(wanted, _covered(wanted, events, as_of_us)), as_of_us)
    inside, coarse = _exactly(wanted, events, as_of_us)
    return replace(_aggregated(wanted, _taken(wanted, inside), as_of_us), coarse=coarse)


def _aggregated(wanted: Wanted, values: list[tuple[Logged, Any]], as_of_us: int) -> Answer:
    if wanted.function in _COUNTING:
        return Answer("PRESENT", _COUNTING[wanted.function](wanted, [value for _, value in values]))
    if not values:
        return Answer("NULL")
    if wanted.function in _OF_EVENTS:
        return _of_events(wanted, values, as_of_us)
    if wanted.function in _OF_VALUES:
        found = _OF_VALUES[wanted.function](wanted, [value for _, value in values])
        return Answer("NULL") if found is None else Answer("PRESENT", found)
    return _calculated(wanted, values, as_of_us)


def _rate(wanted: Wanted, values: list[Any]) -> float:
    return len(values) / (wanted.window_us / 1_000_000)


def _bin(wanted: Wanted, values: list[Any]) -> int:
    bounds = [float("-inf"), *wanted.edges, float("inf")]
    return sum(bounds[wanted.element] <= value < bounds[wanted.element + 1] for value in values)


_COUNTING: dict[str, Callable[[Wanted, list[Any]], Any]] = {
    "count": lambda _, values: len(values),
    "rate": _rate,
    "histogram": _bin,
    "approx_distinct": lambda _, values: len(set(values)),
}


def _quantile(wanted: Wanted, values: list[Any]) -> Any:
    return sorted(values)[int(Fraction(wanted.quantile) * (len(values) - 1))]


def _top(wanted: Wanted, values: list[Any]) -> Any:
    counts = {value: values.count(value) for value in values}
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    return ranked[wanted.element] if wanted.element < len(ranked) else None


_OF_VALUES: dict[str, Callable[[Wanted, list[Any]], Any]] = {
    "min": lambda _, values: min(values),
    "max": lambda _, values: max(values),
    "quantile": _quantile,
    "top_k": _top,
}
_OF_EVENTS = ("first", "last", "last_k", "time_since_last")


def _of_events(wanted: Wanted, values: list[tuple[Logged, Any]], as_of_us: int) -> Answer:
    ordered = sorted(values, key=lambda pair: (pair[0].event_us, pair[0].partition, pair[0].offset))
    newest, value = ordered[-1]
    if wanted.function == "first":
        return Answer("PRESENT", ordered[0][1])
    if wanted.function == "time_since_last":
        return Answer("PRESENT", max(0, as_of_us - newest.event_us) / 1_000_000)
    if wanted.function == "last_k":
        return Answer("PRESENT", ordered[-1 - wanted.element][1]) if wanted.element < len(ordered) else Answer("NULL")
    if wanted.exact_age and newest.event_us < as_of_us - wanted.window_us:
        return Answer("OUTSIDE_MAX_AGE")
    return Answer("PRESENT", value)


def _calculated(wanted: Wanted, values: list[tuple[Logged, Any]], as_of_us: int) -> Answer:
    numbers = [Fraction(value) for _, value in values]
    total, exact, count = _ordered_sum(values, wanted.hop_us), sum(numbers, Fraction(0)), len(numbers)
    scale = max(abs(float(value)) for _, value in values)
    if wanted.function in ("sum", "mean") and isinstance(total, float) and not isfinite(total):
        return Answer("NULL")
    if wanted.function == "sum":
        return Answer("PRESENT", total, exact, scale)
    if wanted.function == "mean":
        return Answer("PRESENT", total / count, exact / count, scale)
    if wanted.function in ("decayed_sum", "ewma"):
        found = _decayed(wanted, values, as_of_us)
        return Answer("PRESENT", float(found), found, scale)
    second, third = (sum(((number - exact / count) ** power for number in numbers), Fraction(0)) for power in (2, 3))
    if wanted.function == "skew":
        return Answer("PRESENT", _skew(count, second, third), None, scale) if second else Answer("NULL")
    if count < 2:
        return Answer("NULL")
    variance = second / (count - 1)
    return Answer("PRESENT", float(variance) ** 0.5 if wanted.function == "std" else float(variance), variance, scale)


def _decayed(wanted: Wanted, values: list[tuple[Logged, Any]], as_of_us: int) -> Fraction:
    """Return the decayed sum or, of an EWMA, the mean with the same weights."""
    with localcontext(Context(prec=50)):
        ages = [Decimal(as_of_us - event.event_us) / Decimal(wanted.half_life_us) for event, _ in values]
        weights = [Fraction(Decimal(2) ** -age) for age in ages]
    total = sum((weight * Fraction(value) for weight, (_, value) in zip(weights, values, strict=True)), Fraction(0))
    return total / sum(weights, Fraction(0)) if wanted.function == "ewma" else total


def _skew(count: int, second: Fraction, third: Fraction) -> float:
    with localcontext(Context(prec=50)):
        spread = Decimal(second.numerator) / Decimal(second.denominator)
        lean = Decimal(third.numerator) / Decimal(third.denominator)
        return float(Decimal(count).sqrt() * lean / (spread * spread.sqrt()))


def _covered(wanted: Wanted, events: list[Logged], as_of_us: int) -> list[Logged]:
    """Return the events of the buckets that a window covers which moves in hops."""
    held, head = _held(wanted, events, as_of_us), as_of_us // wanted.hop_us
    ahead = {event.partition for event in held if event.event_us > as_of_us + wanted.ahead_us}
    return [event for event in held if event.event_us // wanted.hop_us < head or event.partition not in ahead]


def _exactly(wanted: Wanted, events: list[Logged], as_of_us: int) -> tuple[list[Logged], bool]:
    """Return the events of an exact window, as_of - window < time <= as_of, and whether a bucket could not be cut.

    Of one that has more events than are kept all count, or none where it holds newer ones than `as_of`. A last without
    a window is not cut at its tail: its value's own age decides.
    """
    after_us = None if wanted.exact_age else as_of_us - wanted.window_us
    held = _held(wanted, events, as_of_us)
    found, coarse = [], False
    for place in {(event.event_us // wanted.hop_us, event.partition) for event in held}:
        bucket = [event for event in held if (event.event_us // wanted.hop_us, event.partition) == place]
        inside = [e for e in bucket if e.event_us <= as_of_us and (after_us is None or e.event_us > after_us)]
        newer = any(event.event_us > as_of_us for event in bucket)
        at_tail = after_us is not None and place[0] == after_us // wanted.hop_us
        expired = after_us is not None and all(event.event_us <= after_us for event in bucket)
        if len(bucket) > wanted.edge_events and (newer or at_tail) and not expired:
            coarse = True
            inside = [] if any(event.event_us > as_of_us + wanted.ahead_us for event in bucket) else bucket
        found += inside
    return found, coarse


def _held(wanted: Wanted, events: list[Logged], as_of_us: int) -> list[Logged]:
    """Return the events of the window's buckets that a ring still holds."""
    first, head = (as_of_us - wanted.window_us) // wanted.hop_us, as_of_us // wanted.hop_us
    return [
        event
        for event in events
        if first <= event.event_us // wanted.hop_us <= head
        and not _gave_way(event, events, wanted.hop_us, wanted.slots)
    ]


def _taken(wanted: Wanted, events: list[Logged]) -> list[tuple[Logged, Any]]:
    """Return those of some events that are aggregated, with their values; nulls are left out."""
    found = []
    for event in events:
        if wanted.where and wanted.where(event.fields) is not True:
            continue
        value = 1 if wanted.value is None else wanted.value(event.fields)
        if value is not None:
            found.append((event, value))
    return found


def _gave_way(event: Logged, events: list[Logged], hop_us: int, slots: int) -> bool:
    """Say whether a newer bucket of the same partition took the event's slot."""
    bucket = event.event_us // hop_us
    others = (other.event_us // hop_us for other in events if other.partition == event.partition)
    return any(other > bucket and (other - bucket) % slots == 0 for other in others)


def _ordered_sum(values: list[tuple[Logged, Any]], hop_us: int) -> Any:
    """Return the sum in the format's order: by offset within (bucket, partition), then over those, sorted."""
    slots: dict[tuple[int, int], Any] = {}
    for event, value in sorted(values, key=lambda pair: (pair[0].partition, pair[0].offset)):
        slot = (event.event_us // hop_us, event.partition)
        slots[slot] = _plus(slots.get(slot, 0), value)
    total: Any = 0
    for slot in sorted(slots):
        total = _plus(total, slots[slot])
    return total


def _plus(left: Any, right: Any) -> Any:
    """Add; a sum of integers is infinite, and stays so, where it or what is added lies beyond ±(2^63 − 1)."""
    total = left + right
    return inf if isinstance(total, int) and max(abs(total), abs(right)) >= 2**63 else total
