"""What a person, and a program, is shown of the events at an edge of an exact window."""

import pytest
from tidemill.cli.answers import Answer
from tidemill.cli.explanations import explained, show
from tidemill_contracts.feature.v1 import feature_pb2 as feature

SECOND = 1_000_000


def explanation(*slots: feature.RingSlot) -> feature.ExplainFeaturesResponse:
    one = feature.FeatureExplanation(feature="n", window_us=60 * SECOND, hop_us=5 * SECOND, slots=slots)
    shard = feature.RingShard(partition=0, next_offset=40, newest_event_us=SECOND)
    return feature.ExplainFeaturesResponse(view="v", stream="s", features=[one], shards=[shard])


def raw(offset: int, counts: bool) -> feature.RawEvent:
    return feature.RawEvent(offset=offset, event_time_us=offset * SECOND, counts=counts)


def test_the_events_of_a_tail_are_shown_with_whether_they_count(capsys: pytest.CaptureFixture[str]) -> None:
    found = explanation(feature.RingSlot(to_us=5 * SECOND, events=[raw(7, False), raw(8, True), raw(9, True)]))
    shown = explained("k", found)["features"][0]["slots"][0]
    assert [(event["offset"], event["event_time"], event["counts"]) for event in shown["events"]] == [
        (7, "1970-01-01T00:00:07Z", False),
        (8, "1970-01-01T00:00:08Z", True),
        (9, "1970-01-01T00:00:09Z", True),
    ]
    show(Answer(as_json=False), "k", found)
    told = capsys.readouterr().out
    assert "counts: 8 9; does not: 7" in told
    assert "events are kept" in told


def test_many_events_are_cut_short_in_a_table_alone(capsys: pytest.CaptureFixture[str]) -> None:
    found = explanation(feature.RingSlot(events=[raw(offset, True) for offset in range(30)]))
    assert len(explained("k", found)["features"][0]["slots"][0]["events"]) == 30
    show(Answer(as_json=False), "k", found)
    assert "9 10 11 …" in capsys.readouterr().out


def test_a_bucket_that_was_not_cut_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = explanation(feature.RingSlot(hop_accuracy=True, head_excluded=True))
    assert explained("k", found)["features"][0]["slots"][0]["note"] == "HEAD_EXCLUDED HOP_ACCURACY"
    show(Answer(as_json=False), "k", found)
    assert "HOP_ACCURACY: the bucket had more events than are kept" in capsys.readouterr().out
