"""The point-in-time training set: what could have been asked, what was known then, and what came of it; pure.

A row is one request: a logged prediction, with the offsets that its rings held, or a request event that nobody
predicted, cut by event time, by when events came to the log, and before itself. Its features are those of the offline
twin at its `as_of` and cut; its label is the newest one that had come when the set was asked for, neither before the
request nor later than the label's wait. A row whose label has not come, or is null, is left out. Where the definition
says what a label that does not come means, rows have it, and those whose wait is not over yet are left out: they would
all be of the other kind. Features are computed a part at a time, which bounds memory.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, repeat
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.cuts import cuts_by_time
from tidemill_features.expressions import Column, compile_expression, schema_of
from tidemill_features.fold import Events
from tidemill_features.layout import INT64_MAX
from tidemill_features.offline import OfflineValues, OfflineView, Rows
from tidemill_features.partials import LAST, MAX, MEAN, MIN, SUM
from tidemill_features.plan import ViewPlan
from tidemill_features.vector import PipelineVector, VectorRows, compile_vector

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Objects = NDArray[np.object_]

# Reading and folding leave the interpreter's lock often enough for two to gain a quarter.
THREADS = 2
PART_ROWS = 100_000

# The cut of a row that no prediction named, before it is found by time.
UNNAMED = -1

# Null for an entity without events in the window, whether it was ever seen or not; only status tells the two apart.
_ALIKE = frozenset((SUM, MEAN, MIN, MAX, LAST))


class TrainingSetError(ValueError):
    """The definition allows no training set; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Window:
    """Rows with `from_us <= as_of < until_us`, and labels that came up to `until_us`."""

    from_us: int
    until_us: int


class Earlier(Protocol):
    """The events of a stream that are older than those of its `StreamLog`, in so many partitions."""

    partitions: int

    def seen(self, entity: Sequence[str], keys: Sequence[Column], cuts: Ints) -> Bools:
        """Return the rows of whose entity a counted event lies before the row's cuts, int64[rows, partitions]."""

    def cuts(self, until_us: Ints, partitions: int) -> Ints:
        """Return int64[rows, partitions]: the offset of the first event that came to the log after `until_us`."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """When records came to the log, µs: `available_us` of each, and the first of the whole stream's."""

    available_us: Ints
    first_us: int


@dataclass(frozen=True)
class StreamLog:
    """The archived records of one stream that the rows' values can depend on, in offset order within each partition.

    `counts`: neither a duplicate nor dropped as late; only these are features, labels and requests. `earlier`: what was
    left out, None where nothing was. `arrival`: when records came to the log, None where that is not known.
    """

    partition: Ints
    offset: Ints
    event_us: Ints
    counts: Bools
    columns: Mapping[str, Column]
    earlier: Earlier | None = None
    arrival: Arrival | None = None

    def since(self, kept: Bools, earlier: Earlier) -> "StreamLog":
        """Return some records, and what stands for the others."""
        columns = {name: take(column, kept) for name, column in self.columns.items()}
        arrival = None
        if self.arrival is not None:
            arrival = Arrival(self.arrival.available_us[kept], self.arrival.first_us)
        places = (self.partition[kept], self.offset[kept], self.event_us[kept])
        return StreamLog(*places, self.counts[kept], columns, earlier, arrival)

    @property
    def partitions(self) -> int:
        """How many partitions have records."""
        here = int(self.partition.max(initial=-1)) + 1
        return max(here, self.earlier.partitions) if self.earlier is not None else here

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
    """Requests: `join_key` object[n], their fields, and per stream the cuts int64[n, partitions] (UNNAMED: by time).

    `places`: int64[n, 2], partition and offset of a request's own record, -1 of a prediction; None where all are.
    `logged_us`: when predictions came to the log; None of requests, and where that is not known.
    """

    join_key: Objects
    as_of_us: Ints
    columns: Mapping[str, Column]
    cuts: Mapping[str, Ints]
    places: Ints | None = None
    logged_us: Ints | None = None

    def __len__(self) -> int:
        return len(self.as_of_us)

    def take(self, rows: Any) -> "Asked":
        """Return some rows."""
        return Asked(
            self.join_key[rows],
            self.as_of_us[rows],
            {name: take(column, rows) for name, column in self.columns.items()},
            {stream: cuts[rows] for stream, cuts in self.cuts.items()},
            None if self.places is None else self.places[rows],
            None if self.logged_us is None else self.logged_us[rows],
        )


def take(column: Column, rows: Any) -> Column:
    """Return some rows of a column."""
    return Column(column.values[rows], column.nulls[rows])


class TrainingSet:
    """The labelled rows of a window, in time order, ties by key; their features come part by part.

    `closure`: one pipeline with all that it refers to; `logs`: by stream; `predicted`: the logged predictions, each
    once. Raises `TrainingSetError` where the definition allows no set.
    """

    def __init__(
        self, closure: definition.Definition, logs: Mapping[str, StreamLog], predicted: Asked, window: Window
    ) -> None:
        pipeline = closure.pipelines[0]
        streams = {stream.name: stream for stream in closure.streams}
        self._vector = compile_vector(pipeline, {view.name: view for view in closure.views}, streams)
        predicted = predicted.take(saw(predicted, logs))
        partitions = partitions_of(self._vector, logs, predicted.cuts)
        requests = requested(logs[pipeline.request], pipeline.label.by)
        asked = joined(_inside(predicted, window), _inside(requests, window), predicted.join_key, partitions)
        # Labelled or not.
        self.requests = len(asked)
        labels = labels_of(asked, pipeline.label, logs[pipeline.label.stream], streams, window.until_us)
        if pipeline.label.HasField("absent"):
            # Of what lies beyond the newest event nobody knows yet that it did not happen.
            known_us = max(
                int(logs[name].event_us.max(initial=-1)) for name in (pipeline.request, pipeline.label.stream)
            )
            labels = completed(labels, asked, pipeline.label, min(window.until_us, known_us))
        keep = np.flatnonzero(~np.isnan(labels))
        # Time order, ties by key: the same rows come in the same order whatever the order of the log.
        keep = keep[_in_order(asked.as_of_us[keep], asked.join_key[keep])]
        self._asked = cut_before_themselves(cut_by_time(asked.take(keep), logs), pipeline.request)
        self._twins = Twins(self._vector, logs)
        self.labels: Floats = labels[keep]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def as_of_us(self) -> Ints:
        return self._asked.as_of_us

    @property
    def join_key(self) -> Objects:
        return self._asked.join_key

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in order."""
        return self._vector.names

    @property
    def category(self) -> tuple[bool, ...]:
        """Whether each feature is a category."""
        return self._vector.category

    def parts(self, rows: int = PART_ROWS) -> Iterator[VectorRows]:
        """Yield the features of `rows` rows at a time, in order; at least one part."""
        for first in range(0, max(1, len(self)), rows):
            yield self._twins.vectors(self._asked.take(slice(first, first + rows)))


class Twins:
    """The views of a vector over fixed logs, folded when they are first asked. `partitions`: of each stream."""

    def __init__(self, vector: PipelineVector, logs: Mapping[str, StreamLog]) -> None:
        self._vector = vector
        self._logs = logs
        self._views: dict[str, OfflineView] | None = None

    def vectors(self, asked: Asked, *, statuses: bool = False) -> VectorRows:
        """Return the features of rows whose cuts are all known.

        The status of an entity that was last seen long ago may read NOT_FOUND, unless `statuses` asks for more: then
        the log is looked through for it. Values are right either way.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            if self._views is None:
                self._views = {view.plan.name: view for view in pool.map(self._view, self._vector.plans)}
            sources = [source for source in self._vector.sources if source.plan is not None]
            views = [self._views[source.plan.name] for source in sources if source.plan is not None]
            on = [source.on for source in sources]
            looked_up = list(pool.map(self._values, views, on, repeat(asked), repeat(statuses)))
        return self._vector.rows(looked_up, asked.columns, len(asked))

    def _view(self, plan: ViewPlan) -> OfflineView:
        log = self._logs[plan.stream]
        # Partitions may have been added since the view was defined.
        return OfflineView(replace(plan, partitions=max(plan.partitions, log.partitions)), log.counted())

    def _values(self, view: OfflineView, on: Sequence[str], asked: Asked, statuses: bool) -> OfflineValues:
        stream = view.plan.stream
        # A partition that the cuts do not name was not seen.
        unnamed = max(0, view.plan.partitions - asked.cuts[stream].shape[1])
        cuts = np.pad(asked.cuts[stream], ((0, 0), (0, unnamed)))
        rows = Rows([asked.columns[name] for name in on], asked.as_of_us, cuts)
        earlier = self._logs[stream].earlier
        if earlier is None or not (statuses or asks_whether_seen(view.plan)):
            return view.values(rows)
        seen = view.unseen(rows)
        places = np.flatnonzero(seen)
        if len(places):
            seen[places] = earlier.seen(view.plan.entity, [take(key, places) for key in rows.keys], rows.cuts[places])
        return view.values(rows, seen)


def partitions_of(vector: PipelineVector, logs: Mapping[str, StreamLog], cuts: Mapping[str, Ints]) -> dict[str, int]:
    """Return how many partitions each viewed stream has; some may have been added since the definition was written."""
    return {
        plan.stream: max(
            plan.partitions, logs[plan.stream].partitions, cuts[plan.stream].shape[1] if plan.stream in cuts else 0
        )
        for plan in vector.plans
    }


def asks_whether_seen(plan: ViewPlan) -> bool:
    """Return whether a value of the view depends on whether its entity was ever seen: a count, of nothing, is 0."""
    return any(feature.function not in _ALIKE for feature in plan.features)


def saw(predicted: Asked, logs: Mapping[str, StreamLog]) -> Bools:
    """Return the predictions that saw these logs: offsets say nothing of a topic that was made anew since.

    One that was logged before a stream's first record came to its log, and yet names an offset, saw another log.
    """
    found = np.ones(len(predicted), np.bool_)
    for stream, cuts in predicted.cuts.items():
        log = logs.get(stream)
        if predicted.logged_us is not None and log is not None and log.arrival is not None:
            found &= (predicted.logged_us >= log.arrival.first_us) | (cuts <= 0).all(axis=1)
    return found


def requested(log: StreamLog, by: str) -> Asked:
    """Return every request event as a row that asks at its event time."""
    events = log.counted()
    places = np.stack((events.partition, events.offset), axis=1)
    return Asked(join_keys(events.columns[by]), events.event_us, events.columns, {}, places)


def join_keys(column: Column) -> Objects:
    """Return the join key's values as text, None for null: as predictions carry them (JSON for what is no string)."""
    if column.values.dtype == np.object_:
        keys = column.values.copy()
    else:
        keys = np.array([json.dumps(value) for value in column.values.tolist()], dtype=np.object_)
    keys[column.nulls] = None
    return keys


def joined(predicted: Asked, requests: Asked, predicted_keys: Objects, partitions: Mapping[str, int]) -> Asked:
    """Return the predictions, and the requests whose join key nobody predicted.

    `partitions`: of each viewed stream. One that a prediction's positions do not name was not seen.
    """
    known = {*predicted_keys.tolist(), None}
    again = np.fromiter(map(known.__contains__, requests.join_key.tolist()), np.bool_, len(requests))
    rest = requests.take(~again)
    cuts = {}
    for name, width in partitions.items():
        named = predicted.cuts.get(name, np.full((len(predicted), width), UNNAMED))
        cuts[name] = np.full((len(predicted) + len(rest), width), UNNAMED)
        cuts[name][: len(predicted)] = 0
        cuts[name][: len(predicted), : named.shape[1]] = named
    columns = {
        name: Column(
            np.concatenate((predicted.columns[name].values, column.values)),
            np.concatenate((predicted.columns[name].nulls, column.nulls)),
        )
        for name, column in rest.columns.items()
    }
    keys = np.concatenate((predicted.join_key, rest.join_key))
    places = np.full((len(keys), 2), -1)
    if rest.places is not None:
        places[len(predicted) :] = rest.places
    return Asked(keys, np.concatenate((predicted.as_of_us, rest.as_of_us)), columns, cuts, places)


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
        raise TrainingSetError(f"the label {label.expression!r} is no predicate; this release learns binary labels")
    numbers: dict[Any, int] = dict(zip(dict.fromkeys(asked.join_key.tolist()), count(), strict=False))
    numbers.pop(None, None)
    keys = _numbered(join_keys(log.columns[label.by]), numbers)
    mine = np.flatnonzero(log.counts & (log.event_us <= until_us) & (keys >= 0))
    values = expression.evaluate({name: take(column, mine) for name, column in log.columns.items()}, len(mine))
    mine, outcome = mine[~values.nulls], values.values[~values.nulls]
    event_us, key = log.event_us[mine], keys[mine]
    order = np.lexsort((log.offset[mine], log.partition[mine], event_us, key))
    event_us, key, outcome = event_us[order], key[order], outcome[order]
    # The last label of a key up to an instant, by one search: instants as their ranks, so that key and rank fit a word.
    instants = np.unique(event_us)
    ladder = key * (len(instants) + 1) + np.searchsorted(instants, event_us) + 1
    wanted = _numbered(asked.join_key, numbers)
    latest = np.searchsorted(instants, asked.as_of_us + label.wait_ms * 1000, side="right")
    place = np.searchsorted(ladder, wanted * (len(instants) + 1) + latest, side="right") - 1
    found = np.full(len(asked), np.nan)
    rows = np.flatnonzero((place >= 0) & (wanted >= 0))
    rows = rows[(key[place[rows]] == wanted[rows]) & (event_us[place[rows]] >= asked.as_of_us[rows])]
    found[rows] = outcome[place[rows]].astype(np.float64)
    return found


def completed(labels: Floats, asked: Asked, label: definition.Label, until_us: int) -> Floats:
    """Return the labels of rows whose wait was over before `until_us`, those that did not come too; NaN of others."""
    over = (asked.as_of_us + label.wait_ms * 1000 < until_us) & (asked.join_key != None)  # noqa: E711 -- elementwise
    return np.where(over, np.where(np.isnan(labels), float(label.absent), labels), np.nan)


def cut_by_time(asked: Asked, logs: Mapping[str, StreamLog]) -> Asked:
    """Return the rows with the cuts that no prediction named: before the first record after the row's `as_of`.

    After by event time, or by when it came to the log. What was loaded later says nothing of when it could have been
    known: rows from before the stream's first arrival are cut by event time alone.
    """
    cuts = dict(asked.cuts)
    for stream, named in asked.cuts.items():
        rows = np.flatnonzero((named == UNNAMED).any(axis=1))
        log = logs.get(stream)
        if not len(rows) or log is None:
            continue
        found = _cuts(log, asked.as_of_us[rows], named.shape[1])
        cuts[stream] = named.copy()
        cuts[stream][rows] = np.where(named[rows] == UNNAMED, found, named[rows])
    return replace(asked, cuts=cuts)


def cut_before_themselves(asked: Asked, stream: str) -> Asked:
    """Return the rows with those of request events cut before their own record, in its partition of their stream.

    A request is answered before it is an event: what is asked for the next one's sake must not count in this one's.
    """
    if asked.places is None or stream not in asked.cuts:
        return asked
    rows = np.flatnonzero(asked.places[:, 0] >= 0)
    partition, offset = asked.places[rows, 0], asked.places[rows, 1]
    cuts = asked.cuts[stream].copy()
    cuts[rows, partition] = np.minimum(cuts[rows, partition], offset)
    return replace(asked, cuts={**asked.cuts, stream: cuts})


def _cuts(log: StreamLog, as_of_us: Ints, partitions: int) -> Ints:
    found = cuts_by_time(log.partition, log.offset, log.event_us, as_of_us, partitions)
    if log.arrival is None or not (as_of_us >= log.arrival.first_us).any():
        return found
    until_us = np.where(as_of_us >= log.arrival.first_us, as_of_us, INT64_MAX)
    found = np.minimum(found, cuts_by_time(log.partition, log.offset, log.arrival.available_us, until_us, partitions))
    return found if log.earlier is None else np.minimum(found, log.earlier.cuts(until_us, partitions))


def _inside(asked: Asked, window: Window) -> Asked:
    return asked.take((asked.as_of_us >= window.from_us) & (asked.as_of_us < window.until_us))


def _numbered(keys: Objects, numbers: Mapping[Any, int]) -> Ints:
    return np.fromiter(map(numbers.get, keys.tolist(), repeat(-1)), np.int64, len(keys))


def _in_order(as_of_us: Ints, keys: Objects) -> Ints:
    # As an array of text every key would take the room of the longest.
    texts = keys.tolist()
    by_key = np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int64)
    return by_key[np.argsort(as_of_us[by_key], kind="stable")]
