"""The slots behind a value, for a person and as JSON; and what slots cannot say."""

from typing import Any

from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import format_us

from tidemill.cli.answers import Answer
from tidemill.cli.scalars import python_value

_COLUMNS = ("feature", "from", "to", "partition", "newest event", "holds", "note")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def shown_duration(duration_us: int) -> str:
    """Return a duration as definitions write it.

    >>> shown_duration(7_200_000_000), shown_duration(0)
    ('2h', '')
    """
    seconds = duration_us // 1_000_000
    return next((f"{seconds // unit}{letter}" for unit, letter in _UNITS if seconds and seconds % unit == 0), "")


def explained(entity: str, found: feature.ExplainFeaturesResponse) -> dict[str, Any]:
    """Return an explanation as JSON says it."""
    return {
        "entity": entity,
        "view_hash": found.view_hash,
        "shards": [
            {
                "partition": shard.partition,
                "next_offset": shard.next_offset,
                "newest_event": _instant(shard.newest_event_us),
            }
            for shard in found.shards
        ],
        "features": [_feature(one) for one in found.features],
        "notes": notes(found),
    }


def _feature(one: feature.FeatureExplanation) -> dict[str, Any]:
    return {
        "feature": one.feature,
        "function": one.function,
        "value": python_value(one.value.value),
        "status": feature.Status.Name(one.value.status).removeprefix("STATUS_"),
        "window_s": one.window_us / 1_000_000,
        "hop_s": one.hop_us / 1_000_000,
        "from": format_us(one.from_us),
        "to": format_us(one.to_us),
        "slots": [_slot(slot) for slot in one.slots],
    }


def _slot(slot: feature.RingSlot) -> dict[str, Any]:
    return {
        "partition": slot.partition,
        "from": format_us(slot.from_us),
        "to": format_us(slot.to_us),
        "newest_event": _instant(slot.newest_event_us),
        "partials": {partial.name: _partial(partial) for partial in slot.partials},
        "note": "HEAD_EXCLUDED" if slot.head_excluded else "",
    }


def _partial(partial: feature.Partial) -> Any:
    if partial.bytes:
        return f"{partial.bytes} bytes"
    value = python_value(partial.value)
    if not partial.event_time_us:
        return value
    return {"value": value, "event_time": format_us(partial.event_time_us), "offset": partial.offset}


def _instant(instant_us: int) -> str | None:
    return format_us(instant_us) if instant_us else None


def notes(found: feature.ExplainFeaturesResponse) -> list[str]:
    """Return what the slots do not show, and where it may be found."""
    if not found.shards:
        return ["no event of this entity was ever folded, or a part of its key is null: there are no slots"]
    ends = ", ".join(f"partition {shard.partition} before offset {shard.next_offset}" for shard in found.shards)
    table = "events_" + found.stream.replace("-", "_").replace(".", "_")
    said = [
        "A slot holds what its events add up to, not the events: which these were, Redis does not know.",
        f"They are in the offline log, table {table}, rows of this entity in {ends}, with event times in the slot's "
        "bucket; rows that repeat an identity, or that came later than the stream allows, were not folded.",
        "Events whose slot a later bucket has taken since, a ring's length on, are in no slot any more.",
    ]
    if any(slot.head_excluded for one in found.features for slot in one.slots):
        said.append("HEAD_EXCLUDED: the bucket holds this moment and newer events besides, so it was left out.")
    return said


def show(answer: Answer, entity: str, found: feature.ExplainFeaturesResponse) -> None:
    """Print an explanation for a person."""
    rows = [
        [
            one.feature,
            format_us(slot.from_us),
            format_us(slot.to_us),
            slot.partition,
            _instant(slot.newest_event_us),
            ", ".join(f"{partial.name} = {_partial(partial)}" for partial in slot.partials),
            "HEAD_EXCLUDED" if slot.head_excluded else "",
        ]
        for one in found.features
        for slot in one.slots
    ]
    answer.say(f"\n{entity}: slots of view {found.view} ({found.view_hash[:19]})")
    answer.table(_COLUMNS, rows, "no slots")
    for note in notes(found):
        answer.say(note)
