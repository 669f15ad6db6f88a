"""Monitoring's own Prometheus metrics, beside the runtime's."""

from tidemill_runtime.metrics import counter, gauge

outcomes = counter("monitoring_outcomes", "Outcomes by state: labelled, never, assumed, corrected.", ("state",))
behind = gauge("monitoring_unpublished_records", "Records committed to PostgreSQL and not yet known to be in Kafka.")
lost = counter(
    "monitoring_lost_predictions", "Predictions that serving numbered for its ASYNC log and whose record never came."
)
decisions = counter("monitoring_decisions", "Decisions of the retraining policy.", ("kind", "outcome"))
faulty = gauge(
    "monitoring_faulty_pipelines",
    "Registered pipelines that are not joined, since their label cannot be read; the log names them.",
)
