"""The pure step of the join: a batch of records becomes predictions, labels and clocks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tidemill_runtime.batches import Batch, Record, Refused, Step
from tidemill_runtime.errors import Poison
from tidemill_runtime.positions import Offsets, Partition

from tidemill_monitoring.clock import EventTimes
from tidemill_monitoring.decode import PREDICTIONS, Label, Prediction, StreamPlan, event, labels, prediction, stored
from tidemill_monitoring.gaps import Logged
from tidemill_monitoring.registered import Registered


class Effects(NamedTuple):
    """What one batch brings; `clocks` is where each pipeline's clock stands after it, as far as it has one."""

    predictions: Sequence[Prediction]
    labels: Sequence[Label]
    offsets: Offsets
    newest_us: Mapping[Partition, int]
    # Predictions that are numbered, those that were read before too.
    logged: Sequence[Logged]
    clocks: Mapping[str, int]
    now_us: int
    records: int


def step(times: EventTimes, batch: Batch, now_us: int, registered: Registered) -> Step[EventTimes, Effects]:
    """Read a batch; a record is either taken as a whole or refused as a whole."""
    found_predictions: dict[tuple[str, str], Prediction] = {}
    found_labels: dict[tuple[str, str, str], Label] = {}
    refused: list[Refused] = []
    newest: dict[Partition, int] = {}
    logged: list[Logged] = []
    for partition, records in batch.partitions.items():
        if partition.topic == PREDICTIONS:
            refused += _read_predictions(records, partition, times, found_predictions, logged)
            if (newest_us := times.newest(partition)) is not None:
                newest[partition] = newest_us
            continue
        plan = registered.plans.get(partition.topic)
        if plan is None:
            continue
        refused += _read_events(records, (partition, plan), times, now_us, found_labels)
        if (reached := times.newest(partition)) is not None:
            newest[partition] = reached
        times.hear(partition, now_us)
    # Of what was refused before, or is for others, only that it was read is known here.
    for partition, next_offset in batch.next_offsets.items():
        times.read(partition, next_offset)
    clocks = clocks_of(times, registered, now_us)
    effects = Effects(
        list(found_predictions.values()),
        list(found_labels.values()),
        batch.next_offsets,
        newest,
        logged,
        clocks,
        now_us,
        batch.count,
    )
    return Step(times, effects, refused)


def clocks_of(times: EventTimes, registered: Registered, now_us: int) -> dict[str, int]:
    """Return where the clock of each pipeline stands that has one."""
    clocks = {name: times.clock(registered.partitions(name), now_us) for name in registered.pipelines()}
    return {name: clock for name, clock in clocks.items() if clock is not None}


def _read_predictions(
    records: Sequence[Record],
    partition: Partition,
    times: EventTimes,
    into: dict[tuple[str, str], Prediction],
    logged: list[Logged],
) -> list[Refused]:
    refused = []
    for record in records:
        try:
            found = prediction(record)
            into.setdefault((found.pipeline, found.prediction_id), stored(found, record.value or b""))
            times.observe(partition, found.as_of_us)
            if found.sequence:
                written_us = record.timestamp * 1000
                logged.append(Logged(partition, record.offset, written_us, found.process_id, found.sequence))
        except Poison as poison:
            refused.append(Refused(record, poison))
    return refused


def _read_events(
    records: Sequence[Record],
    source: tuple[Partition, StreamPlan],
    times: EventTimes,
    now_us: int,
    into: dict[tuple[str, str, str], Label],
) -> list[Refused]:
    partition, plan = source
    refused = []
    for record in records:
        try:
            found = event(record, plan, now_us)
            # Read before the clock moves: what is refused moves nothing.
            ready_us = max(found.time_us, times.newest(partition) or found.time_us)
            read = labels(found, plan, ready_us)
        except Poison as poison:
            refused.append(Refused(record, poison))
            continue
        times.observe(partition, found.time_us)
        for label in read:
            into.setdefault((label.pipeline, label.join_key, label.identity), label)
    return refused
