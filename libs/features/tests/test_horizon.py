"""What is read of a log for some rows is judged as the whole log judges it."""

from collections.abc import Sequence

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.admission import Admission, Admitted, Rules
from tidemill_features.horizon import Records, horizon, not_late, repeated

WINDOW_US, LATENESS_US, REACH = 10, 4, 12
RULES = Rules(WINDOW_US, LATENESS_US, definition.LATE_POLICY_DROP, REACH)
Record = tuple[int, str]
RECORDS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abcdefgh")), max_size=40)


def judged(records: Sequence[Record], first: int = 0) -> Admitted:
    """Return what is said of the records of one partition from a place on, where no other was read."""
    times = np.array([time for time, _ in records[first:]], np.int64)
    return Admission(RULES).admit(range(first, len(records)), times, [identity for _, identity in records[first:]])


@given(records=RECORDS, from_us=st.integers(0, 45))
# What is repeated is as old as the window lets it be.
@example(records=[(5, "a"), (15, "b"), (20, "a")], from_us=20)
def test_from_the_horizon_on_records_are_judged_as_with_the_whole_log(records: list[Record], from_us: int) -> None:
    times = np.array([time for time, _ in records], np.int64)
    found = horizon(np.arange(len(records)) + 100, times, from_us, WINDOW_US)
    if found is None:
        assert not (times >= from_us).any()
        return
    first, needed = found.read_from - 100, found.judged_from - 100
    assert not (times[:needed] >= from_us).any()
    assert times[needed] >= from_us
    for whole, part in zip(judged(records), judged(records, first), strict=True):
        assert whole[needed:].tolist() == part[needed - first :].tolist()


@given(partitions=st.tuples(RECORDS, RECORDS), wanted=st.frozensets(st.sampled_from("abcdefgh")))
@example(partitions=([], [(4, "a"), (0, "b"), (10, "b"), (0, "a"), (0, "b")]), wanted=frozenset("a"))
@example(partitions=([], [(9, "a"), (20, "b"), (9, "a")]), wanted=frozenset("a"))
def test_some_identities_are_judged_as_with_all_others(
    partitions: tuple[list[Record], list[Record]], wanted: frozenset[str]
) -> None:
    whole = [judged(records) for records in partitions]
    records = [record for part in partitions for record in part]
    sizes = list(map(len, partitions))
    log = Records(
        np.repeat([0, 1], sizes),
        np.concatenate([np.arange(size) for size in sizes]),
        np.array([time for time, _ in records], np.int64),
    )
    late, duplicate = (np.concatenate([getattr(one, name) for one in whole]) for name in ("late", "duplicate"))
    assert not_late(log, LATENESS_US).tolist() == (~late).tolist()
    rows = np.array([place for place, (_, identity) in enumerate(records) if identity in wanted], np.int64)
    codes = np.array([ord(records[row][1]) for row in rows], np.int64)
    assert repeated(log, rows, codes, RULES).tolist() == duplicate[rows].tolist()
