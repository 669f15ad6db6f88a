"""What a profile says of a hop, against plain counting over everything."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tidemill_contracts.canonical import from_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import records_pb2 as records
from tidemill_ingestion.adapters.publisher import paused_message
from tidemill_ingestion.brake import Change, Paused
from tidemill_ingestion.distinct import Distinct
from tidemill_ingestion.quality import Profile
from tidemill_ingestion.reporting import change_record, outgoing, profile_record

STREAM = definition.Stream(
    name="rides",
    fields=[
        definition.Field(name="ride_id", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="fare", type=definition.FIELD_TYPE_FLOAT64, nullable=True),
        definition.Field(name="seats", type=definition.FIELD_TYPE_INT64, nullable=True),
    ],
    lateness_ms=1,
)
SECOND_US = 1_000_000
EVENTS = st.lists(
    st.fixed_dictionaries(
        {"ride_id": st.text(max_size=3)},
        optional={
            "fare": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5),
            "seats": st.none() | st.integers(-(2**63), 2**63 - 1),
        },
    ),
    max_size=60,
)


def profiled(profile: Profile, events: list[dict[str, Any]]) -> records.StreamProfile:
    for event in events:
        profile.observe(event)
    return profile.cut(SECOND_US)


@given(EVENTS)
def test_fields_are_what_plain_counting_says(events: list[dict[str, Any]]) -> None:
    found = {field.name: field for field in profiled(Profile(STREAM), events).fields}
    assert set(found) == ({"ride_id", "fare", "seats"} if events else set())
    for name, field in found.items():
        values = [event[name] for event in events if event.get(name) is not None]
        assert field.null_share == pytest.approx(1 - len(values) / len(events))
        assert field.distinct == pytest.approx(len(set(values)), abs=1)
        numbers = values if name != "ride_id" else []
        assert field.HasField("min") == field.HasField("max") == bool(numbers)
        if numbers:
            assert (field.min, field.max) == (float(min(numbers)), float(max(numbers)))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10_000)), max_size=80))
@example([(0, 2_000), (0, 1_000), (0, 999)])
def test_late_is_what_lies_too_far_behind_the_newest_of_its_partition(written: list[tuple[int, int]]) -> None:
    profile, late, newest = Profile(STREAM), 0, dict[int, int]()
    for partition, time_us in written:
        profile.accept(partition, time_us, 20_000)
        late += time_us < newest.get(partition, time_us) - 1_000
        newest[partition] = max(newest.get(partition, time_us), time_us)
    found = profile.cut(SECOND_US)
    assert (found.late, found.accepted) == (late, len(written))
    if written:
        times = [time_us for _, time_us in written]
        assert found.freshness_seconds == pytest.approx((SECOND_US - max(times)) / SECOND_US)
        assert found.max_age_seconds == pytest.approx((20_000 - min(times)) / SECOND_US)
        assert found.mean_age_seconds == pytest.approx((20_000 - sum(times) / len(times)) / SECOND_US)


def test_a_hop_counts_what_came_in_it_alone() -> None:
    profile = Profile(STREAM)
    profile.begin(0)
    profile.accept(0, 0, 0)
    profile.observe({"ride_id": "a", "fare": 7})
    profile.duplicates += 2
    profile.refuse(["empty", "wrong_type", "wrong_type"])
    first = profile.cut(2 * SECOND_US)
    assert (first.accepted, first.duplicates, dict(first.refused)) == (1, 2, {"empty": 1, "wrong_type": 2})
    assert (first.rate, first.duplicate_share, first.refused_share) == (0.5, 2 / 6, 3 / 6)
    second = profile.cut(3 * SECOND_US)
    assert (second.accepted, second.duplicates, dict(second.refused), list(second.fields)) == (0, 0, {}, [])
    assert second.window_start == first.window_end
    # How old the newest event is grows while nothing comes.
    assert (first.freshness_seconds, second.freshness_seconds) == (2.0, 3.0)
    assert not second.HasField("mean_age_seconds")


def test_a_redefinition_keeps_what_was_counted_and_begins_changed_fields_anew() -> None:
    profile = Profile(STREAM)
    profile.accept(0, 5, 5)
    profile.observe({"ride_id": "a"})
    other = definition.Stream(name="rides", fields=[definition.Field(name="x", type=definition.FIELD_TYPE_INT64)])
    profile.follow(other)
    profile.observe({"x": 3})
    found = profile.cut(10)
    assert found.accepted == 1
    assert [(field.name, field.min, field.null_share) for field in found.fields] == [("x", 3.0, 0.0)]


def test_fields_beyond_the_bound_are_left_out() -> None:
    assert [field.name for field in profiled(Profile(STREAM, 1), [{"ride_id": "a", "fare": 1}]).fields] == ["ride_id"]


@pytest.mark.parametrize("count", [0, 1, 256, 257, 1_000, 5_000, 100_000])
def test_distinct_is_exact_while_few_and_within_its_error_beyond(count: int) -> None:
    distinct, again = Distinct(), Distinct()
    for first in range(0, count, 500):
        distinct.add(range(first, min(first + 500, count)))
        distinct.add(range(first, min(first + 500, count)))
        again.add([-1 - 3 * n for n in range(first, min(first + 500, count))])
    if count <= 256:
        assert distinct.estimate() == count
    else:
        # Five standard errors; whole numbers hash alike everywhere, so that this never flickers.
        assert distinct.estimate() == pytest.approx(count, rel=5 * 0.033)
        assert again.estimate() == pytest.approx(count, rel=5 * 0.033)


def test_a_message_names_what_a_person_should_see() -> None:
    profile = Profile(STREAM)
    profile.begin(0)
    for number in range(100):
        profile.accept(0, number * 10_000, number * 10_000)
        profile.observe({"ride_id": "a", "fare": None if number < 12 else 1.0, "seats": 2})
    profile.refuse(["wrong_type"] * 25)
    record = profile_record("rides", profile.cut(10 * SECOND_US), "door-1", 10 * SECOND_US)
    assert record.summary == (
        "rides: 100 events (10.0 a second), 20.0% of what was offered refused, mostly wrong_type, null: fare 12%; "
        "the newest is 9 s old."
    )
    sent = outgoing(record, 10 * SECOND_US)
    assert (sent.topic, sent.key) == ("ingestion.quality.v1", b"rides")
    assert from_json(sent.value or b"", records.QualityRecord()) == record
    assert dict(sent.headers)["ce_time"] == b"1970-01-01T00:00:10Z"


def test_pauses_and_their_ends_are_told_in_words() -> None:
    at = int(datetime(2026, 11, 21, 10, tzinfo=UTC).timestamp()) * SECOND_US
    pause = Paused(0.2, 1_200, 732, "wrong_type", at, at + 60 * SECOND_US)
    paused = change_record("rides", Change(pause), "door-1", at)
    assert paused.kind == "paused"
    assert paused.summary == (
        "rides is paused until 2026-11-21T10:01:00Z: 61% of 1,200 events were refused, mostly wrong_type (limit 20%); "
        "mend the producer, or resume it: tidemill streams resume rides --why …"
    )
    by = change_record("rides", Change(pause, at + 5, "anna", "mended"), "door-1", at + 5)
    assert (by.kind, by.pause.actor, by.pause.reason) == ("resumed", "anna", "mended")
    assert by.summary.startswith("rides was resumed by anna: mended; ")
    assert "by itself" in change_record("rides", Change(pause, at + 5), "door-1", at + 5).summary


def test_who_sends_to_a_paused_stream_is_told_the_whole_command_that_ends_the_pause() -> None:
    told = paused_message("rides", Paused(0.2, 1_200, 732, "wrong_type", 0, 60 * SECOND_US))
    assert told.endswith("(tidemill streams resume rides --why …)")
