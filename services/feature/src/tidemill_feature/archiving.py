"""What the offline role keeps of each record: rows for the log's tables, and when a buffer is full; pure."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np
from google.protobuf.message import DecodeError, Message
from tidemill_contracts.canonical import stream_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_features.archive import OUTCOME_COLUMNS, PREDICTION_COLUMNS, available_us, identity_text
from tidemill_runtime.batches import Batch, Record, Refused
from tidemill_runtime.errors import Poison
from tidemill_runtime.positions import Partition

from tidemill_feature.decode import StreamDecoder
from tidemill_feature.record_columns import RecordColumns

M = TypeVar("M", bound=Message)
Columns = dict[str, list[Any]]
# Records of one partition, in offset order, and the partition's number.
Run = tuple[int, Sequence[Record]]
ORIGIN_NAMES = ("_partition", "_offset", "_identity", "_event_us", "_available_us", "_schema_hash")
# As proto3 JSON writes them; NaN is null.
_ODD_NUMBERS = {math.inf: "Infinity", -math.inf: "-Infinity"}
_encode_json = msgspec.json.Encoder().encode
# What a record costs in the buffer besides its bytes.
RECORD_OVERHEAD_BYTES = 500


@dataclass
class Buffer:
    """Raw records that no commit holds yet, by partition, in the runs in which they came."""

    max_bytes: int
    records: dict[Partition, list[Sequence[Record]]] = field(default_factory=dict)
    # From which and up to which (exclusive) offset each partition was read, watermarks included.
    read: dict[Partition, tuple[int, int]] = field(default_factory=dict)
    bytes: int = 0

    def add(self, batch: Batch) -> None:
        """Take in the next records of some partitions, and how far these were read: the last ones may be kept back."""
        for partition, end in batch.next_offsets.items():
            records = batch.partitions.get(partition, ())
            first, _ = self.read.get(partition, (records[0].offset if records else end, 0))
            self.read[partition] = (first, end)
            if records:
                _append(self.records.setdefault(partition, []), records)
            self.bytes += _weight(records)

    def behind(self, batch: Batch) -> Partition | None:
        """Return a partition of which a batch begins before the end of what was read."""
        for partition, end in batch.next_offsets.items():
            records = batch.partitions.get(partition)
            if (records[0].offset if records else end) < self.read.get(partition, (0, 0))[1]:
                return partition
        return None

    def sift(self, kept: Callable[[Batch], Batch]) -> None:
        """Forget the records that are not kept; how far was read stays."""
        before, self.records, self.bytes = self.records, {}, 0
        for place, runs in before.items():
            for run in runs:
                if left := kept(Batch({place: run})).partitions.get(place):
                    _append(self.records.setdefault(place, []), left)
                    self.bytes += _weight(left)

    @property
    def full(self) -> bool:
        return self.bytes >= self.max_bytes

    @property
    def rows(self) -> int:
        return sum(len(run) for runs in self.records.values() for run in runs)

    def topics(self) -> list[str]:
        """Return the topics with something read, sorted."""
        return sorted({partition.topic for partition in self.read})

    def runs(self, topic: str) -> list[Run]:
        """Return a topic's records, by partition."""
        places = sorted(place for place in self.records if place.topic == topic)
        return [(place.number, run) for place in places for run in self.records[place]]

    def forget(self, topic: str) -> None:
        """Forget a topic: a commit now holds it."""
        for place in [place for place in self.read if place.topic == topic]:
            del self.read[place]
            self.bytes -= sum(map(_weight, self.records.pop(place, ())))

    def clear(self) -> None:
        """Forget everything: it is read again."""
        self.records.clear()
        self.read.clear()
        self.bytes = 0


def _append(runs: list[Sequence[Record]], records: Sequence[Record]) -> None:
    """Add the next records; few by themselves join those before them."""
    if isinstance(records, RecordColumns):
        runs.append(records)
    elif runs and isinstance(runs[-1], list):
        runs[-1].extend(records)
    else:
        runs.append(list(records))


def _weight(records: Sequence[Record]) -> int:
    if isinstance(records, RecordColumns):
        values = int(np.maximum(records.value.size, 0).sum())
    else:
        values = sum(len(record.value or b"") for record in records)
    return values + RECORD_OVERHEAD_BYTES * len(records)


@dataclass(frozen=True)
class Rows:
    """Rows of one table as columns, and the records that are none."""

    columns: Columns
    refused: list[Refused]

    def __len__(self) -> int:
        return len(self.columns["_offset"])


def event_rows(stream: definition.Stream, runs: Iterable[Run]) -> Rows:
    """Return the events of a stream; what the online role calls poison is left out here too."""
    decoder = StreamDecoder(stream)
    names = [field.name for field in stream.fields]
    columns: Columns = {name: [] for name in (*ORIGIN_NAMES, *names)}
    refused: list[Refused] = []
    schema = stream_hash(stream)
    for number, records in runs:
        decoded = decoder.decode(records)
        refused.extend(decoded.refused)
        count = len(decoded.offset)
        origin = (decoded.offset.tolist(), decoded.event_us.tolist(), decoded.written_ms.tolist())
        _extend_origin(columns, number, *origin, schema)
        columns["_identity"].extend(map(identity_text, decoded.identities))
        for name, column in decoder.columns(decoded.values, names).items():
            values = column.values.tolist()
            if column.nulls.any():
                values = [None if null else value for value, null in zip(values, column.nulls.tolist(), strict=True)]
            columns[name].extend(values if count else ())
    return Rows(columns, refused)


def prediction_rows(runs: Iterable[Run]) -> Rows:
    """Return logged predictions; their event time is their `as_of`."""
    names = tuple(column.name for column in PREDICTION_COLUMNS)
    columns: Columns = {name: [] for name in (*ORIGIN_NAMES, *names)}
    refused: list[Refused] = []
    shown: dict[bytes, str] = {}
    for number, offset, written_ms, prediction in _messages(runs, serving.PredictionRecord, refused):
        _extend_origin(columns, number, [offset], [prediction.as_of_us], [written_ms], "")
        columns["_identity"].append(prediction.prediction_id)
        key = b"".join(position.SerializeToString() for position in prediction.positions)
        positions = shown.get(key) or shown.setdefault(key, _positions_json(prediction))
        values = (
            prediction.prediction_id,
            prediction.pipeline,
            prediction.join_key,
            prediction.as_of_us,
            prediction.model_version,
            prediction.probability,
            positions,
            prediction.request_json.decode("utf-8", "replace"),
            prediction.definition_hash,
            served_json(prediction.features),
        )
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
    return Rows(columns, refused)


def served_json(features: serving.ServedFeatures) -> str:
    """Return served features as the log keeps them; every number comes back as it was.

    >>> served_json(serving.ServedFeatures(numbers=[0.1, float("nan")], categories=["JFK"], statuses=bytes([1, 2])))
    '{"numbers":[0.1,null],"categories":["JFK"],"statuses":[1,2]}'
    """
    numbers = [number if number - number == 0.0 else _ODD_NUMBERS.get(number) for number in features.numbers]
    content = {"numbers": numbers, "categories": list(features.categories), "statuses": list(features.statuses)}
    return _encode_json(content).decode()


def outcome_rows(runs: Iterable[Run]) -> Rows:
    """Return outcomes; their event time is their label's."""
    names = tuple(column.name for column in OUTCOME_COLUMNS)
    columns: Columns = {name: [] for name in (*ORIGIN_NAMES, *names)}
    refused: list[Refused] = []
    for number, offset, written_ms, outcome in _messages(runs, monitoring.OutcomeRecord, refused):
        _extend_origin(columns, number, [offset], [outcome.label_time_us], [written_ms], "")
        columns["_identity"].append(f"{outcome.prediction_id}/{outcome.revision}")
        prediction = outcome.prediction
        values = (
            outcome.prediction_id,
            outcome.revision,
            outcome.state,
            outcome.label if outcome.HasField("label") else None,
            outcome.label_time_us,
            prediction.pipeline,
            prediction.join_key,
            prediction.as_of_us,
            prediction.model_version,
            prediction.probability,
        )
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
    return Rows(columns, refused)


def _messages(runs: Iterable[Run], kind: type[M], refused: list[Refused]) -> Iterator[tuple[int, int, int, M]]:
    """Yield each record's partition, offset, time of writing (in milliseconds), and its value decoded."""
    for number, records in runs:
        for index, (offset, written_ms, value) in enumerate(_fields(records)):
            try:
                message = kind.FromString(value)
            except DecodeError as error:
                poison = Poison(Reason.UNDECODABLE, f"no {kind.DESCRIPTOR.name}: {error}")
                refused.append(Refused(records[index], poison))
            else:
                yield number, offset, written_ms, message


def _fields(records: Sequence[Record]) -> Iterator[tuple[int, int, bytes]]:
    """Return each record's offset, when it was written (in milliseconds), and its value."""
    if isinstance(records, RecordColumns):
        return zip(records.offset.tolist(), records.timestamp.tolist(), records.values(), strict=True)
    return ((record.offset, record.timestamp, record.value or b"") for record in records)


def _extend_origin(
    columns: Columns, number: int, offsets: list[int], event_us: list[int], timestamps_ms: list[int], schema: str
) -> None:
    count = len(offsets)
    columns["_partition"].extend([number] * count)
    columns["_offset"].extend(offsets)
    columns["_event_us"].extend(event_us)
    columns["_available_us"].extend(map(available_us, timestamps_ms))
    columns["_schema_hash"].extend([schema] * count)


def _positions_json(prediction: serving.PredictionRecord) -> str:
    positions: dict[str, dict[str, int]] = {}
    for position in prediction.positions:
        positions.setdefault(position.topic, {})[str(position.partition)] = position.next_offset
    return json.dumps(positions, separators=(",", ":"), sort_keys=True)
