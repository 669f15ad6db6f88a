"""What serving counts; label values are bounded by the number of registered pipelines."""

from tidemill_runtime.metrics import counter, gauge, histogram

predictions = counter(
    "serving_predictions", "Predictions answered, by the role of the version that answered.", ("pipeline", "role")
)
refused_rows = counter("serving_refused_rows", "Requests and batch rows refused, by named reason.", ("reason",))
batch_rows = histogram(
    "serving_micro_batch_rows", "Rows scored together.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
)
feature_read_seconds = histogram("serving_feature_read_seconds", "One trip to Redis for all features of a micro-batch.")
reads_behind = counter(
    "serving_reads_behind", "Reads that lagged behind positions already seen, since Redis had lost writes."
)
score_seconds = histogram("serving_score_seconds", "All versions scoring a micro-batch.", ("pipeline",))
deployments = counter(
    "serving_deployments",
    "Deployments taken up: served, refused, unreachable (waiting for a bundle), or views_building.",
    ("pipeline", "outcome"),
)
log_waiting = gauge("serving_log_waiting_records", "Predictions answered and not yet acknowledged by Kafka (ASYNC).")
log_dropped = counter("serving_log_dropped_records", "ASYNC prediction records dropped because the queue was full.")
hop_accuracy = counter(
    "serving_hop_accuracy_values",
    "Values of exact views used at hop accuracy, since a bucket held more events than are kept.",
    ("pipeline",),
)
feature_status = counter("serving_feature_values", "Feature values used, by status.", ("pipeline", "status"))
