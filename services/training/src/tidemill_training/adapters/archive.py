"""What a run reads of the offline log: the pipeline's streams and its logged predictions, up to some positions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us
from tidemill_contracts.progress.v1.progress_pb2 import TopicPartitionOffset
from tidemill_contracts.topics import events_topic
from tidemill_features.admission import rules_of
from tidemill_features.archive import PREDICTIONS_TOPIC, counting, reach_us
from tidemill_features.columns import column_of
from tidemill_features.expressions import Column
from tidemill_features.iceberg import Archive
from tidemill_features.plan import compile_view

from tidemill_training.dataset import UNNAMED, Asked, StreamLog
from tidemill_training.spec import RunSpec

Ints = NDArray[np.int64]
# Before the window's first row lies what its features look back on, and what decides whether that counts.
MARGIN_US = 24 * 3_600_000_000


@dataclass(frozen=True)
class Inputs:
    """What a run read."""

    logs: Mapping[str, StreamLog]
    predicted: Asked
    # Iceberg snapshot per table.
    snapshots: Mapping[str, int]


def read_inputs(spec: RunSpec) -> Inputs:
    """Read every stream that the pipeline needs, and its predictions. Raises what pyiceberg raises."""
    archive = Archive(spec.places.catalogue, spec.places.warehouse)
    closure, window = spec.record.definition, spec.window
    streams = {stream.name: stream for stream in closure.streams}
    since = _since(closure, window.from_us)
    ends = _ends(spec.request.positions)
    snapshots: dict[str, int] = {}
    logs = {}
    for name, stream in streams.items():
        topic = events_topic(name)
        rows, snapshots[topic] = archive.read(topic, at_least=("_event_us", since.get(name, window.from_us)))
        logs[name] = stream_log(stream, rows, ends.get(topic))
    rows, snapshots[PREDICTIONS_TOPIC] = archive.read(PREDICTIONS_TOPIC, at_least=("as_of_us", window.from_us))
    request = streams[spec.pipeline.request]
    predicted = predictions(rows, spec.pipeline, request, streams, window.until_us)
    return Inputs(logs, predicted, {topic: snapshot for topic, snapshot in snapshots.items() if snapshot})


def _since(closure: definition.Definition, from_us: int) -> dict[str, int]:
    """Return, per stream, from which event time on a row of the window may depend on it."""
    streams = {stream.name: stream for stream in closure.streams}
    reach: dict[str, int] = {}
    for view in closure.views:
        plan = compile_view(view, streams[view.stream])
        reach[plan.stream] = max(reach.get(plan.stream, 0), reach_us(plan))
    return {
        name: from_us - reach.get(name, 0) - MARGIN_US - 1000 * (stream.dedup_window_ms + stream.lateness_ms)
        for name, stream in streams.items()
    }


def _ends(positions: Any) -> dict[str, dict[int, int]]:
    ends: dict[str, dict[int, int]] = {}
    position: TopicPartitionOffset
    for position in positions:
        ends.setdefault(position.topic, {})[position.partition] = position.next_offset
    return ends


def stream_log(stream: definition.Stream, rows: pa.Table | None, ends: Mapping[int, int] | None) -> StreamLog:
    """Return a stream's archived records below `ends` (absent: all), in offset order within each partition."""
    if rows is None:
        return _empty_log(stream)
    partition, offset = _ints(rows["_partition"]), _ints(rows["_offset"])
    order = np.lexsort((offset, partition))
    if ends is not None:
        limits = np.array([ends.get(number, 0) for number in range(int(partition.max(initial=0)) + 1)], np.int64)
        order = order[offset[order] < limits[partition[order]]]
    rows = rows.take(pa.array(order))
    partition, offset, event_us = (_ints(rows[name]) for name in ("_partition", "_offset", "_event_us"))
    identity = _ints(pc.dictionary_encode(rows["_identity"].combine_chunks()).indices)
    return StreamLog(
        partition,
        offset,
        event_us,
        counting(partition, identity, event_us, rules_of(stream)),
        {field.name: column_from_arrow(rows[field.name], field.type) for field in stream.fields},
    )


def _empty_log(stream: definition.Stream) -> StreamLog:
    none = np.zeros(0, np.int64)
    columns = {field.name: column_of([], field.type) for field in stream.fields}
    return StreamLog(none, none, none, np.zeros(0, np.bool_), columns)


def _ints(column: Any) -> Ints:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(array.to_numpy(zero_copy_only=False), np.int64)


def column_from_arrow(column: pa.ChunkedArray, kind: definition.FieldType.ValueType) -> Column:
    """Return an Arrow column in the engine's form; timestamps become microseconds."""
    array = column.combine_chunks()
    nulls = np.asarray(array.is_null().to_numpy(zero_copy_only=False), np.bool_)
    if kind == definition.FIELD_TYPE_TIMESTAMP:
        array = array.cast(pa.int64())
    if kind == definition.FIELD_TYPE_STRING:
        values = array.fill_null("").to_numpy(zero_copy_only=False).astype(np.object_)
    else:
        neutral: Any = False if kind == definition.FIELD_TYPE_BOOL else 0
        values = array.fill_null(pa.scalar(neutral, array.type)).to_numpy(zero_copy_only=False)
    return Column(values, nulls)


def predictions(
    rows: pa.Table | None,
    pipeline: definition.Pipeline,
    request: definition.Stream,
    streams: Mapping[str, definition.Stream],
    until_us: int,
) -> Asked:
    """Return the pipeline's logged predictions before `until_us`, each id once, with the cuts that they name."""
    if rows is not None:
        mine = pc.and_(pc.equal(rows["pipeline"], pipeline.name), pc.less(rows["as_of_us"], until_us))
        rows = rows.filter(mine).sort_by([("_partition", "ascending"), ("_offset", "ascending")])
        ids = rows["prediction_id"].to_pylist()
        first = {name: place for place, name in reversed(list(enumerate(ids)))}
        rows = rows.take(pa.array(sorted(first.values()), pa.int64()))
    fields = [] if rows is None else [json.loads(text) for text in rows["request_json"].to_pylist()]
    named = Positions([] if rows is None else rows["positions"].to_pylist())
    return Asked(
        np.array([] if rows is None else rows["join_key"].to_pylist(), np.object_),
        np.zeros(0, np.int64) if rows is None else _ints(rows["as_of_us"]),
        {field.name: _requested(fields, field) for field in request.fields},
        {name: named.cuts(events_topic(name), stream.partitions) for name, stream in streams.items()},
    )


class Positions:
    """The positions that predictions name, as logged; many name the same ones, which are parsed once."""

    def __init__(self, texts: list[str]) -> None:
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        self._distinct = [json.loads(text) for text in distinct]
        self._code = np.array([distinct[text] for text in texts], np.int64)

    def cuts(self, topic: str, partitions: int) -> Ints:
        """Return int64[n, partitions]; UNNAMED where a prediction names nothing of the topic."""
        cuts = np.full((len(self._distinct), partitions), UNNAMED, np.int64)
        for place, held in enumerate(self._distinct):
            if topic in held:
                cuts[place] = [held[topic].get(str(number), 0) for number in range(partitions)]
        return cuts[self._code]


def _requested(requests: list[dict[str, Any]], field: definition.Field) -> Column:
    values = [request.get(field.name) for request in requests]
    if field.type == definition.FIELD_TYPE_TIMESTAMP:
        values = [None if value is None else parse_us(value) for value in values]
    return column_of(values, field.type)
