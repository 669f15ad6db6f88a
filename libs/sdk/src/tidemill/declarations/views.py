"""Feature views: aggregations over windows of a stream, kept per entity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidemill.declarations.events import Event
from tidemill.declarations.origin import Origin, here
from tidemill.declarations.unsupported import Unsupported, unsupported


@dataclass(frozen=True)
class Aggregation:
    """One feature of a view, or several that are named `name.0`, `name.1`, …; `window` is None only for `last`."""

    function: str
    expression: str | None
    window: "str | Unsupported | None"
    where: str | None = None
    k: int | None = None
    quantile: float | None = None
    edges: Sequence[float] = ()
    half_life: str | None = None
    origin: Origin = field(default_factory=here, repr=False)


Window = str | Unsupported
# Refused with its reason wherever a window is wanted.
Session = unsupported(
    "tm.Session",
    "a session's bounds hang on every other event of the entity, so that late events merge and split sessions that "
    'rings cannot keep; use a window such as "30m", or tm.time_since_last',
)


def count(window: Window, *, where: str | None = None) -> Aggregation:
    """How many events."""
    return Aggregation("count", None, window, where)


def rate(window: Window, *, where: str | None = None) -> Aggregation:
    """Events per second."""
    return Aggregation("rate", None, window, where)


def time_since_last(window: Window, *, where: str | None = None) -> Aggregation:
    """Seconds since the newest event; null where the window holds none."""
    return Aggregation("time_since_last", None, window, where)


def sum(expression: str, window: Window, *, where: str | None = None) -> Aggregation:  # noqa: A001 - the field's word
    """Sum of the values that are not null; null without any."""
    return Aggregation("sum", expression, window, where)


def mean(expression: str, window: Window, *, where: str | None = None) -> Aggregation:
    """Mean of the values that are not null."""
    return Aggregation("mean", expression, window, where)


def share(condition: str, window: Window, *, where: str | None = None) -> Aggregation:
    """Share of the events that meet a condition, of those where it is not null."""
    return Aggregation("share", condition, window, where)


def min(expression: str, window: Window, *, where: str | None = None) -> Aggregation:  # noqa: A001 - the field's word
    """Smallest value."""
    return Aggregation("min", expression, window, where)


def max(expression: str, window: Window, *, where: str | None = None) -> Aggregation:  # noqa: A001 - the field's word
    """Largest value."""
    return Aggregation("max", expression, window, where)


def variance(expression: str, window: Window, *, where: str | None = None) -> Aggregation:
    """Variance of the sample (over n − 1); null below two values."""
    return Aggregation("variance", expression, window, where)


def std(expression: str, window: Window, *, where: str | None = None) -> Aggregation:
    """Standard deviation of the sample (over n − 1); null below two values."""
    return Aggregation("std", expression, window, where)


def skew(expression: str, window: Window, *, where: str | None = None) -> Aggregation:
    """Skew of the population; null where all values are equal."""
    return Aggregation("skew", expression, window, where)


def first(expression: str, window: Window, *, where: str | None = None) -> Aggregation:
    """Oldest value in the window that is not null."""
    return Aggregation("first", expression, window, where)


def last(expression: str, window: Window | None = None, *, where: str | None = None) -> Aggregation:
    """Newest value that is not null; without a window the view's `max_age` bounds it."""
    return Aggregation("last", expression, window, where)


def last_k(expression: str, k: int, window: Window, *, where: str | None = None) -> Aggregation:
    """Newest k values, as features `name.0` (newest), `name.1`, …"""
    return Aggregation("last_k", expression, window, where, k=k)


def histogram(expression: str, edges: Sequence[float], window: Window, *, where: str | None = None) -> Aggregation:
    """Counts by value: `name.0` below the first edge, `name.1` from the first to below the second, …"""
    return Aggregation("histogram", expression, window, where, edges=edges)


def decayed_sum(
    expression: str, half_life: str, window: Window | None = None, *, where: str | None = None
) -> Aggregation:
    """Sum in which each value halves with every half-life; without a window over the last 16 half-lives."""
    return Aggregation("decayed_sum", expression, window, where, half_life=half_life)


def ewma(expression: str, half_life: str, window: Window | None = None, *, where: str | None = None) -> Aggregation:
    """Mean in which the weight of each value halves with every half-life; without a window over the last 16."""
    return Aggregation("ewma", expression, window, where, half_life=half_life)


def approx_distinct(expression: str, window: Window, *, where: str | None = None) -> Aggregation:
    """How many different values, with a standard error of 2.3 % (exact up to about 190)."""
    return Aggregation("approx_distinct", expression, window, where)


def quantile(expression: str, q: float, window: Window, *, where: str | None = None) -> Aggregation:
    """The q-quantile, within 1 % of the exact value."""
    return Aggregation("quantile", expression, window, where, quantile=q)


def top_k(expression: str, k: int, window: Window, *, where: str | None = None) -> Aggregation:
    """Most frequent k values, as features `name.0` (most frequent), `name.1`, …"""
    return Aggregation("top_k", expression, window, where, k=k)


@dataclass(frozen=True)
class View:
    """Features of one stream per entity, `by` one of its fields or several.

    `accuracy`: "hop", whose windows are up to one hop longer than declared, or "exact", whose windows hold the events
    at as_of - window < time <= as_of. For that up to `edge_events` (128) raw events are kept of each hop; a value that
    a hop with more would decide is as accurate as a hop, and says so.

    `budget`: the most memory that one entity with events in one partition may take, such as "64KiB".
    """

    name: str
    source: type[Event]
    by: str | Sequence[str]
    features: Mapping[str, Aggregation | Unsupported]
    max_age: str | None = None
    accuracy: str = "hop"
    budget: str | None = None
    edge_events: int | None = None
    origin: Origin = field(default_factory=here, repr=False)

    def on(self, *fields: str) -> "Lookup":
        """Return every feature of this view, looked up by these fields of the request."""
        return Lookup(self, fields)


@dataclass(frozen=True)
class Lookup:
    """A view seen from a request."""

    view: View
    fields: tuple[str, ...]
    origin: Origin = field(default_factory=here, repr=False)
