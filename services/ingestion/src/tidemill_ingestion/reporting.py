"""Operators' messages about streams: what a hop's events looked like, and pauses; pure."""

from collections.abc import Iterator

from tidemill_contracts.canonical import to_json
from tidemill_contracts.cloudevents import Attributes, to_headers
from tidemill_contracts.ingestion.v1 import records_pb2 as records
from tidemill_contracts.instants import format_us, to_timestamp
from tidemill_runtime.outgoing import Outgoing

from tidemill_ingestion.brake import Change

TOPIC = "ingestion.quality.v1"
_SOURCE, _TYPE = "tidemill/ingestion", "tidemill.quality.v1"
# What a summary names by field: as much as a sentence carries.
_NAMED = 3
_DULL_SHARE = 0.01


def profile_record(stream: str, profile: records.StreamProfile, replica: str, now_us: int) -> records.QualityRecord:
    """Return the message about one hop."""
    return records.QualityRecord(
        stream=stream,
        kind="profile",
        profile=profile,
        emitted_at=to_timestamp(now_us),
        summary=_profile_summary(stream, profile),
        replica=replica,
    )


def change_record(stream: str, change: Change, replica: str, now_us: int) -> records.QualityRecord:
    """Return the message about a pause or its end."""
    pause, resumed_us = change.pause, change.resumed_us
    found = records.StreamPause(
        limit=pause.limit,
        share=pause.share,
        events=pause.events,
        refused=pause.refused,
        mostly=pause.mostly,
        paused_at=to_timestamp(pause.since_us),
        resumes_at=to_timestamp(pause.until_us if resumed_us is None else resumed_us),
        actor=change.actor,
        reason=change.reason,
    )
    return records.QualityRecord(
        stream=stream,
        kind="paused" if resumed_us is None else "resumed",
        pause=found,
        emitted_at=to_timestamp(now_us),
        summary=_change_summary(stream, change),
        replica=replica,
    )


def outgoing(record: records.QualityRecord, now_us: int) -> Outgoing:
    """Return the Kafka record of a message."""
    headers = to_headers(
        Attributes(
            id=f"{record.replica}/{record.stream}/{record.kind}/{now_us}",
            source=_SOURCE,
            type=_TYPE,
            time_us=now_us,
            subject=record.stream,
        )
    )
    return Outgoing(TOPIC, to_json(record), record.stream.encode(), headers)


def _profile_summary(stream: str, profile: records.StreamProfile) -> str:
    if not profile.accepted and not profile.refused and not profile.duplicates:
        return f"{stream}: no events came; the newest is {_age(profile)}."
    parts = [f"{profile.accepted:,} events ({profile.rate:,.1f} a second)", *_faults(profile), *_nulls(profile)]
    return f"{stream}: {', '.join(parts)}; the newest is {_age(profile)}."


def _faults(profile: records.StreamProfile) -> Iterator[str]:
    if profile.refused:
        mostly = max(profile.refused, key=lambda reason: profile.refused[reason])
        yield f"{profile.refused_share:.1%} of what was offered refused, mostly {mostly}"
    if profile.duplicates:
        yield f"{profile.duplicate_share:.1%} repeats"
    if profile.late:
        yield f"{profile.late_share:.1%} late"


def _nulls(profile: records.StreamProfile) -> Iterator[str]:
    holed = sorted(profile.fields, key=lambda field: -field.null_share)[:_NAMED]
    shown = [f"{field.name} {field.null_share:.0%}" for field in holed if field.null_share >= _DULL_SHARE]
    if shown:
        yield f"null: {', '.join(shown)}"


def _age(profile: records.StreamProfile) -> str:
    if not profile.HasField("freshness_seconds"):
        return "not known"
    seconds = profile.freshness_seconds
    return f"{seconds:,.0f} s old" if seconds >= 0 else f"{-seconds:,.0f} s ahead of the clock"


def resume_command(stream: str) -> str:
    """Return what a person types to end a stream's pause.

    >>> resume_command("rides")
    'tidemill streams resume rides --why …'
    """
    return f"tidemill streams resume {stream} --why …"


def _change_summary(stream: str, change: Change) -> str:
    pause = change.pause
    evidence = f"{pause.share:.0%} of {pause.events:,} events were refused, mostly {pause.mostly}"
    if change.resumed_us is None:
        return (
            f"{stream} is paused until {format_us(pause.until_us)}: {evidence} (limit {pause.limit:.0%}); "
            f"mend the producer, or resume it: {resume_command(stream)}"
        )
    by = f"by {change.actor}: {change.reason}" if change.actor else "by itself"
    return f"{stream} was resumed {by}; it was paused because {evidence}."
