"""monitor: how a pipeline does, in one look."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from tidemill_contracts.canonical import to_dict
from tidemill_contracts.instants import format_us, from_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as records
from tidemill_contracts.monitoring.v1.monitoring_pb2 import GetJoinStatsResponse

from tidemill.cli.answers import answering
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Monitoring, StackName, Target
from tidemill.clients.monitoring import MonitoringClient

WINDOW, ROLLOUT = "window", "rollout"
# Every hour of a rollout has a record, every day one of each version.
_RECENT = 200
_INCIDENTS = 5
_NAMED = 3
HOUR_US = 3_600_000_000
_FIGURES = ("log_loss", "roc_auc", "calibration_error", "label_rate", "prediction_mean", "coverage")
_COLUMNS = ("version", "role", "labelled", *_FIGURES)


def monitor(
    pipeline: Annotated[str, typer.Argument(help="A registered pipeline.", show_default=False)],
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    monitoring: Monitoring = None,
    as_json: Json = False,
) -> None:
    """Show how a pipeline does: its clock, labels, the metrics of each version, the rollout, what is open."""
    with answering(as_json) as answer, Target(stack, home).connect("monitoring", monitoring) as connection:
        client = MonitoringClient(connection)
        stats = client.join_stats(pipeline)
        windows, rollout = newest(client.metrics(pipeline, _RECENT))
        incidents = [one for one in client.incidents(pipeline, "", _INCIDENTS) if one.status != "resolved"]
        if as_json:
            answer.json(
                {
                    "pipeline": pipeline,
                    "join": to_dict(stats),
                    "windows": [to_dict(one) for one in windows],
                    "rollout": None if rollout is None else to_dict(rollout),
                    "incidents": [to_dict(one) for one in incidents],
                }
            )
        answer.say(f"{pipeline}: {standing(stats)}")
        answer.say(joined(stats))
        if windows:
            answer.say(f"labelled from {_day(windows[0].window_start)} to {_day(windows[0].window_end)}:")
        answer.table(_COLUMNS, [_row(one) for one in windows], "no whole day has been measured yet")
        if rollout is not None:
            answer.say(rollout.summary)
        for one in incidents:
            answer.say(f"incident {one.incident_id} is {one.status}: {one.summary}")


def newest(
    found: Sequence[records.MetricRecord],
) -> tuple[list[records.MetricRecord], records.MetricRecord | None]:
    """Return the windows of the last day that was measured, and the evidence of a rollout that went on since."""
    windows = [one for one in found if one.kind == WINDOW]
    last_us = max((from_timestamp(one.window_end) for one in windows), default=-1)
    rollouts = [one for one in found if one.kind == ROLLOUT and from_timestamp(one.window_end) > last_us]
    latest = max(rollouts, key=lambda one: from_timestamp(one.window_end), default=None)
    return [one for one in windows if from_timestamp(one.window_end) == last_us], latest


def standing(stats: GetJoinStatsResponse) -> str:
    """Return where the clock stands, and what it waits for where it lies more than an hour behind."""
    named = ", ".join(f"{one.topic}[{one.partition}]" for one in stats.held_by[:_NAMED])
    if len(stats.held_by) > _NAMED:
        named += f" and {len(stats.held_by) - _NAMED} more"
    fix = "send watermarks, or let IDLE_TIMEOUT_S of monitoring pass over partitions that are silent"
    if not stats.HasField("clock"):
        return f"no clock yet, as no event has come on {named}; {fix}" if named else "no clock yet"
    clock_us = from_timestamp(stats.clock)
    text = f"its clock is at {format_us(clock_us)}"
    behind_us = from_timestamp(stats.newest) - clock_us if stats.HasField("newest") else 0
    if behind_us <= HOUR_US:
        return text
    hours = behind_us / HOUR_US
    return f"{text}, {hours:,.0f} h behind the newest event: it waits for {named}; {fix}"


def joined(stats: GetJoinStatsResponse) -> str:
    """Return what became of the predictions."""
    text = (
        f"{stats.predictions:,} predictions: {stats.joined:,} labelled, {stats.pending:,} wait for a label, "
        f"{stats.never:,} never got one; {stats.corrected:,} corrected"
    )
    orphans = stats.labels_without_prediction
    return f"{text}; {orphans:,} labels belong to no prediction" if orphans else text


def _row(one: records.MetricRecord) -> list[Any]:
    figures = [f"{one.values[name]:.4f}" if name in one.values else None for name in _FIGURES]
    return [one.model_version, one.role, f"{one.rows:,}", *figures]


def _day(time: Any) -> str:
    return format_us(from_timestamp(time))[:10]
