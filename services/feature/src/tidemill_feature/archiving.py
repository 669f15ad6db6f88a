"""What the offline role keeps of each record: rows for the log's tables, and when a buffer is full; pure."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from google.protobuf.message import DecodeError
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

Columns = dict[str, list[Any]]
ORIGIN_NAMES = ("_partition", "_offset", "_identity", "_event_us", "_available_us", "_schema_hash")
# As proto3 JSON writes them; NaN is null.
_ODD_NUMBERS = {math.inf: "Infinity", -math.inf: "-Infinity"}
_encode_json = msgspec.json.Encoder().encode
# What a record costs in the buffer besides its bytes.
RECORD_OVERHEAD_BYTES = 500


@dataclass
class Buffer:
    """Raw records that no commit holds yet, by partition."""

    max_bytes: int
    records: dict[Partition, list[Record]] = field(default_factory=dict)
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
                self.records.setdefault(partition, []).extend(records)
            self.bytes += sum(map(_weight, records))

    def sift(self, kept: Callable[[Batch], Batch]) -> None:
        """Forget the records that are not kept; how far was read stays."""
        self.records = {place: list(records) for place, records in kept(Batch(self.records)).partitions.items()}
        self.bytes = sum(_weight(record) for records in self.records.values() for record in records)

    @property
    def full(self) -> bool:
        return self.bytes >= self.max_bytes

    @property
    def rows(self) -> int:
        return sum(map(len, self.records.values()))

    def topics(self) -> list[str]:
        """Return the topics with something read, sorted."""
        return sorted({partition.topic for partition in self.read})

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


def _weight(record: Record) -> int:
    return len(record.value or b"") + RECORD_OVERHEAD_BYTES


@dataclass(frozen=True)
class Rows:
    """Rows of one table as columns, and the records that are none."""

    columns: Columns
    refused: list[Refused]

    def __len__(self) -> int:
        return len(self.columns["_offset"])


def event_rows(stream: definition.Stream, partitions: Mapping[int, Sequence[Record]]) -> Rows:
    """Return the events of a stream; what the online role calls poison is left out here too."""
    decoder = StreamDecoder(stream)
    names = [field.name for field in stream.fields]
    columns: Columns = {name: [] for name in (*ORIGIN_NAMES, *names)}
    refused: list[Refused] = []
    schema = stream_hash(stream)
    for number, records in sorted(partitions.items()):
        decoded = decoder.decode(records)
        refused.extend(decoded.refused)
        count = len(decoded.offset)
        times = {record.offset: record.timestamp for record in records}
        offsets = decoded.offset.tolist()
        _extend_origin(columns, number, offsets, decoded.event_us.tolist(), [times[one] for one in offsets], schema)
        columns["_identity"].extend(map(identity_text, decoded.identities))
        for name, column in decoder.columns(decoded.values, names).items():
            values = column.values.tolist()
            if column.nulls.any():
                values = [None if null else value for value, null in zip(values, column.nulls.tolist(), strict=True)]
            columns[name].extend(values if count else ())
    return Rows(columns, refused)


def prediction_rows(partitions: Mapping[int, Sequence[Record]]) -> Rows:
    """Return logged predictions; their event time is their `as_of`."""
    names = tuple(column.name for column in PREDICTION_COLUMNS)
    columns: Columns = {name: [] for name in (*ORIGIN_NAMES, *names)}
    refused: list[Refused] = []
    shown: dict[bytes, str] = {}
    for number, record in _ordered(partitions):
        try:
            prediction = serving.PredictionRecord.FromString(record.value or b"")
        except DecodeError as error:
            refused.append(Refused(record, Poison(Reason.UNDECODABLE, f"no PredictionRecord: {error}")))
            continue
        _extend_origin(columns, number, [record.offset], [prediction.as_of_us], [record.timestamp], "")
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


def outcome_rows(partitions: Mapping[int, Sequence[Record]]) -> Rows:
    """Return outcomes; their event time is their label's."""
    names = tuple(column.name for column in OUTCOME_COLUMNS)
    columns: Columns = {name: [] for name in (*ORIGIN_NAMES, *names)}
    refused: list[Refused] = []
    for number, record in _ordered(partitions):
        try:
            outcome = monitoring.OutcomeRecord.FromString(record.value or b"")
        except DecodeError as error:
            refused.append(Refused(record, Poison(Reason.UNDECODABLE, f"no OutcomeRecord: {error}")))
            continue
        _extend_origin(columns, number, [record.offset], [outcome.label_time_us], [record.timestamp], "")
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


def _ordered(partitions: Mapping[int, Sequence[Record]]) -> list[tuple[int, Record]]:
    return [(number, record) for number, records in sorted(partitions.items()) for record in records]


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
