"""What a label makes of a prediction: outcomes and their revisions, in whatever order the two arrive.

A label event belongs to the predictions of its join key that were asked at most `wait` before it and not after it.
The first label gives revision 1. Another event with another value corrects it; the same event again, or another one
with the same value, changes nothing. Where the wait was over before the label was read, revision 1 is NEVER, or
ASSUMED where the definition says what a label that did not come means. Then every prediction counts at the end of its
wait, however early its label came: until then those that have one would be of one kind only.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring

from tidemill_monitoring.clock import HOUR_US, tick_after
from tidemill_monitoring.decode import Label, Prediction

LABELLED = int(monitoring.OUTCOME_STATE_LABELLED)
NEVER = int(monitoring.OUTCOME_STATE_NEVER)
CORRECTED = int(monitoring.OUTCOME_STATE_CORRECTED)
ASSUMED = int(monitoring.OUTCOME_STATE_ASSUMED)

_PREDICTION_TAG = bytes([monitoring.OutcomeRecord.PREDICTION_FIELD_NUMBER << 3 | 2])


class Wait(NamedTuple):
    """How long a pipeline's predictions wait for a label, µs, and what one that did not come means (None: nothing)."""

    us: int
    absent: float | None = None


class Stored(NamedTuple):
    """A stored prediction that something has happened to."""

    pipeline: str
    prediction_id: str
    join_key: str
    as_of_us: int
    scores: bytes
    record: bytes


class Last(NamedTuple):
    """The newest outcome of a prediction so far."""

    revision: int
    label: float | None


class Match(NamedTuple):
    """A prediction and a label that belong together, with the outcome that the prediction has so far."""

    prediction: Stored
    label: Label
    last: Last | None


class Outcome(NamedTuple):
    """One revision; `ready_us` decides the evaluation it counts in, and only revision 1 counts.

    `first_label`: whether the prediction had no label before; a CORRECTED one may follow NEVER.
    """

    prediction: Stored
    revision: int
    state: int
    label: float | None
    label_time_us: int
    ready_us: int
    first_label: bool = False


class Portion(NamedTuple):
    """What a transaction takes of a batch; `last`: the batch's ticks and positions go with it.

    `paged`: its one label belongs to more predictions than a transaction takes.
    """

    predictions: Sequence[Prediction]
    labels: Sequence[Label]
    last: bool = True
    paged: bool = False

    def smaller(self) -> "list[Portion]":
        """Return, in order, what takes the place of a portion that leads to too much for one transaction."""
        predictions, labels, last, _ = self
        if predictions and labels:
            return [Portion(predictions, (), last=False), Portion((), labels, last)]
        if len(predictions) > 1:
            half = len(predictions) // 2
            return [Portion(predictions[:half], (), last=False), Portion(predictions[half:], (), last)]
        if len(labels) > 1:
            half = len(labels) // 2
            return [Portion((), labels[:half], last=False), Portion((), labels[half:], last)]
        return [self._replace(paged=True)]


def outcomes_of(matches: Iterable[Match], waits: Mapping[str, Wait]) -> list[Outcome]:
    """Return what a batch of matches leads to; several labels of one prediction are taken in the order given."""
    made: list[Outcome] = []
    newest: dict[tuple[str, str], Last] = {}
    for prediction, label, stored in matches:
        key = (prediction.pipeline, prediction.prediction_id)
        last = newest.get(key, stored)
        new = _next(prediction, label, last, waits[prediction.pipeline])
        made += new
        if new:
            newest[key] = Last(new[-1].revision, new[-1].label)
        elif last is not None:
            newest[key] = last
    return made


def _next(prediction: Stored, label: Label, last: Last | None, wait: Wait) -> list[Outcome]:
    ready_us, deadline_us = max(label.ready_us, prediction.as_of_us), prediction.as_of_us + wait.us
    if last is not None:
        if last.label == label.value:
            return []
        first = last.label is None
        return [Outcome(prediction, last.revision + 1, CORRECTED, label.value, label.label_time_us, ready_us, first)]
    # Compared by tick, as the sweep of what is overdue runs on ticks: the same answer however the log is cut.
    if tick_after(label.ready_us, HOUR_US) > tick_after(deadline_us, HOUR_US):
        made = unlabelled(prediction, wait)
        return [made, *_next(prediction, label, Last(made.revision, made.label), wait)]
    if wait.absent is not None:
        ready_us = max(ready_us, deadline_us)
    return [Outcome(prediction, 1, LABELLED, label.value, label.label_time_us, ready_us, True)]


def unlabelled(prediction: Stored, wait: Wait) -> Outcome:
    """Return the outcome of a prediction whose wait is over."""
    deadline_us = prediction.as_of_us + wait.us
    state = NEVER if wait.absent is None else ASSUMED
    return Outcome(prediction, 1, state, wait.absent, deadline_us, deadline_us, wait.absent is not None)


def encode(outcome: Outcome) -> bytes:
    """Return the OutcomeRecord; the prediction's bytes are put in as they were logged, without parsing them again."""
    prediction = outcome.prediction
    head = monitoring.OutcomeRecord(
        prediction_id=prediction.prediction_id,
        revision=outcome.revision,
        state=monitoring.OutcomeState.ValueType(outcome.state),
        label=outcome.label,
        label_time_us=outcome.label_time_us,
    ).SerializeToString()
    return b"".join((head, _PREDICTION_TAG, _varint(len(prediction.record)), prediction.record))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
