"""Duplicates and late events are decided from the log alone, the same in any batches and after any restart."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.admission import Admission, Rules, duplicate_mask, late_mask, newest_so_far
from tidemill_features.log_columns import Recent, Strings

WINDOW_US, LATENESS_US, REACH = 10, 4, 12
RULES = Rules(WINDOW_US, LATENESS_US, definition.LATE_POLICY_DROP, REACH)
Record = tuple[int, str]


def judge(records: Sequence[Record]) -> tuple[list[bool], list[bool]]:
    """Return (duplicate, late) of a whole log in one batch, which one record at a time and none at all give, too."""
    times = np.array([time for time, _ in records], np.int64)
    identities = [identity for _, identity in records]
    admitted = Admission(RULES).admit(range(len(records)), times, identities)
    one_by_one, before = Admission(RULES), newest_so_far(times)
    for offset, identity in enumerate(identities):
        alone = one_by_one.admit([offset], times[offset : offset + 1], [identity])
        assert (alone.duplicate[0], alone.late[0]) == (admitted.duplicate[offset], admitted.late[offset])
    codes = np.array([identities.index(identity) for identity in identities], np.int64)
    assert np.array_equal(duplicate_mask(codes, np.arange(len(codes)), times, before, RULES), admitted.duplicate)
    assert np.array_equal(late_mask(times, before, LATENESS_US), admitted.late)
    return admitted.duplicate.tolist(), admitted.late.tolist()


@pytest.mark.parametrize(
    ("behind_us", "duplicate"), [(0, True), (WINDOW_US - 1, True), (WINDOW_US, True), (WINDOW_US + 1, False)]
)
def test_an_identity_is_remembered_to_the_very_end_of_the_window(behind_us: int, duplicate: bool) -> None:
    assert judge([(100, "a"), (100 + behind_us, "b"), (100, "a")])[0] == [False, False, duplicate]


@pytest.mark.parametrize(("behind_us", "late"), [(LATENESS_US, False), (LATENESS_US + 1, True)])
def test_an_event_is_late_only_beyond_the_lateness(behind_us: int, late: bool) -> None:
    assert judge([(100, "a"), (100 - behind_us, "b")])[1] == [False, late]


def test_the_first_event_of_a_log_is_never_late() -> None:
    assert judge([(-(10**15), "a")]) == ([False], [False])


def test_a_repeat_within_one_batch_is_a_duplicate() -> None:
    assert judge([(5, "a"), (5, "a"), (5, "a")])[0] == [False, True, True]


@pytest.mark.parametrize(("apart", "duplicate"), [(REACH - 1, True), (REACH, True), (REACH + 1, False)])
def test_an_identity_is_remembered_for_so_many_offsets_and_no_more(apart: int, duplicate: bool) -> None:
    between = [(100, f"other-{place}") for place in range(apart - 1)]
    assert judge([(100, "a"), *between, (100, "a")])[0][-1] is duplicate


def test_offsets_that_no_event_has_count_too() -> None:
    # Watermarks and poison lie between: how many, the offsets alone say.
    admitted = Admission(RULES).admit([0, REACH, 2 * REACH + 1], np.full(3, 100), ["a", "a", "a"])
    assert admitted.duplicate.tolist() == [False, True, False]


def test_memory_is_bounded_by_offsets_whatever_the_window_and_what_is_cut_short_is_counted() -> None:
    admission = Admission(Rules(10**15, 10**15, definition.LATE_POLICY_DROP, REACH))
    for first in range(0, 1000, 5):
        admission.admit(range(first, first + 5), np.full(5, 100), [f"id-{first + place}" for place in range(5)])
    # The last batch of which a record is near enough is kept whole.
    assert (admission.identities, admission.low_offset(1000)) == (15, 985)
    assert admission.cut_short == 985


def test_what_is_outside_the_window_is_forgotten() -> None:
    admission = Admission(RULES)
    for step in range(1000):
        admission.admit([step], np.array([step * 5]), [f"id-{step}"])
    assert admission.identities <= 4
    assert admission.cut_short == 0
    assert admission.low_offset(1000) >= 996


RECORDS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abcdefgh")), max_size=40)


@given(records=RECORDS, cuts=st.lists(st.integers(0, 25), max_size=4), restart=st.integers(0, 25))
def test_verdicts_do_not_depend_on_batches_or_restarts(records: list[Record], cuts: list[int], restart: int) -> None:
    edges = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
    admission = Admission(RULES)
    got: tuple[list[bool], list[bool]] = ([], [])
    for first, end in pairwise(edges):
        if first <= restart < end:
            reread = records[admission.low_offset(first) : first]
            admission = Admission(RULES, admission.newest_us)
            remember(admission, reread, first - len(reread))
        part = records[first:end]
        times = np.array([time for time, _ in part], np.int64)
        verdict = admission.admit(range(first, end), times, [identity for _, identity in part])
        got[0].extend(verdict.duplicate.tolist())
        got[1].extend(verdict.late.tolist())
    assert got == judge(records)


def remember(admission: Admission, records: Sequence[Record], first: int) -> None:
    times = np.array([time for time, _ in records], np.int64)
    admission.remember(range(first, first + len(records)), times, [identity for _, identity in records])


@settings(deadline=None)
@given(records=RECORDS, cuts=st.lists(st.integers(0, 39), max_size=4), archived=st.integers(0, 40))
# At the very end of window and reach; and what is out of reach before its identities were read, which then never are.
@example(records=[(0, "a"), *((WINDOW_US, f"{place}") for place in range(REACH - 1)), (0, "a")], cuts=[], archived=40)
@example(records=[(0, "a"), (40, "b"), (40, "a")], cuts=[1, 2], archived=2)
def test_repeats_that_were_looked_for_by_columns_are_judged_the_same(
    records: list[Record], cuts: list[int], archived: int
) -> None:
    """From `archived` on, one by one: the identities before are read then."""
    edges = sorted({0, min(archived, len(records)), len(records), *(cut for cut in cuts if cut < len(records))})
    admission, plain, recent = Admission(RULES), Admission(RULES), Recent(RULES)
    for first, end in pairwise(edges):
        times = np.array([time for time, _ in records[first:end]], np.int64)
        offsets, identities = np.arange(first, end), [identity for _, identity in records[first:end]]
        expected = plain.admit(offsets, times, identities)
        if end <= archived:
            raw = pa.array(identities, pa.large_string())
            verdict = admission.admit_known(offsets, times, Strings(raw), recent.follow(raw, offsets, times))
        else:
            verdict = admission.admit(offsets, times, identities)
        assert verdict.duplicate.tolist() == expected.duplicate.tolist()
        assert verdict.late.tolist() == expected.late.tolist()
        assert admission.low_offset(end) == plain.low_offset(end)
    assert admission.newest_us == plain.newest_us
    assert admission.cut_short == plain.cut_short


def test_of_the_rows_before_only_those_are_kept_that_may_be_repeated() -> None:
    recent = Recent(RULES)
    for first in range(0, 1000, 5):
        raw = pa.array([f"id-{first + place}" for place in range(5)], pa.large_string())
        recent.follow(raw, np.arange(first, first + 5), np.full(5, first * WINDOW_US))
        assert len(recent) == 5
