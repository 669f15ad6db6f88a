"""The slots behind a value, for a person and as JSON; and what slots cannot say."""

from typing import Any

from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import format_us

from tidemill.cli.answers import Answer
from tidemill.cli.scalars import python_value

# Of those that a table shows; JSON has all.
_OFFSETS = 12
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
        "events": [
            {"offset": one.offset, "event_time": format_us(one.event_time_us), "counts": one.counts}
            for one in slot.events
        ],
        "note": _note(slot),
    }


def _note(slot: feature.RingSlot) -> str:
    flags = (("HEAD_EXCLUDED", slot.head_excluded), ("HOP_ACCURACY", slot.hop_accuracy))
    return " ".join(name for name, is_set in flags if is_set)


def _shown_note(slot: feature.RingSlot) -> str:
    """Return the note for a table: also which events of a slot at an edge count."""
    if not slot.events:
        return _note(slot)
    parts = []
    for word, counts in (("counts", True), ("does not", False)):
        offsets = [str(one.offset) for one in slot.events if one.counts is counts]
        if offsets:
            more = ["…"] if len(offsets) > _OFFSETS else []
            parts.append(f"{word}: {' '.join(offsets[:_OFFSETS] + more)}")
    return "offsets, " + "; ".join(parts)


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
    slots = [slot for one in found.features for slot in one.slots]
    said = [
        "A slot holds what its events add up to, not the events: which these were, Redis does not know.",
        f"They are in the offline log, table {table}, rows of this entity in {ends}, with event times in the slot's "
        "bucket; rows that repeat an identity, or that came later than the stream allows, were not folded.",
        "Events whose slot a later bucket has taken since, a ring's length on, are in no slot any more.",
    ]
    if any(slot.events for slot in slots):
        said.append("At an edge of an exact window a slot's events are kept: it holds what those that count add up to.")
    if any(slot.hop_accuracy for slot in slots):
        said.append("HOP_ACCURACY: the bucket had more events than are kept, so that the window could not cut it.")
    if any(slot.head_excluded for slot in slots):
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
            _shown_note(slot),
        ]
        for one in found.features
        for slot in one.slots
    ]
    answer.say(f"\n{entity}: slots of view {found.view} ({found.view_hash[:19]})")
    answer.table(_COLUMNS, rows, "no slots")
    for note in notes(found):
        answer.say(note)
