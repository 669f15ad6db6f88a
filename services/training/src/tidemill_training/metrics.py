"""Training's metrics."""

from tidemill_runtime import metrics

requests_taken = metrics.counter("training_requests", "Retrain requests by what became of them.", ("outcome",))
runs_ended = metrics.counter("training_runs_ended", "Runs that ended, by how.", ("status",))
attempts_ended_early = metrics.counter("training_attempts_ended_early", "Attempts whose process gave no answer.")
records_dropped = metrics.counter(
    "training_records_dropped",
    "Records of how far a run is that Kafka did not take in time; the last one always waits.",
)
runs_waiting = metrics.gauge("training_runs_waiting", "Runs that wait for a peer or for their next attempt.")
attempt_seconds = metrics.histogram(
    "training_attempt_seconds",
    "From a process's spec to its answer.",
    buckets=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0),
)
