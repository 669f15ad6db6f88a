"""What ingestion measures, beside what every service does."""

from tidemill_runtime.metrics import Bounded, counter, gauge

# Fields of all streams; further ones have no gauges of their own, but stand in the operators' messages.
_MAX_FIELDS = 1_000

events = counter(
    "ingestion_events",
    "Events by stream, outcome and, where not accepted, named reason.",
    ("stream", "outcome", "reason"),
)
in_flight = gauge("ingestion_in_flight_bytes", "HTTP bodies being read and event data not yet acknowledged by Kafka.")
flows = gauge("ingestion_streaming_requests", "Streaming requests being answered now, over both doors.")
identities = gauge("ingestion_identities_held", "Identities (source, id) remembered to tell repeats.", ("stream",))
forgotten = counter(
    "ingestion_identities_forgotten",
    "Identities dropped for want of room while still in the window: a repeat of them is written again.",
    ("stream",),
)
paused = gauge("ingestion_stream_paused", "1 while the stream is paused for its share of bad records.", ("stream",))
pauses = counter("ingestion_stream_pauses", "How often the stream was paused.", ("stream",))
bridged = counter(
    "ingestion_bridged_records", "Records of producers' own topics, by stream and outcome.", ("stream", "outcome")
)
rate = gauge("ingestion_quality_rate", "Accepted events per second in the last hop.", ("stream",))
freshness = gauge(
    "ingestion_quality_freshness_seconds", "How far the newest event time accepted lies behind the clock.", ("stream",)
)
refused_share = gauge("ingestion_quality_refused_share", "Share of events refused in the last hop.", ("stream",))
duplicate_share = gauge("ingestion_quality_duplicate_share", "Share of repeats in the last hop.", ("stream",))
late_share = gauge("ingestion_quality_late_share", "Share of accepted events too late, in the last hop.", ("stream",))
null_share = gauge("ingestion_quality_null_share", "Share of nulls in the last hop.", ("stream", "field"))
distinct = gauge("ingestion_quality_distinct_values", "Distinct values in the last hop, about.", ("stream", "field"))
low = gauge("ingestion_quality_min", "Smallest number in the last hop.", ("stream", "field"))
high = gauge("ingestion_quality_max", "Largest number in the last hop.", ("stream", "field"))
unreported = counter("ingestion_quality_unreported", "Operators' messages about quality that Kafka did not take.")

# One for all metrics, so that a stream has the same label everywhere.
stream_label = Bounded()
field_label = Bounded(_MAX_FIELDS)
