"""A stream pauses beyond its share of bad records, and takes records again."""

from hypothesis import given
from hypothesis import strategies as st
from tidemill_ingestion.brake import Brake, Limit

LIMIT = Limit(share=0.2, window_us=12_000, min_events=100, pause_us=5_000)


def test_a_stream_pauses_beyond_its_share_and_says_why() -> None:
    brake = Brake(LIMIT)
    assert brake.note(80, ["empty"] * 20, 1_000) is None
    change = brake.note(0, ["wrong_type"] * 30, 2_001)
    assert change is not None
    assert change.resumed_us is None
    assert change.pause == brake.pause
    assert (change.pause.events, change.pause.refused, change.pause.mostly) == (130, 50, "wrong_type")
    assert (change.pause.since_us, change.pause.until_us) == (2_001, 7_001)
    assert change.pause.share == 50 / 130
    assert brake.note(0, ["empty"] * 100, 2_002) is None, "it is paused already"
    assert brake.pause == change.pause


def test_few_records_pause_nothing() -> None:
    brake = Brake(LIMIT)
    assert brake.note(0, ["empty"] * 99, 0) is None
    assert brake.note(1, [], 0) is None, "no good record pauses anything"
    assert brake.note(0, ["empty"], 0) is not None


def test_what_left_the_window_counts_no_more() -> None:
    brake = Brake(LIMIT)
    brake.note(0, ["empty"] * 99, 0)
    assert brake.window(11_999) == (99, 99)
    assert brake.window(12_000) == (0, 0)
    assert brake.note(0, ["empty"], 12_000) is None


def test_a_share_of_one_never_pauses() -> None:
    brake = Brake(LIMIT._replace(share=1.0))
    assert brake.note(0, ["empty"] * 100_000, 0) is None


def test_a_pause_ends_by_itself_once() -> None:
    brake = Brake(LIMIT)
    brake.note(0, ["empty"] * 100, 0)
    assert brake.release(4_999) is None
    change = brake.release(5_000)
    assert change is not None
    assert (change.resumed_us, change.actor) == (5_000, "")
    assert brake.pause is None
    assert brake.release(5_001) is None


def test_an_operator_ends_a_pause_at_once() -> None:
    brake = Brake(LIMIT)
    brake.note(0, ["empty"] * 100, 0)
    change = brake.resume(10, "anna", "mended")
    assert change is not None
    assert (change.resumed_us, change.actor, change.reason) == (10, "anna", "mended")
    assert brake.resume(11, "anna", "again") is None


def test_a_producer_that_is_still_wrong_after_a_pause_is_paused_by_a_tenth_of_the_records() -> None:
    brake = Brake(LIMIT)
    brake.note(0, ["empty"] * 100, 0)
    brake.release(5_000)
    assert brake.note(0, ["empty"] * 9, 5_000) is None
    assert brake.note(0, ["empty"], 5_000) is not None


def test_after_a_good_window_the_usual_number_of_records_counts_again() -> None:
    brake = Brake(LIMIT)
    brake.note(0, ["empty"] * 100, 0)
    brake.release(5_000)
    brake.note(1, [], 17_000)
    assert brake.note(0, ["empty"] * 50, 17_000) is None


BATCHES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5_000)), max_size=40)


@given(BATCHES)
def test_it_pauses_exactly_when_the_window_says_so(batches: list[tuple[int, int, int]]) -> None:
    """Against a plain list of everything, with the window cut in the same twelfths."""
    brake, now_us, seen = Brake(LIMIT), 0, []
    for good, bad, later_us in batches:
        now_us += later_us
        seen.append((now_us // 1_000, good + bad, bad))
        recent = [(count, refused) for part, count, refused in seen if part > now_us // 1_000 - 12]
        events, refused = sum(count for count, _ in recent), sum(found for _, found in recent)
        expected = bad > 0 and events >= 100 and refused > 0.2 * events
        assert (brake.note(good, ["empty"] * bad, now_us) is not None) == expected
        if expected:
            return
