"""What a windowed feature is, in plain Python over all events: the specification that engines are compared with.

It knows nothing of Tidemill's code. Integers, extremes, counts and last values are exact; a float sum is given twice:
as a fraction, and with the rounding of the order that the stored format lays down.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
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
    """

    name: str
    function: str
    window_us: int
    hop_us: int
    slots: int
    value: Callable[[dict[str, Any]], Any] | None = None
    where: Callable[[dict[str, Any]], Any] | None = None
    exact_age: bool = False


@dataclass(frozen=True)
class Answer:
    """A status and a value; `exact` is the value without rounding, where they may differ."""

    status: str
    value: Any = None
    exact: Fraction | None = None


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
    values = _inside(wanted, events, as_of_us)
    if max(event.event_us for event in events) < as_of_us - max_age_us:
        return Answer("OUTSIDE_MAX_AGE", 0 if wanted.function == "count" else None)
    if wanted.function == "count":
        return Answer("PRESENT", len(values))
    if not values:
        return Answer("NULL")
    if wanted.function == "last":
        newest, value = max(values, key=lambda pair: (pair[0].event_us, pair[0].partition, pair[0].offset))
        if wanted.exact_age and newest.event_us < as_of_us - wanted.window_us:
            return Answer("OUTSIDE_MAX_AGE")
        return Answer("PRESENT", value)
    if wanted.function in ("min", "max"):
        chosen = min if wanted.function == "min" else max
        return Answer("PRESENT", chosen(value for _, value in values))
    total, exact = _ordered_sum(values, wanted.hop_us), sum((Fraction(value) for _, value in values), Fraction(0))
    if wanted.function == "sum":
        return Answer("PRESENT", total, exact)
    return Answer("PRESENT", total / len(values), exact / len(values))


def _inside(wanted: Wanted, events: list[Logged], as_of_us: int) -> list[tuple[Logged, Any]]:
    """Return the events in the window, with their values; nulls are left out."""
    hop_us = wanted.hop_us
    first, head = (as_of_us - wanted.window_us) // hop_us, as_of_us // hop_us
    ahead = {event.partition for event in events if event.event_us > as_of_us}
    found = []
    for event in events:
        bucket = event.event_us // hop_us
        if not first <= bucket <= head or (bucket == head and event.partition in ahead):
            continue
        if _gave_way(event, events, hop_us, wanted.slots) or (wanted.where and wanted.where(event.fields) is not True):
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
        slots[slot] = slots.get(slot, 0) + value
    total: Any = 0
    for slot in sorted(slots):
        total += slots[slot]
    return total
