"""The join's rules, on tables in memory; `test_join_laws` holds the real tables to the same."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_monitoring.clock import HOUR_US, tick_after
from tidemill_monitoring.decode import Label, Prediction
from tidemill_monitoring.join import (
    ASSUMED,
    CORRECTED,
    LABELLED,
    NEVER,
    Last,
    Match,
    Outcome,
    Portion,
    Stored,
    Wait,
    encode,
    outcomes_of,
    unlabelled,
)

WAIT_US = 10 * HOUR_US
NOTHING, NO = Wait(WAIT_US), Wait(WAIT_US, absent=0.0)


class Tables:
    """What the joiner's tables do, in memory."""

    def __init__(self, wait: Wait = NOTHING) -> None:
        self.wait = wait
        self.predictions: dict[str, Stored] = {}
        self.labels: dict[tuple[str, str], Label] = {}
        self.outcomes: dict[str, list[Outcome]] = {}

    def batch(self, predictions: Sequence[Stored], labels: Sequence[Label]) -> None:
        """Join one batch as the joiner does: predictions first, then labels in order."""
        matches = []
        for one in predictions:
            if self.predictions.setdefault(one.prediction_id, one) is one:
                eligible = [label for label in self.labels.values() if belongs(one, label)]
                matches += [Match(one, eligible[-1], None)] if eligible else []
        for label in labels:
            if self.labels.setdefault((label.join_key, label.identity), label) is label:
                matches += [
                    Match(one, label, self._last(one.prediction_id))
                    for one in self.predictions.values()
                    if belongs(one, label)
                ]
        self._keep(outcomes_of(matches, {"p": self.wait}))

    def sweep(self, tick_us: int) -> None:
        """Give up on the labels that were waited for long enough at a tick."""
        late = [one for one in self.predictions.values() if one.prediction_id not in self.outcomes]
        self._keep([unlabelled(one, self.wait) for one in late if one.as_of_us + WAIT_US < tick_us])

    def _keep(self, made: Sequence[Outcome]) -> None:
        for one in made:
            self.outcomes.setdefault(one.prediction.prediction_id, []).append(one)

    def _last(self, prediction_id: str) -> Last | None:
        found = self.outcomes.get(prediction_id)
        return Last(found[-1].revision, found[-1].label) if found else None


def belongs(prediction: Stored, label: Label) -> bool:
    age_us = label.label_time_us - prediction.as_of_us
    return prediction.join_key == label.join_key and 0 <= age_us <= WAIT_US


def stored(number: int, key: str, as_of_us: int) -> Stored:
    return Stored("p", f"id-{number}", key, as_of_us, b"", b"")


predictions = st.builds(stored, st.integers(0, 30), st.sampled_from("abc"), st.integers(0, 20).map(HOUR_US.__mul__))
label_events = st.builds(
    lambda key, identity, value, at: Label("p", key, f"{key}{identity}", value, at, at),
    st.sampled_from("abc"),
    st.integers(0, 3),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 30).map(HOUR_US.__mul__),
)
arrivals = st.lists(st.one_of(predictions, label_events), max_size=40)


@given(arrivals, st.data())
@settings(max_examples=300)
def test_every_prediction_ends_with_the_newest_label_that_belongs_to_it(
    order: list[Stored | Label], data: st.DataObject
) -> None:
    tables = Tables()
    while order:
        size = data.draw(st.integers(1, len(order)))
        part, order = order[:size], order[size:]
        tables.batch([x for x in part if isinstance(x, Stored)], [x for x in part if isinstance(x, Label)])
    for one in tables.predictions.values():
        eligible = [label for label in tables.labels.values() if belongs(one, label)]
        found = tables.outcomes.get(one.prediction_id, [])
        assert [outcome.revision for outcome in found] == list(range(1, len(found) + 1))
        assert bool(found) == bool(eligible)
        if found:
            assert found[-1].label == eligible[-1].value
            assert found[0].state in (LABELLED, NEVER)
            assert all(outcome.state == CORRECTED for outcome in found[1:])
            assert all(before.label != after.label for before, after in pairwise(found))
            assert sum(outcome.first_label for outcome in found) == 1


@given(
    st.lists(label_events, max_size=12),
    st.lists(st.integers(1, 12), max_size=6),
    st.integers(0, 20).map(HOUR_US.__mul__),
)
def test_revisions_of_a_known_prediction_do_not_depend_on_how_its_labels_are_cut_into_batches(
    events: list[Label], cuts: list[int], as_of_us: int
) -> None:
    def run(sizes: list[int]) -> list[Outcome]:
        tables = Tables()
        tables.batch([stored(1, "a", as_of_us)], [])
        rest = events
        for size in [*sizes, len(events)]:
            part, rest = rest[:size], rest[size:]
            tables.batch([], part)
        return tables.outcomes.get("id-1", [])

    assert run(cuts) == run([])


@pytest.mark.parametrize(
    ("wait", "value", "ready_hours", "states"),
    [
        (NOTHING, 1.0, 10, [LABELLED]),
        (NOTHING, 1.0, 11, [NEVER, CORRECTED]),
        (NOTHING, 1.0, 30, [NEVER, CORRECTED]),
        (NO, 1.0, 10, [LABELLED]),
        (NO, 1.0, 11, [ASSUMED, CORRECTED]),
        (NO, 0.0, 11, [ASSUMED]),
    ],
)
def test_a_label_read_after_the_wait_gives_the_same_revisions_whether_or_not_the_sweep_came_first(
    wait: Wait, value: float, ready_hours: int, states: list[int]
) -> None:
    label = Label("p", "a", "late", value, 5 * HOUR_US, ready_hours * HOUR_US)
    swept, unswept = Tables(wait), Tables(wait)
    for tables in (swept, unswept):
        tables.batch([stored(1, "a", 0)], [])
    swept.sweep(tick_after(label.ready_us) - HOUR_US)
    for tables in (swept, unswept):
        tables.batch([], [label])
    assert swept.outcomes == unswept.outcomes
    assert [one.state for one in swept.outcomes["id-1"]] == states


@given(arrivals)
def test_where_no_label_means_no_every_prediction_counts_once_at_the_end_of_its_wait(
    order: list[Stored | Label],
) -> None:
    tables = Tables(NO)
    for one in order:
        tables.batch(*(([one], []) if isinstance(one, Stored) else ([], [one])))
    tables.sweep(1_000 * HOUR_US)
    for prediction in tables.predictions.values():
        first, *later = tables.outcomes[prediction.prediction_id]
        told = {label.value for label in tables.labels.values() if belongs(prediction, label)}
        assert first.ready_us == prediction.as_of_us + WAIT_US
        assert first.state == (LABELLED if told else ASSUMED)
        assert first.label in (told or {0.0})
        assert [one.first_label for one in (first, *later)] == [True] + [False] * len(later)


def test_the_encoded_outcome_holds_the_prediction_as_it_was_logged() -> None:
    logged = serving.PredictionRecord(prediction_id="x", pipeline="p", join_key="a", request_json=b"{}" * 200)
    prediction = Stored("p", "x", "a", 0, b"", logged.SerializeToString())
    found = monitoring.OutcomeRecord.FromString(encode(Outcome(prediction, 2, CORRECTED, 0.0, 7, 7)))
    assert (found.prediction_id, found.revision, found.state, found.label_time_us) == ("x", 2, CORRECTED, 7)
    assert found.HasField("label")
    assert found.label == 0.0
    assert found.prediction == logged
    assert not monitoring.OutcomeRecord.FromString(encode(unlabelled(prediction, NOTHING))).HasField("label")
    assumed = monitoring.OutcomeRecord.FromString(encode(unlabelled(prediction, NO)))
    assert (assumed.state, assumed.HasField("label"), assumed.label) == (ASSUMED, True, 0.0)
    assert assumed.label_time_us == WAIT_US


@given(st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_a_portion_becomes_smaller_in_order_until_each_has_one_record_and_the_last_stays_last(
    predictions: int, labels: int, last: bool
) -> None:
    given_predictions = [Prediction("p", str(number), "k", number, b"", b"") for number in range(predictions)]
    given_labels = [Label("p", "k", str(number), 1.0, number, number) for number in range(labels)]
    portions = [Portion(given_predictions, given_labels, last)]
    while large := [portion for portion in portions if len(portion.predictions) + len(portion.labels) > 1]:
        place = portions.index(large[0])
        portions[place : place + 1] = large[0].smaller()
    assert [one for portion in portions for one in portion.predictions] == given_predictions
    assert [one for portion in portions for one in portion.labels] == given_labels
    assert [portion.last for portion in portions] == [*[False] * (len(portions) - 1), last]
    assert not any(portion.paged for portion in portions)


def test_a_single_label_is_taken_in_pages() -> None:
    (paged,) = Portion((), [Label("p", "k", "1", 1.0, 1, 1)]).smaller()
    assert paged == Portion((), [Label("p", "k", "1", 1.0, 1, 1)], last=True, paged=True)
