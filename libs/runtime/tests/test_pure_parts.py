"""The pure parts: stall detection, dead-letter headers and limits, back-off, batches, log thinning, metrics, actor."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts import dead_letters as dlq
from tidemill_contracts.reasons import Reason
from tidemill_runtime.actor import require_actor
from tidemill_runtime.batches import Batch, Record, Refused, portions
from tidemill_runtime.dead_letters import DeadLetterLimit, Tally, letter_headers, without_value
from tidemill_runtime.errors import Poison
from tidemill_runtime.logs import Thinning
from tidemill_runtime.metrics import OTHER, Bounded, counter
from tidemill_runtime.outgoing import Outgoing
from tidemill_runtime.positions import Partition
from tidemill_runtime.retries import delays
from tidemill_runtime.watchdog import Sighting, StallDetector


@dataclass
class Sample:
    offset: int = 0
    value: bytes | None = b"v"
    key: bytes | None = None
    topic: str = "p.t"
    partition: int = 3
    timestamp: int = 0
    headers: list[tuple[str, bytes]] = field(default_factory=list)


POISON = Poison(Reason.WRONG_TYPE, "not a number", field="x")


def test_lag_without_progress_is_a_stall_after_the_limit() -> None:
    detector = StallDetector(10)
    stuck = Sighting(assigned=True, lag=5, applied=7)
    assert [detector.observe(stuck, now) for now in (0, 5, 9, 14)] == [None] * 4
    assert "5 records behind" in (detector.observe(stuck, 15) or "")


@pytest.mark.parametrize(
    "sighting",
    [
        Sighting(assigned=True, lag=0, applied=7),
        Sighting(assigned=True, lag=None, applied=7),
        Sighting(assigned=False, lag=5, applied=7),
        Sighting(assigned=True, lag=5, applied=7, excused=True),
    ],
    ids=["no lag", "broker silent", "not assigned", "retrying"],
)
def test_waiting_for_the_world_is_no_stall(sighting: Sighting) -> None:
    detector = StallDetector(10)
    assert [detector.observe(sighting, now) for now in (0, 100, 200)] == [None] * 3


@given(st.lists(st.integers(0, 3), min_size=2, max_size=50))
def test_who_advances_at_every_look_never_stalls(steps: list[int]) -> None:
    detector, applied = StallDetector(1), 0
    for now, step in enumerate(steps):
        applied += step + 1
        assert detector.observe(Sighting(assigned=True, lag=9, applied=applied), now * 100) is None


def test_a_dead_letter_keeps_the_original_headers_first_and_untouched() -> None:
    original = [("a", b"\xff"), ("a", b"2"), (dlq.ATTEMPT, b"2"), (dlq.FIRST_FAILED_AT, b"before")]
    record = Sample(offset=9, headers=original)
    headers = letter_headers(record, Refused(record, POISON), topic="t", group="g", now_us=0)
    assert headers[: len(original)] == original
    ours = dict(headers[len(original) :])
    assert ours[dlq.ATTEMPT] == b"3"
    assert ours[dlq.FIRST_FAILED_AT] == b"before"
    assert (ours[dlq.PARTITION], ours[dlq.OFFSET], ours[dlq.FIELD]) == (b"3", b"9", b"x")


def test_a_foreign_attempt_header_that_is_no_number_counts_as_none() -> None:
    record = Sample(headers=[(dlq.ATTEMPT, b"\xfe")])
    headers = dict(letter_headers(record, Refused(record, POISON), topic="t", group="g", now_us=0))
    assert headers[dlq.ATTEMPT] == b"1"


@pytest.mark.parametrize("attempt", [None, b"", b"9" * 5_000], ids=["null", "empty", "endless"])
def test_headers_of_ours_that_a_record_brings_as_null_or_nonsense_count_as_none(attempt: Any) -> None:
    record = Sample(headers=[(dlq.ATTEMPT, attempt), (dlq.FIRST_FAILED_AT, None)])  # type: ignore[list-item]
    headers = letter_headers(record, Refused(record, POISON), topic="t", group="g", now_us=0)
    assert headers[:2] == record.headers
    ours = dict(headers[2:])
    assert (ours[dlq.ATTEMPT], ours[dlq.FIRST_FAILED_AT]) == (b"1", b"1970-01-01T00:00:00Z")


def test_what_a_refusal_quotes_of_a_record_neither_bursts_its_letter_nor_need_be_unicode() -> None:
    poison = Poison(Reason.UNKNOWN_FIELD, "\ud800" + "x" * 5_000, field="\ud800" + "y" * 5_000)
    headers = dict(letter_headers(Sample(), Refused(Sample(), poison), topic="t", group="g", now_us=0))
    assert headers[dlq.MESSAGE] == rb"\ud800" + b"x" * 999
    assert headers[dlq.FIELD] == rb"\ud800" + b"y" * 999


def test_a_letter_without_its_value_says_what_it_lacks_and_keeps_key_and_headers_that_are_small() -> None:
    for key, kept in ((b"k", b"k"), (b"k" * 1_000_000, None)):
        record = Sample(value=b"v" * 3_000_000, key=key, headers=[("h", b"1")])
        headers = letter_headers(record, Refused(record, POISON), topic="t", group="g", now_us=0)
        cut = without_value(Outgoing("t.dlq", record.value, key, headers), record)
        assert (cut.value, cut.key) == (None, kept)
        assert (("h", b"1") in cut.headers) == (kept is not None)
        assert dlq.left_out(cut.headers) == sha256(record.value or b"").hexdigest().encode()
        said = dict(cut.headers)
        assert (said[dlq.VALUE_BYTES], said[dlq.OFFSET], said[dlq.REASON]) == (b"3000000", b"0", b"wrong_type")
        assert dlq.left_out(headers) is None
        assert dlq.original_headers(cut.headers) == ([("h", b"1")] if kept else [])


PLACES = [Partition("t", number) for number in range(3)]
NO_WINDOW = 10**9


def told(tally: Tally, batch: Mapping[Partition, Sequence[tuple[int, bool]]], window: int = NO_WINDOW) -> Tally:
    """Return the tally after a batch, given as offset and whether it is bad, by partition."""
    bad = {place: {offset for offset, is_bad in records if is_bad} for place, records in batch.items()}
    judged = {place: [Sample(offset) for offset, _ in records] for place, records in batch.items() if records}
    return tally.add(sum(map(len, batch.values())), bad, judged, window)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), max_size=60))
def test_few_refusals_never_stop_the_line_and_only_refusals_always_do(batches: list[tuple[int, int]]) -> None:
    limit = DeadLetterLimit(share=0.5, window=100, run=500)
    tally = Tally()
    for count, _ in batches:
        tally = tally.add(count, {PLACES[0]: set(range(count // 3))}, {}, limit.window)
        assert not tally.exceeds(limit)
    for _ in range(11):
        tally = tally.add(50, {PLACES[0]: set(range(50))}, {}, limit.window)
    assert tally.exceeds(limit)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 30), st.integers(1, 3)), min_size=1, max_size=20),
    st.integers(1, 40),
    st.integers(2, 20),
)
def test_a_row_of_refusals_is_as_long_as_it_is_however_its_records_come_in_batches(
    rows: list[tuple[bool, int, int]], size: int, run: int
) -> None:
    records, offset, longest, row = list[tuple[int, bool]](), 0, 0, 0
    for is_bad, count, step in rows:
        for _ in range(count):
            records.append((offset, is_bad))
            # A log has gaps: where it was compacted, or a transaction ended.
            offset += step
            row = row + 1 if is_bad else 0
            longest = max(longest, row)
    tally, stops = Tally(), False
    for first in range(0, len(records), size):
        # Another partition, in which all is well, is in each batch.
        tally = told(tally, {PLACES[0]: records[first : first + size], PLACES[1]: [(first, False)]})
        stops = stops or tally.exceeds(DeadLetterLimit(run=run))
    assert stops == (longest >= run)


@given(st.integers(2, 9), st.integers(1, 5_000))
def test_bad_records_that_are_scattered_are_no_row_whatever_their_number(every: int, size: int) -> None:
    records = [(offset, offset % every == 0) for offset in range(5_000)]
    tally = Tally()
    for first in range(0, len(records), size):
        tally = told(tally, {PLACES[0]: records[first : first + size]})
        assert not tally.exceeds(DeadLetterLimit(run=2))


def test_a_topic_of_which_nothing_passes_is_a_row_over_all_its_partitions() -> None:
    tally, limit = Tally(), DeadLetterLimit(run=100)
    for batch in range(4):
        assert not tally.exceeds(limit)
        tally = told(tally, {place: [(batch * 10 + n, True) for n in range(10)] for place in PLACES})
    assert tally.exceeds(limit)
    assert not told(tally, {place: [(40, place == PLACES[0])] for place in PLACES}).exceeds(limit)


def test_delays_grow_to_their_limit_and_stay_spread() -> None:
    found = list(islice(delays(0.1, 1.0), 20))
    assert 0.05 <= found[0] <= 0.1
    assert all(0.5 <= delay <= 1.0 for delay in found[5:])


def test_decode_keeps_order_and_sets_poison_aside() -> None:
    def decoder(record: Record) -> int:
        if record.value is None:
            raise POISON
        return record.offset

    place = Partition("t", 0)
    batch = Batch({place: [Sample(0), Sample(1, value=None), Sample(4)]})
    decoded, refused = batch.decode(decoder)
    assert decoded == {place: [0, 4]}
    assert [one.record.offset for one in refused] == [1]
    assert (batch.count, batch.next_offsets) == (3, {place: 5})
    assert Batch(batch.partitions, {place: 9}).next_offsets == {place: 9}, "the rest was kept from the group"


def test_a_flood_of_equal_lines_is_thinned_and_counted() -> None:
    now = [0.0]
    thinning = Thinning(lambda: now[0])

    def passes() -> logging.LogRecord | None:
        record = logging.LogRecord("aiokafka", logging.ERROR, "", 0, "broker %s is away", ("a",), None)
        return record if thinning.filter(record) else None

    assert sum(passes() is not None for _ in range(100)) == 5
    now[0] = 11.0
    first = passes()
    assert first is not None
    assert first.getMessage() == "broker a is away [and 95 more like it]"


def test_label_values_are_bounded() -> None:
    bounded = Bounded(2)
    assert [bounded(value) for value in ("a", "b", "c", "a")] == ["a", "b", OTHER, "a"]


def test_a_metric_without_documentation_is_refused() -> None:
    with pytest.raises(ValueError, match="says nothing"):
        counter("undocumented", " ")


class Call:
    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


def test_the_actor_is_read_from_the_call() -> None:
    assert require_actor(Call(("x-tidemill-actor", "anna@example.org"))) == "anna@example.org"


@pytest.mark.parametrize("metadata", [(), (("x-tidemill-actor", " "),), (("x-tidemill-actor", "a\nb"),)])
def test_a_changing_call_without_an_actor_is_told_what_to_send(metadata: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(Poison) as refused:
        require_actor(Call(*metadata))
    assert refused.value.reason is Reason.MISSING_ACTOR
    assert refused.value.field == "x-tidemill-actor"


@given(st.dictionaries(st.characters(), st.text(min_size=1, max_size=20), max_size=4), st.integers(1, 12))
def test_portions_keep_every_record_in_its_order_and_all_but_the_last_are_full(
    fetched: dict[str, str], limit: int
) -> None:
    parts: list[dict[str, str]] = list(portions(fetched, limit))  # type: ignore[arg-type]
    assert {place: "".join(part.get(place, "") for part in parts) for place in fetched} == fetched
    sizes = [sum(map(len, part.values())) for part in parts]
    assert all(size == limit for size in sizes[:-1])
    assert all(0 < size <= limit for size in sizes)
