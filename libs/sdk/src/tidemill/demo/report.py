"""The demo's report: what happened in the year, adaptive beside static, as plain data."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tidemill_models.evaluation import log_loss, roc_auc

from tidemill.demo.flights import DAY_US
from tidemill.demo.outcomes import Scored

WEEK_US = 7 * DAY_US
# 1 January 1970 was a Thursday; weeks begin on Monday.
MONDAY_US = -3 * DAY_US
# What a second run may not repeat: how long things took, and what was logged again because a call was.
PASSING_KEYS = frozenset(
    {"seconds", "events_per_s", "peak_rss_mb", "retries", "predictions_logged"}
    | {"emitted_at", "started_at", "finished_at"}
)
# A bundle is named by its bytes, which tell the code and the environment that made it.
ID_KEYS = frozenset({"incident_id", "request_id", "run_id", "cause_id", "alert_id", "bundle", "manifest_hash"})

Floats = NDArray[np.float64]


def scores(label: Floats, adaptive: Floats, static: Floats) -> dict[str, dict[str, float | None]]:
    """Return log loss and AUC of both models; None where they are undefined (no rows, or one class only)."""

    def measure(probability: Floats) -> tuple[float | None, float | None]:
        both_classes = 0 < label.sum() < len(label)
        loss = float(log_loss(label, probability)) if len(label) else None
        return loss, float(roc_auc(label, probability)) if both_classes else None

    adaptive_loss, adaptive_auc = measure(adaptive)
    static_loss, static_auc = measure(static)
    return {
        "log_loss": {"adaptive": adaptive_loss, "static": static_loss},
        "roc_auc": {"adaptive": adaptive_auc, "static": static_auc},
    }


def week_name(start_us: int) -> str:
    """Return the date of the week's Monday."""
    return datetime.fromtimestamp(start_us // 1_000_000, UTC).strftime("%Y-%m-%d")


def weekly(scored: Scored) -> list[dict[str, Any]]:
    """Return one entry per week of the prediction's as_of."""
    week = (scored.as_of_us - MONDAY_US) // WEEK_US
    entries = []
    for number in np.unique(week):
        rows = week == number
        measured = scores(scored.label[rows], scored.adaptive[rows], scored.static[rows])
        entries.append(
            {
                "week": week_name(int(number) * WEEK_US + MONDAY_US),
                "adaptive": {metric: value["adaptive"] for metric, value in measured.items()},
                "static": {metric: value["static"] for metric, value in measured.items()},
                "labels": int(rows.sum()),
            }
        )
    return entries


def evidence_chain(
    incidents: Iterable[Mapping[str, Any]], runs: Iterable[Mapping[str, Any]], deployments: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return incident, run and deployments of the first incident that led to a promotion; empty without one."""
    runs, deployments = list(runs), list(deployments)
    for incident in incidents:
        request = incident.get("action", {}).get("request_id")
        caused = [change for change in deployments if request and change.get("cause_id") == request]
        if any(change.get("change") == "promoted" for change in caused):
            return [incident, *(run for run in runs if run.get("request_id") == request), *caused]
    return []


def comparable(report: Any) -> Any:
    """Return the report without ids and wall times: two runs of the same data agree on the rest."""
    if isinstance(report, dict):
        return {
            key: comparable(value) for key, value in report.items() if key not in PASSING_KEYS and key not in ID_KEYS
        }
    if isinstance(report, list):
        return [comparable(value) for value in report]
    return report
