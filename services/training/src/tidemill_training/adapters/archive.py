"""The offline log, read for one run: the streams of its pipeline and its predictions, up to the run's positions."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.admission import rules_of
from tidemill_features.archive import PREDICTIONS_TOPIC, counting, table_name
from tidemill_features.expressions import Column, compile_expression, schema_of
from tidemill_features.expressions_vector import DTYPES, NEUTRAL
from tidemill_features.iceberg import Archive
from tidemill_features.vector import compile_vector

from tidemill_training.dataset import THREADS, Asked, StreamLog
from tidemill_training.logged import Logged, predicted
from tidemill_training.spec import RunSpec

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# By topic and partition: records at this offset and after do not count.
Limits = Mapping[tuple[str, int], int]

_ORIGIN = ("_partition", "_offset", "_identity", "_event_us")
_LOGGED = ("prediction_id", "pipeline", "join_key", "as_of_us", "positions", "request_json")
_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Inputs:
    """What a run read."""

    logs: Mapping[str, StreamLog]
    predicted: Asked
    # Iceberg snapshot per table.
    snapshots: Mapping[str, int]


def read_inputs(spec: RunSpec) -> Inputs:
    """Read what the run's rows, features and labels rest on. Raises what pyiceberg and the catalogue raise."""
    closure = spec.record.definition
    archive = Archive(spec.places.catalogue, spec.places.warehouse)
    limits = {(place.topic, place.partition): place.next_offset for place in spec.request.positions}
    reader = _Reader(archive, limits)
    fields = fields_of(closure)
    streams = {stream.name: stream for stream in closure.streams}
    # Views need their whole log: an entity that was last seen long ago is another thing than an unknown one.
    viewed = {view.stream for view in closure.views}
    from_us = spec.window.from_us
    request = streams[spec.pipeline.request]

    def read_predicted() -> Asked:
        logged = reader.predictions(spec.pipeline.name, from_us)
        return predicted(logged, request, list(streams.values()), sorted(fields[request.name]))

    def read_log(name: str) -> StreamLog:
        return reader.stream(streams[name], sorted(fields[name]), None if name in viewed else from_us)

    with ThreadPoolExecutor(THREADS) as pool:
        rows = pool.submit(read_predicted)
        logs = dict(zip(fields, pool.map(read_log, fields), strict=True))
        predictions = rows.result()
    return Inputs(logs, predictions, dict(sorted(reader.snapshots.items())))


def fields_of(closure: definition.Definition) -> dict[str, set[str]]:
    """Return, by stream, the fields that the pipeline's rows, features and label read."""
    pipeline = closure.pipelines[0]
    streams = {stream.name: stream for stream in closure.streams}
    vector = compile_vector(pipeline, {view.name: view for view in closure.views}, streams)
    found: dict[str, set[str]] = {pipeline.request: {pipeline.label.by, *vector.fields}}
    for source in vector.sources:
        found[pipeline.request].update(source.on)
    for plan in vector.plans:
        found.setdefault(plan.stream, set()).update(plan.columns)
    label = compile_expression(pipeline.label.expression, schema_of(streams[pipeline.label.stream].fields))
    found.setdefault(pipeline.label.stream, set()).update({pipeline.label.by, *label.columns})
    return found


class _Reader:
    """Reads tables and remembers their snapshots."""

    def __init__(self, archive: Archive, limits: Limits) -> None:
        self._archive = archive
        self._limits = limits
        self.snapshots: dict[str, int] = {}

    def stream(self, stream: definition.Stream, fields: Sequence[str], from_us: int | None) -> StreamLog:
        """Return a stream's log; with `from_us`, from so far before it that what counts from there on is known."""
        kinds = {field.name: field.type for field in stream.fields}
        rules = rules_of(stream)
        earliest_us = None if from_us is None else from_us - rules.dedup_window_us - rules.lateness_us
        at_least = None if earliest_us is None else ("_event_us", earliest_us)
        rows = self._rows(events_topic(stream.name), [*_ORIGIN, *fields], at_least)
        partition, offset, event_us = (rows.ints(name) for name in ("_partition", "_offset", "_event_us"))
        return StreamLog(
            partition,
            offset,
            event_us,
            counting(partition, rows.codes("_identity"), event_us, rules),
            {name: rows.column(name, kinds[name]) for name in fields},
        )

    def predictions(self, pipeline: str, from_us: int) -> Logged:
        """Return a pipeline's predictions as of `from_us` and later."""
        rows = self._rows(PREDICTIONS_TOPIC, [*_ORIGIN, *_LOGGED], ("as_of_us", from_us))
        mine = [name == pipeline for name in rows.strings("pipeline")]
        rows = rows.filtered(np.array(mine, dtype=np.bool_))
        positions, codes = np.unique(np.array(rows.strings("positions"), dtype=np.object_), return_inverse=True)
        return Logged(
            rows.strings("prediction_id"),
            rows.strings("join_key"),
            rows.ints("as_of_us"),
            rows.strings("request_json"),
            positions.tolist(),
            codes,
        )

    def _rows(self, topic: str, names: Sequence[str], at_least: tuple[str, int] | None) -> "_Rows":
        """Return the rows before the limits by (partition, offset); none where there is no table yet."""
        table, snapshot = self._archive.read(topic, names=names, at_least=at_least)
        if table is None:
            return _Rows(None, np.empty(0, dtype=np.int64))
        self.snapshots[table_name(topic)] = snapshot
        partition, offset = _ints(table["_partition"]), _ints(table["_offset"])
        limit = np.empty(len(partition), dtype=np.int64)
        for number in np.unique(partition):
            limit[partition == number] = self._limits.get((topic, int(number)), _NO_LIMIT)
        order = np.lexsort((offset, partition))
        return _Rows(table, order[(offset < limit)[order]])


class _Rows:
    """Some rows of a table, in an order; columns are converted one by one, as they are asked for."""

    def __init__(self, table: pa.Table | None, order: Ints) -> None:
        self._table = table
        self._order = order

    def filtered(self, keep: Bools) -> "_Rows":
        """Return the rows that a mask keeps."""
        return _Rows(self._table, self._order[keep])

    def ints(self, name: str) -> Ints:
        """Return a column without nulls."""
        return np.empty(0, dtype=np.int64) if self._table is None else _ints(self._table[name])[self._order]

    def codes(self, name: str) -> Ints:
        """Return equal numbers for equal strings."""
        if self._table is None:
            return np.empty(0, dtype=np.int64)
        encoded = self._table[name].combine_chunks().dictionary_encode()
        return np.asarray(encoded.indices, dtype=np.int64)[self._order]

    def strings(self, name: str) -> list[str]:
        """Return a column of strings without nulls."""
        if self._table is None:
            return []
        found: list[str] = self._table[name].combine_chunks().take(pa.array(self._order)).to_pylist()
        return found

    def column(self, name: str, kind: int) -> Column:
        """Return a column as expressions take it: neutral under nulls, strings shared, instants as microseconds."""
        if self._table is None:
            return Column(np.empty(0, dtype=DTYPES[kind]), np.empty(0, dtype=np.bool_))
        raw = self._table[name].combine_chunks()
        nulls = np.asarray(raw.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)[self._order]
        if kind == definition.FIELD_TYPE_STRING:
            encoded = raw.fill_null("").dictionary_encode()
            words = np.array(encoded.dictionary.to_pylist(), dtype=np.object_)
            return Column(words[np.asarray(encoded.indices)[self._order]], nulls)
        if kind == definition.FIELD_TYPE_TIMESTAMP:
            raw = raw.cast(pa.int64())
        values = raw.fill_null(NEUTRAL[kind]).to_numpy(zero_copy_only=False)
        return Column(np.asarray(values, dtype=DTYPES[kind])[self._order], nulls)


def _ints(column: Any) -> Ints:
    return np.asarray(column.to_numpy(), dtype=np.int64)
