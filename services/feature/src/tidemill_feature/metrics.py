"""The feature service's metrics."""

from tidemill_runtime.metrics import counter, gauge, histogram

_SMALL = (1, 10, 100, 1_000, 10_000, 100_000)

records = gauge(
    "feature_records", "Records of a stream since the start, by what became of them.", ("stream", "verdict")
)
view_events = gauge(
    "feature_view_events", "Events of a view since the start, by what became of them.", ("view", "verdict")
)
shards_written = counter("feature_shards_written", "Shards written to Redis.")
shards_loaded = counter("feature_shards_loaded", "Shards read from Redis because they were not in memory.")
shards_held = gauge("feature_shards_held", "Shards in memory.", ("view",))
identities_held = gauge("feature_identities_held", "Identities remembered for deduplication.", ("stream",))
flush_seconds = histogram("feature_flush_seconds", "One conditional flush of shards and checkpoints to Redis.")
flush_refused = counter("feature_flush_refused", "Flushes that Redis refused because its checkpoint was another.")
replayed = counter("feature_replayed_records", "Records to be replayed because Redis had lost them.")
topics_replaced = counter(
    "feature_topics_replaced",
    "Times a stream's log was found to be another one, so that its views were built anew.",
    ("stream",),
)
build_records = counter("feature_build_records", "Events read to build views beside what is folded.", ("stream",))
build_remaining = gauge(
    "feature_build_remaining_records",
    "Records until views that are being built have caught up.",
    ("stream", "partition"),
)
shards_expired = counter("feature_shards_expired", "Shards left to expire, of views and builds no longer folded.")
read_seconds = histogram("feature_read_seconds", "One read of features: the trip to Redis and the merge.")
read_rows = histogram("feature_read_rows", "Entities of one read.", buckets=_SMALL)
archive_rows = counter("feature_archive_rows", "Rows appended to the offline log.", ("topic",))
archive_commits = counter("feature_archive_commits", "Snapshots committed to the offline log.", ("topic",))
archive_conflicts = counter("feature_archive_conflicts", "Commits refused because another writer was first.")
archive_refused = counter("feature_archive_refused", "Records left out of the offline log as poison.", ("topic",))
archive_seconds = histogram("feature_archive_commit_seconds", "One commit of one table of the offline log.")
archive_buffered = gauge("feature_archive_buffered_rows", "Rows taken in and not yet committed to the offline log.")
