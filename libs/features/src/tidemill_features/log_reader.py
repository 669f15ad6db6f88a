"""The offline log, read for one pipeline's training set: its predictions, and of its streams what the rows rest on."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic

from tidemill_features.admission import Rules, rules_of
from tidemill_features.archive import PREDICTIONS_TOPIC, Filter, counting, reach_us, table_name
from tidemill_features.cuts import cuts_by_time
from tidemill_features.entities import UNKNOWN, Entities
from tidemill_features.expressions import Column, compile_expression, schema_of
from tidemill_features.horizon import Horizon, Records, horizon, not_late, repeated
from tidemill_features.log_columns import LogRows
from tidemill_features.log_table import LogTable, LogTables
from tidemill_features.logged import Logged, predicted
from tidemill_features.training_set import THREADS, Arrival, Asked, StreamLog, Window
from tidemill_features.vector import PipelineVector, compile_vector

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# By topic and partition: records at this offset and after do not count.
Limits = Mapping[tuple[str, int], int]

_PLACE = ("_partition", "_offset", "_event_us")
_ARRIVED = ("_partition", "_offset", "_available_us")
_LOGGED = ("prediction_id", "join_key", "as_of_us", "positions", "request_json", "_available_us")


@dataclass(frozen=True)
class Inputs:
    """What a training set is built from."""

    logs: Mapping[str, StreamLog]
    predicted: Asked
    # Iceberg snapshot per table.
    snapshots: Mapping[str, int]


def read_inputs(tables: LogTables, closure: definition.Definition, window: Window, limits: Limits) -> Inputs:
    """Read what the rows, features and labels of one pipeline rest on.

    `closure`: the pipeline with all that it refers to. Raises what pyiceberg, and the catalogue of `tables`, raise.
    """
    reader = LogReader(tables, limits)
    fields = fields_of(closure)
    earliest = earliest_of(closure, window)
    streams = {stream.name: stream for stream in closure.streams}
    pipeline = closure.pipelines[0]
    request = streams[pipeline.request]
    viewed = {view.stream for view in closure.views}

    def read_predicted() -> Asked:
        logged = reader.predictions(pipeline.name, window.from_us)
        return predicted(logged, request, [streams[name] for name in sorted(viewed)], sorted(fields[request.name]))

    def read_log(name: str) -> StreamLog:
        return reader.stream(streams[name], sorted(fields[name]), earliest[name])

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
    for stream, names in viewed_fields(vector).items():
        found.setdefault(stream, set()).update(names)
    label = compile_expression(pipeline.label.expression, schema_of(streams[pipeline.label.stream].fields))
    found.setdefault(pipeline.label.stream, set()).update({pipeline.label.by, *label.columns})
    return found


def earliest_of(closure: definition.Definition, window: Window) -> dict[str, int]:
    """Return, by stream, from when on its events matter: requests and labels are never before the window."""
    pipeline = closure.pipelines[0]
    streams = {stream.name: stream for stream in closure.streams}
    found = {pipeline.request: window.from_us, pipeline.label.stream: window.from_us}
    vector = compile_vector(pipeline, {view.name: view for view in closure.views}, streams)
    return found | viewed_from(vector, window.from_us)


def viewed_fields(vector: PipelineVector) -> dict[str, set[str]]:
    """Return, by stream, the fields that the vector's views read."""
    found: dict[str, set[str]] = {}
    for plan in vector.plans:
        found.setdefault(plan.stream, set()).update(plan.columns)
    return found


def viewed_from(vector: PipelineVector, from_us: int) -> dict[str, int]:
    """Return, by stream, from when on its events can matter to a view that is read at `from_us` or later."""
    found: dict[str, int] = {}
    for plan in vector.plans:
        reached_us = from_us - reach_us(plan)
        found[plan.stream] = min(found.get(plan.stream, reached_us), reached_us)
    return found


class LogReader:
    """Reads tables and remembers their snapshots."""

    def __init__(self, tables: LogTables, limits: Limits) -> None:
        self._tables = tables
        self._limits = limits
        self.snapshots: dict[str, int] = {}

    def stream(self, stream: definition.Stream, fields: Sequence[str], from_us: int) -> StreamLog:
        """Return of a stream's log what events from `from_us` on need, and the rest as `earlier`."""
        topic, rules = events_topic(stream.name), rules_of(stream)
        table, limits = self._table(topic), self._limits_of(topic)
        if table is None:
            return _log_of(LogRows.before(None, limits), stream, fields, None)
        oldest_us, arrived_us = table.oldest("_event_us"), table.first_arrival_us()
        names = [*_PLACE, "_available_us", "_identity", *fields]
        if oldest_us is None or oldest_us >= from_us:
            return _log_of(LogRows.before(table.read(names), limits), stream, fields, arrived_us)
        horizons = _horizons(LogRows.before(table.read(_PLACE), limits), from_us, rules)
        spans = {number: (found.read_from, None) for number, found in horizons.items()}
        log = _log_of(LogRows.before(table.read(names, Filter(spans=spans)), limits), stream, fields, arrived_us)
        judged = np.zeros(len(log.offset), np.bool_)
        for number, found in horizons.items():
            judged |= (log.partition == number) & (log.offset >= found.judged_from)
        before = {number: found.judged_from for number, found in horizons.items()}
        return log.since(judged, _Earlier(table, stream, before))

    def predictions(self, pipeline: str, from_us: int) -> Logged:
        """Return a pipeline's predictions as of `from_us` and later."""
        table = self._table(PREDICTIONS_TOPIC)
        wanted = Filter(at_least={"as_of_us": from_us}, equal={"pipeline": pipeline})
        read = None if table is None else table.read([*_PLACE, *_LOGGED], wanted)
        rows = LogRows.before(read, self._limits_of(PREDICTIONS_TOPIC))
        positions, codes = rows.coded("positions")
        return Logged(
            rows.strings("prediction_id"),
            rows.strings("join_key"),
            rows.ints("as_of_us"),
            rows.strings("request_json"),
            positions,
            codes,
            rows.ints("_available_us") if table is not None and table.knows_arrival else None,
        )

    def _table(self, topic: str) -> LogTable | None:
        """Return a table as of now, which is from now on the run's; None where there is none yet."""
        table = self._tables.table(topic)
        if table is not None:
            self.snapshots[table_name(topic)] = table.snapshot_id
        return table

    def _limits_of(self, topic: str) -> dict[int, int]:
        return {number: limit for (name, number), limit in self._limits.items() if name == topic}


class _Earlier:
    """The part of a stream's log before some offsets, looked at where the question comes up."""

    def __init__(self, table: LogTable, stream: definition.Stream, before: Mapping[int, int]) -> None:
        self._table = table
        self._rules = rules_of(stream)
        self._kinds = {field.name: field.type for field in stream.fields}
        self._before = before
        self.partitions = max(before, default=-1) + 1

    def seen(self, entity: Sequence[str], keys: Sequence[Column], cuts: Ints) -> Bools:
        """Return the rows of whose entity a counted event lies before the row's cuts."""
        rows = self._read([*_PLACE, *entity])
        log = Records(*(rows.ints(name) for name in _PLACE))
        asked = Entities(keys)
        code = asked.find([rows.column(name, self._kinds[name]) for name in entity])
        wanted = code != UNKNOWN
        if wanted.any() and not self._rules.late_counts:
            wanted &= not_late(log, self._rules.lateness_us)
        places = np.flatnonzero(wanted)
        if len(places):
            places = places[~self._duplicates(log, places)]
        found = np.zeros(len(asked.codes), np.bool_)
        for number in np.unique(log.partition[places]).tolist():
            mine = places[log.partition[places] == number]
            first = np.full(len(asked.codes) + 1, np.iinfo(np.int64).max)
            np.minimum.at(first, code[mine], log.offset[mine])
            # UNKNOWN, the last place, was never an event's.
            found |= first[asked.codes] < cuts[:, number]
        return found

    def cuts(self, until_us: Ints, partitions: int) -> Ints:
        """Return the offset of the first event of each partition that came to the log after `until_us`."""
        rows = self._read(_ARRIVED)
        partition, offset, available_us = (rows.ints(name) for name in _ARRIVED)
        return cuts_by_time(partition, offset, available_us, until_us, partitions)

    def _duplicates(self, log: Records, places: Ints) -> Bools:
        """Return which of some records are duplicates, by the identities of these alone."""
        identity = self._read([*_PLACE, "_identity"]).raw("_identity")
        mine = identity.take(pa.array(places))
        same = np.flatnonzero(pc.is_in(identity, value_set=mine).to_numpy(zero_copy_only=False))
        codes = np.asarray(identity.take(pa.array(same)).dictionary_encode().indices, dtype=np.int64)
        found = repeated(log, same, codes, self._rules)
        return np.asarray(found[np.searchsorted(same, places)], np.bool_)

    def _read(self, names: Sequence[str]) -> LogRows:
        spans: dict[int, tuple[int, int | None]] = {number: (0, end) for number, end in self._before.items()}
        return LogRows.before(self._table.read(names, Filter(spans=spans)), self._before)


def _horizons(places: LogRows, from_us: int, rules: Rules) -> dict[int, Horizon]:
    partition, offset, event_us = (places.ints(name) for name in _PLACE)
    found = {}
    for number in np.unique(partition).tolist():
        mine = partition == number
        # Where nothing is new enough, the end of what was read: an offset that no record has.
        end = int(offset[mine][-1]) + 1
        one = horizon(offset[mine], event_us[mine], from_us, rules.dedup_window_us)
        found[number] = one or Horizon(end, end)
    return found


def _log_of(rows: LogRows, stream: definition.Stream, fields: Sequence[str], arrived_us: int | None) -> StreamLog:
    kinds = {field.name: field.type for field in stream.fields}
    partition, offset, event_us = (rows.ints(name) for name in _PLACE)
    counts = counting(partition, offset, rows.codes("_identity"), event_us, rules_of(stream))
    columns = {name: rows.column(name, kinds[name]) for name in fields}
    arrival = None if arrived_us is None else Arrival(rows.ints("_available_us"), arrived_us)
    return StreamLog(partition, offset, event_us, counts, columns, arrival=arrival)
