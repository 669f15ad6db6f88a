"""A pipeline's sampled predictions of a period, as they were served and as the offline twin has them; blocking."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.archive import PREDICTIONS_TOPIC, Filter
from tidemill_features.iceberg import Archive
from tidemill_features.log_columns import LogRows
from tidemill_features.log_reader import LogReader, viewed_fields, viewed_from
from tidemill_features.log_table import LogTable
from tidemill_features.logged import Logged, predicted
from tidemill_features.training_set import Twins
from tidemill_features.vector import PipelineVector, VectorRows, compile_vector

from tidemill_feature.schemas import Schemas
from tidemill_feature.skew import Difference, Period, chosen, differences, row_of, served_of
from tidemill_feature.skew_report import Sample

_PLACE = ("_partition", "_offset")
_KEYS = ("prediction_id", "join_key")
_NUMBERS = ("as_of_us", "model_version")
_ASKED = ("positions", "request_json")
_LOGGED = "_available_us"
# Predictions of earlier releases were archived without these.
_SERVED = ("definition_hash", "features")


@dataclass(frozen=True)
class Sampling:
    """How much is compared: a share of the join keys, and bounds of predictions and of events read for them."""

    share: float
    most_rows: int
    most_events: int


class _Row(NamedTuple):
    """A sampled prediction as it was archived."""

    prediction_id: str
    join_key: str
    as_of_us: int
    model_version: int
    positions: str
    request_json: str
    definition_hash: str
    features: str
    # When it came to the log; None where that is not known.
    logged_us: int | None

    @property
    def cuts(self) -> Mapping[str, Mapping[str, int]]:
        """By topic and partition, the offset before which the rings had included everything."""
        found: Mapping[str, Mapping[str, int]] = json.loads(self.positions)
        return found


class SkewLog:
    """Reads and recomputes what a comparison needs. Raises what pyiceberg and the catalogue raise."""

    def __init__(self, archive: Archive, catalogue: Catalogue, schemas: Schemas, sampling: Sampling) -> None:
        self._archive = archive
        self._catalogue = catalogue
        self._schemas = schemas
        self._sampling = sampling

    def newest_us(self) -> int:
        """Return the newest `as_of` of all archived predictions; 0 without any."""
        table = self._archive.table(PREDICTIONS_TOPIC)
        return (table.newest("as_of_us") or 0) if table is not None else 0

    def compared(self, pipeline: str, period: Period) -> tuple[Sample, list[Difference]] | None:
        """Return the sample and the differences of every feature; None where nothing of the period was sampled."""
        table = self._archive.table(PREDICTIONS_TOPIC)
        if table is None:
            return None
        ids, beyond = self._ids(table, pipeline, period)
        if not ids:
            return None
        left_out = Counter({"beyond_bound": beyond})
        vector, definition_hash = self._vector(pipeline), self._catalogue.pipeline_hashes[pipeline]

        def kept(rows: list[_Row], reason: str, good: Callable[[_Row], bool]) -> list[_Row]:
            fine = [row for row in rows if good(row)]
            left_out[reason] += len(rows) - len(fine)
            return fine

        rows = kept(
            _rows(table, pipeline, ids, period), "redefined", lambda row: row.definition_hash == definition_hash
        )
        schemas = self._schemas.of(pipeline)
        given = {row.prediction_id: row_of(vector, schemas.get(row.model_version, ()), row.features) for row in rows}
        rows = kept(rows, "redefined", lambda row: bool(given[row.prediction_id]))
        topics = sorted({topic for row in rows for topic in row.cuts})
        held = {topic: self._archive.offsets(topic) for topic in topics}
        begun = {topic: self._begun_us(topic) for topic in topics}
        rows = kept(rows, "not_archived", lambda row: _covers(held, row.cuts) and _saw(begun, row))
        if rows and self._events(vector, rows) > self._sampling.most_events:
            rows = kept(rows, "beyond_bound", lambda row: False)
        found: list[Difference] = []
        if rows:
            served = served_of(vector, [given[row.prediction_id] or {} for row in rows])
            found = list(differences(vector, served, self._recomputed(pipeline, vector, rows)))
        as_of_us = [row.as_of_us for row in rows]
        ids = [row.prediction_id for row in rows]
        return Sample(pipeline, definition_hash, period, self._sampling.share, ids, as_of_us, left_out), found

    def _ids(self, table: LogTable, pipeline: str, period: Period) -> tuple[list[str], int]:
        """Return the predictions of the sample, and how many the bound left out."""
        wanted = Filter(at_least={"as_of_us": period.from_us}, equal={"pipeline": pipeline})
        rows = LogRows.before(table.read([*_PLACE, *_KEYS, *_NUMBERS], wanted), {})
        inside = rows.ints("as_of_us") < period.until_us
        pairs = zip(rows.strings("prediction_id"), rows.strings("join_key"), inside.tolist(), strict=True)
        # A prediction that was logged twice is one.
        keys = {prediction_id: join_key for prediction_id, join_key, mine in pairs if mine}
        places, beyond = chosen(list(keys.values()), self._sampling.share, self._sampling.most_rows)
        ids = list(keys)
        return [ids[place] for place in places], beyond

    def _begun_us(self, topic: str) -> int | None:
        table = self._archive.table(topic)
        return None if table is None else table.first_arrival_us()

    def _vector(self, name: str) -> PipelineVector:
        catalogue = self._catalogue
        return compile_vector(catalogue.pipelines[name], catalogue.views, catalogue.streams)

    def _events(self, vector: PipelineVector, rows: Sequence[_Row]) -> int:
        """Return how many events at most have to be read."""
        found = 0
        for stream, from_us in viewed_from(vector, _first_us(rows)).items():
            table = self._archive.table(events_topic(stream))
            found += 0 if table is None else table.rows_at_most(Filter(at_least={"_event_us": from_us}))
        return found

    def _recomputed(self, pipeline: str, vector: PipelineVector, rows: Sequence[_Row]) -> VectorRows:
        streams = self._catalogue.streams
        reader = LogReader(self._archive, {})
        fields, earliest = viewed_fields(vector), viewed_from(vector, _first_us(rows))
        logs = {name: reader.stream(streams[name], sorted(fields[name]), earliest[name]) for name in sorted(fields)}
        logged = Logged(
            [row.prediction_id for row in rows],
            [row.join_key for row in rows],
            np.array([row.as_of_us for row in rows], np.int64),
            [row.request_json for row in rows],
            [row.positions for row in rows],
            np.arange(len(rows)),
        )
        names = sorted({*vector.fields, *(name for source in vector.sources for name in source.on)})
        request = streams[self._catalogue.pipelines[pipeline].request]
        asked = predicted(logged, request, [streams[name] for name in sorted(fields)], names)
        return Twins(vector, logs).vectors(asked, statuses=True)


def _first_us(rows: Sequence[_Row]) -> int:
    return min(row.as_of_us for row in rows)


def _rows(table: LogTable, pipeline: str, ids: Sequence[str], period: Period) -> list[_Row]:
    """Return the first record of each prediction, in the order of the log."""
    at_least, equal = {"as_of_us": period.from_us}, {"pipeline": pipeline}
    wanted = Filter(at_least=at_least, equal=equal, among={"prediction_id": ids})
    rows = LogRows.before(table.read([*_PLACE, *_KEYS, *_NUMBERS, *_ASKED, *_SERVED, _LOGGED], wanted), {})
    numbers = [rows.ints(name).tolist() for name in _NUMBERS]
    served = [rows.column(name, definition.FIELD_TYPE_STRING).values.tolist() for name in _SERVED]
    found: dict[str, _Row] = {}
    keys, asked = [rows.strings(name) for name in _KEYS], [rows.strings(name) for name in _ASKED]
    logged = rows.ints(_LOGGED).tolist() if table.knows_arrival else [None] * len(rows)
    for values in zip(*keys, *numbers, *asked, *served, logged, strict=True):
        found.setdefault(values[0], _Row(*values))
    return list(found.values())


def _covers(held: Mapping[str, Mapping[int, int]], cuts: Mapping[str, Mapping[str, int]]) -> bool:
    """Say whether the log has everything before the cuts."""
    return all(
        held[topic].get(int(number), 0) >= offset for topic, mine in cuts.items() for number, offset in mine.items()
    )


def _saw(begun: Mapping[str, int | None], row: _Row) -> bool:
    """Say whether a prediction saw these logs: one that was logged before they began saw others of their names."""
    return all(
        row.logged_us is None or (began := begun[topic]) is None or row.logged_us >= began or not any(mine.values())
        for topic, mine in row.cuts.items()
    )
