"""Prometheus metrics: each declared once, with what it means; label values are bounded."""

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

# Hops are milliseconds; a cold start or a recovering store is seconds.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_MAX_VALUES = 500
OTHER = "other"


class Bounded:
    """Keeps the number of values of one label finite: what comes after the first `limit` is `other`."""

    def __init__(self, limit: int = _MAX_VALUES) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(value)
        return value


def counter(name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    """Declare a counter `tidemill_<name>`; documentation is required."""
    return Counter(f"tidemill_{name}", _documented(name, documentation), labels)


def gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    """Declare a gauge `tidemill_<name>`."""
    return Gauge(f"tidemill_{name}", _documented(name, documentation), labels)


def histogram(
    name: str, documentation: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
) -> Histogram:
    """Declare a histogram `tidemill_<name>`; the default buckets are seconds."""
    return Histogram(f"tidemill_{name}", _documented(name, documentation), labels, buckets=buckets)


def _documented(name: str, documentation: str) -> str:
    if not documentation.strip():
        raise ValueError(f"metric {name} says nothing of what it means")
    return documentation


stream_records = counter("stream_records", "Records that the stream runner applied.", ("group", "topic"))
stream_retries = counter("stream_retries", "Attempts repeated because the world was not ready.", ("group",))
stream_batch_seconds = histogram(
    "stream_batch_seconds", "From a batch's delivery to its effects being durable.", ("group",)
)
stream_lag = gauge("stream_lag_records", "Records delivered to the log and not yet applied.", ("group", "topic"))
stream_lost = counter(
    "stream_lost_records", "Records that retention removed before the group read them.", ("group", "topic")
)
dead_letters = counter("dead_letters", "Records sent to a dead-letter topic.", ("group", "topic", "reason"))
dead_letters_cut = counter(
    "dead_letters_cut", "Dead letters written without their record's value, which does not fit.", ("group", "topic")
)
produced = counter("produced_records", "Records acknowledged by Kafka.", ("topic",))
produce_failures = counter("produce_failures", "Records that Kafka did not acknowledge.", ("topic",))
outbox_relayed = counter("outbox_relayed", "Outbox rows acknowledged by Kafka.", ("topic",))
outbox_waiting = gauge("outbox_waiting_rows", "Outbox rows not yet acknowledged by Kafka.", ("schema",))
rpc_seconds = histogram("rpc_seconds", "Time to answer one gRPC call.", ("method", "code"))
rpc_refused = counter("rpc_refused", "gRPC calls refused, by named reason.", ("method", "reason"))
http_refused = counter("http_refused", "HTTP requests refused, by named reason.", ("reason",))
rpc_in_flight = gauge("rpc_in_flight", "gRPC calls being answered now.")
