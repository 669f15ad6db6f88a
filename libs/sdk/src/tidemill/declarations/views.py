"""Feature views: aggregations over windows of a stream, kept per entity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidemill.declarations.events import Event
from tidemill.declarations.origin import Origin, here
from tidemill.declarations.unsupported import Unsupported, unsupported


@dataclass(frozen=True)
class Aggregation:
    """One feature of a view; `window` is None only for `last`."""

    function: str
    expression: str | None
    window: str | None
    where: str | None
    origin: Origin = field(default_factory=here)


def count(window: str, *, where: str | None = None) -> Aggregation:
    """How many events."""
    return Aggregation("count", None, window, where)


def sum(expression: str, window: str, *, where: str | None = None) -> Aggregation:  # noqa: A001 - the field's word
    """Sum of the values that are not null; null without any."""
    return Aggregation("sum", expression, window, where)


def mean(expression: str, window: str, *, where: str | None = None) -> Aggregation:
    """Mean of the values that are not null; of a condition, the share of events that meet it."""
    return Aggregation("mean", expression, window, where)


def min(expression: str, window: str, *, where: str | None = None) -> Aggregation:  # noqa: A001 - the field's word
    """Smallest value."""
    return Aggregation("min", expression, window, where)


def max(expression: str, window: str, *, where: str | None = None) -> Aggregation:  # noqa: A001 - the field's word
    """Largest value."""
    return Aggregation("max", expression, window, where)


def last(expression: str, window: str | None = None, *, where: str | None = None) -> Aggregation:
    """Newest value that is not null; without a window the view's `max_age` bounds it."""
    return Aggregation("last", expression, window, where)


_INSTEAD = "there are count, sum, mean, min, max and last"
variance = unsupported("tm.variance", _INSTEAD)
std = unsupported("tm.std", _INSTEAD)
first = unsupported("tm.first", _INSTEAD)
last_k = unsupported("tm.last_k", _INSTEAD)
approx_distinct = unsupported("tm.approx_distinct", _INSTEAD)
quantile = unsupported("tm.quantile", _INSTEAD)
top_k = unsupported("tm.top_k", _INSTEAD)
histogram = unsupported("tm.histogram", _INSTEAD)
rate = unsupported("tm.rate", _INSTEAD)
ewma = unsupported("tm.ewma", _INSTEAD)


@dataclass(frozen=True)
class View:
    """Features of one stream per entity, `by` one of its fields or several."""

    name: str
    source: type[Event]
    by: str | Sequence[str]
    features: Mapping[str, Aggregation | Unsupported]
    max_age: str | None = None
    accuracy: str = "hop"
    origin: Origin = field(default_factory=here)

    def on(self, *fields: str) -> "Lookup":
        """Return every feature of this view, looked up by these fields of the request."""
        return Lookup(self, fields)


@dataclass(frozen=True)
class Lookup:
    """A view seen from a request."""

    view: View
    fields: tuple[str, ...]
    origin: Origin = field(default_factory=here)
