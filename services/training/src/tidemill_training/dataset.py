"""The point-in-time training set: what could have been asked, what was known then, and what came of it; pure.

A row is one request: a logged prediction, with the offsets that its rings held, or a request event that nobody
predicted, cut by time. Its features are those of the offline twin at its `as_of` and cut; its label is the newest one
that had come when the run was asked for. A row whose label has not come, or is null, is left out.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.cuts import cuts_by_time
from tidemill_features.expressions import Column, compile_expression, schema_of
from tidemill_features.fold import Events
from tidemill_features.offline import OfflineValues, OfflineView, Rows
from tidemill_features.plan import ViewPlan
from tidemill_features.vector import VectorRows, compile_vector
from tidemill_models.encoding import Column as Feature
from tidemill_models.encoding import Floats
from tidemill_models.errors import ModelError

from tidemill_training.experiment import Table
from tidemill_training.spec import Window

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Objects = NDArray[np.object_]

# Reading and folding leave the interpreter's lock often enough for two to gain a quarter.
THREADS = 2

# The cut of a row that no prediction named, before it is found by time.
UNNAMED = -1


@dataclass(frozen=True)
class StreamLog:
    """Every archived record of one stream, in offset order within each partition.

    `counts`: neither a duplicate nor dropped as late; only these are features, labels and requests.
    """

    partition: Ints
    offset: Ints
    event_us: Ints
    counts: Bools
    columns: Mapping[str, Column]

    def counted(self) -> Events:
        """Return the events that count."""
        return Events(
            self.partition[self.counts],
            self.offset[self.counts],
            self.event_us[self.counts],
            {name: take(column, self.counts) for name, column in self.columns.items()},
        )


@dataclass(frozen=True)
class Asked:
    """Requests: `join_key` object[n], their fields, and per stream the cuts int64[n, partitions] (UNNAMED: by time)."""

    join_key: Objects
    as_of_us: Ints
    columns: Mapping[str, Column]
    cuts: Mapping[str, Ints]

    def __len__(self) -> int:
        return len(self.as_of_us)

    def take(self, rows: Any) -> "Asked":
        """Return some rows."""
        return Asked(
            self.join_key[rows],
            self.as_of_us[rows],
            {name: take(column, rows) for name, column in self.columns.items()},
            {stream: cuts[rows] for stream, cuts in self.cuts.items()},
        )


def take(column: Column, rows: Any) -> Column:
    """Return some rows of a column."""
    return Column(column.values[rows], column.nulls[rows])


def build_table(
    closure: definition.Definition, logs: Mapping[str, StreamLog], predicted: Asked, window: Window
) -> Table:
    """Return the labelled rows of a window, in time order.

    `closure`: one pipeline with all that it refers to; `logs`: by stream, up to the run's positions;
    `predicted`: the logged predictions, each once. Raises `ModelError` where the definition allows no table.
    """
    pipeline = closure.pipelines[0]
    streams = {stream.name: stream for stream in closure.streams}
    requests = requested(logs[pipeline.request], streams[pipeline.request], pipeline.label.by)
    asked = joined(predicted, requests, streams)
    inside = (asked.as_of_us >= window.from_us) & (asked.as_of_us < window.until_us)
    asked = asked.take(inside)
    labels = labels_of(asked, pipeline.label, logs[pipeline.label.stream], streams, window.until_us)
    keep = np.flatnonzero(~np.isnan(labels))
    # Time order, ties by key: the same rows come in the same order whatever the order of the log.
    keep = keep[np.lexsort((asked.join_key[keep].astype(np.str_), asked.as_of_us[keep]))]
    asked = cut_by_time(asked.take(keep), logs)
    vectors = _vectors(closure, logs, asked)
    columns = tuple(Feature(name, kind) for name, kind in zip(vectors.names, vectors.category, strict=True))
    return Table(columns, vectors.numbers, vectors.categories, asked.as_of_us, labels[keep])


def requested(log: StreamLog, stream: definition.Stream, by: str) -> Asked:
    """Return every request event as a row that asks at its event time."""
    events = log.counted()
    return Asked(join_keys(events.columns[by]), events.event_us, events.columns, {})


def join_keys(column: Column) -> Objects:
    """Return the join key's values as text, None for null: as predictions carry them (JSON for what is no string)."""
    if column.values.dtype == np.object_:
        keys = column.values.copy()
    else:
        keys = np.array([json.dumps(value) for value in column.values.tolist()], dtype=np.object_)
    keys[column.nulls] = None
    return keys


def joined(predicted: Asked, requests: Asked, streams: Mapping[str, definition.Stream]) -> Asked:
    """Return the predictions, and the requests whose join key nobody predicted."""
    known = set(predicted.join_key.tolist())
    rest = requests.take(np.array([key is not None and key not in known for key in requests.join_key], dtype=np.bool_))
    cuts = {}
    for name, stream in streams.items():
        named = predicted.cuts.get(name, np.full((len(predicted), stream.partitions), UNNAMED))
        cuts[name] = np.concatenate((named, np.full((len(rest), stream.partitions), UNNAMED)))
    columns = {
        name: Column(
            np.concatenate((predicted.columns[name].values, column.values)),
            np.concatenate((predicted.columns[name].nulls, column.nulls)),
        )
        for name, column in rest.columns.items()
    }
    keys = np.concatenate((predicted.join_key, rest.join_key))
    return Asked(keys, np.concatenate((predicted.as_of_us, rest.as_of_us)), columns, cuts)


def labels_of(
    asked: Asked,
    label: definition.Label,
    log: StreamLog,
    streams: Mapping[str, definition.Stream],
    until_us: int,
) -> Floats:
    """Return float64[n]: 1 or 0 by the newest label event up to `until_us` and within the wait; NaN where none came."""
    expression = compile_expression(label.expression, schema_of(streams[label.stream].fields))
    if expression.type != definition.FIELD_TYPE_BOOL:
        raise ModelError(f"the label {label.expression!r} is no predicate; this release learns binary labels")
    keys, wanted = join_keys(log.columns[label.by]).tolist(), set(asked.join_key.tolist()) - {None}
    mine = np.flatnonzero(log.counts & (log.event_us <= until_us) & np.array([key in wanted for key in keys], np.bool_))
    values = expression.evaluate({name: take(column, mine) for name, column in log.columns.items()}, len(mine))
    event_us = log.event_us[mine]
    order = np.lexsort((log.offset[mine], log.partition[mine], event_us))
    # By key, the (time, value) of each label from the oldest to the newest.
    by_key: dict[str, list[tuple[int, bool]]] = {}
    for place in order[~values.nulls[order]].tolist():
        by_key.setdefault(keys[mine[place]], []).append((int(event_us[place]), bool(values.values[place])))
    latest_us = asked.as_of_us + label.wait_ms * 1000
    found = np.full(len(asked), np.nan)
    for row, (key, limit_us) in enumerate(zip(asked.join_key.tolist(), latest_us.tolist(), strict=True)):
        found[row] = next((value for at_us, value in reversed(by_key.get(key, ())) if at_us <= limit_us), np.nan)
    return found


def cut_by_time(asked: Asked, logs: Mapping[str, StreamLog]) -> Asked:
    """Return the rows with the cuts that no prediction named: before the first record after the row's `as_of`."""
    cuts = dict(asked.cuts)
    for stream, named in asked.cuts.items():
        rows = np.flatnonzero((named == UNNAMED).any(axis=1))
        log = logs.get(stream)
        if not len(rows) or log is None:
            continue
        found = cuts_by_time(log.partition, log.offset, log.event_us, asked.as_of_us[rows], named.shape[1])
        cuts[stream] = named.copy()
        cuts[stream][rows] = np.where(named[rows] == UNNAMED, found, named[rows])
    return Asked(asked.join_key, asked.as_of_us, asked.columns, cuts)


def _vectors(closure: definition.Definition, logs: Mapping[str, StreamLog], asked: Asked) -> VectorRows:
    """Return the rows' feature vectors by the offline twin."""
    views = {view.name: view for view in closure.views}
    vector = compile_vector(closure.pipelines[0], views, {stream.name: stream for stream in closure.streams})

    def twin_of(plan: ViewPlan) -> OfflineView:
        return OfflineView(plan, logs[plan.stream].counted())

    def values_of(view: OfflineView, keys: Sequence[str]) -> OfflineValues:
        return view.values(Rows([asked.columns[name] for name in keys], asked.as_of_us, asked.cuts[view.plan.stream]))

    with ThreadPoolExecutor(THREADS) as pool:
        twins = {twin.plan.name: twin for twin in pool.map(twin_of, vector.plans)}
        sources = [(twins[source.plan.name], source.on) for source in vector.sources if source.plan is not None]
        looked_up = list(pool.map(values_of, *zip(*sources, strict=True))) if sources else []
    return vector.rows(looked_up, asked.columns, len(asked))
