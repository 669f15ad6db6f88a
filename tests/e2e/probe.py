"""A pipeline that hears only bad news: every type of field, small bounds, and never enough events for a model."""

from datetime import datetime

import tidemill as tm


class Probe(
    tm.Event,
    stream="probe",
    key="probe_id",
    time="seen_at",
    lateness="1m",
    late="dead-letter",
    max_event_bytes=2048,
    partitions=1,
):
    probe_id: str
    tries: int
    level: float
    sound: bool
    note: str | None
    seen_at: datetime


class Verdict(tm.Event, stream="probe-verdict", key="probe_id", time="told_at", partitions=1):
    probe_id: str
    level: float
    told_at: datetime


probes = tm.View(
    "probes",
    Probe,
    by="probe_id",
    features={"seen_1h": tm.count("1h"), "tries_1h": tm.sum("tries", "1h"), "level_1h": tm.max("level", "1h")},
)

probing = tm.Pipeline(
    "probing",
    request=Probe,
    features={"probe": probes.on("probe_id"), "level": "level"},
    label=tm.Label(Verdict, "level > 1", by="probe_id", wait="1h"),
    learner=tm.XGBoost(n_estimators=10),
    train=tm.Train(window="1d", min_rows=1_000),
    gates=[tm.AtLeast("roc_auc", 0.5)],
    rollout=[tm.Shadow("1h")],
    monitors=[tm.Performance("log_loss", limit=0.05)],
    retrain=tm.Retrain(on=[tm.Every("28d")], cooldown="1d", budget="1 per 90d"),
)
