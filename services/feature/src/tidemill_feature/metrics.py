"""The feature service's metrics."""

from tidemill_runtime.metrics import counter, gauge, histogram

_SMALL = (1, 10, 100, 1_000, 10_000, 100_000)

records = gauge(
    "feature_records", "Records of a stream since the start, by what became of them.", ("stream", "verdict")
)
view_events = gauge(
    "feature_view_events",
    "Events of a view since the start, by what became of them: folded, null_keys; and once for each ring that left one "
    "out, too_late (a newer bucket had its slot) or overtaken (one took it within the same batch, as in a backlog).",
    ("view", "verdict"),
)
shards_written = counter("feature_shards_written", "Shards written to Redis.")
shards_loaded = counter("feature_shards_loaded", "Shards read from Redis because they were not in memory.")
shards_held = gauge("feature_shards_held", "Shards in memory.", ("view",))
identities_held = gauge("feature_identities_held", "Identities remembered for deduplication.", ("stream",))
identities_cut_short = gauge(
    "feature_identities_cut_short",
    "Identities forgotten within the deduplication window since the assignment, as too many records came after them.",
    ("stream",),
)
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
read_hop_accuracy = counter(
    "feature_read_hop_accuracy",
    "Values of exact views that were read at hop accuracy, since a bucket held more events than are kept.",
    ("view",),
)
archive_rows = counter("feature_archive_rows", "Rows appended to the offline log.", ("topic",))
archive_commits = counter("feature_archive_commits", "Snapshots committed to the offline log.", ("topic",))
archive_conflicts = counter("feature_archive_conflicts", "Commits refused because another writer was first.")
archive_refused = counter("feature_archive_refused", "Records left out of the offline log as poison.", ("topic",))
archive_set_aside = counter(
    "feature_archive_set_aside", "Tables of the offline log set aside since their topic was made anew.", ("topic",)
)
archive_cut = counter(
    "feature_archive_cut_rows", "Rows of the offline log given up since Kafka has lost their records.", ("topic",)
)
archive_seconds = histogram("feature_archive_commit_seconds", "One commit of one table of the offline log.")
archive_merged = counter("feature_archive_merged_files", "Small files of the offline log merged.", ("topic",))
archive_expired = counter("feature_archive_expired_snapshots", "Snapshots of the offline log let go.", ("topic",))
archive_deleted = counter(
    "feature_archive_deleted_files", "Files of the offline log deleted since no snapshot names them.", ("topic",)
)
archive_upkeep_seconds = histogram("feature_archive_upkeep_seconds", "One round of upkeep of one table.")
archive_buffered = gauge("feature_archive_buffered_rows", "Rows taken in and not yet committed to the offline log.")
skew_compared = counter(
    "feature_skew_compared", "Served values that were compared with the offline log.", ("pipeline", "view")
)
skew_differing = counter(
    "feature_skew_differing", "Served values that differ from what the offline log gives.", ("pipeline", "view")
)
skew_share = gauge(
    "feature_skew_share", "Share of differing values in the last period that was measured.", ("pipeline", "feature")
)
skew_left_out = counter(
    "feature_skew_left_out", "Sampled predictions that could not be compared.", ("pipeline", "reason")
)
skew_seconds = histogram("feature_skew_seconds", "One comparison of a pipeline's sample with the offline log.")
skew_failed = counter("feature_skew_failed", "Comparisons that ended in an error; the log says which.", ("pipeline",))
