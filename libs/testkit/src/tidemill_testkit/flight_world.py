"""A small flight pipeline with everything that serving needs: definition, signed bundles, rings.

Needs the extra `world`; services that serve or benchmark predictions import it in their tests.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tidemill_contracts.canonical import message_hash, view_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.fits import sources_of
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.topics import events_topic
from tidemill_features.expressions import Column
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import DEFAULT_GROUP, DEFAULT_PROJECT, Checkpoint, checkpoint_key, view_id
from tidemill_features.plan import compile_view
from tidemill_features.vector import compile_vector
from tidemill_models.bundle import MANIFEST, seal
from tidemill_models.encoding import Column as EncodedColumn
from tidemill_models.encoding import Encoding
from tidemill_models.linear import CategoryTerm, LinearModel, NumberTerm
from tidemill_models.manifest import Constructor, Manifest, manifest_hash

PIPELINE = "flight-delays"
PARTITIONS = 2
HOUR_US = 3_600_000_000
# 2013-06-04T12:00:00Z
NOON_US = 1_370_347_200_000_000
TOPIC_ID = bytes(range(16))

_STRING = definition.FIELD_TYPE_STRING
_FLOAT = definition.FIELD_TYPE_FLOAT64
_TIME = definition.FIELD_TYPE_TIMESTAMP
_FLIGHT = {"flight_id": _STRING, "origin": _STRING, "dest": _STRING, "carrier": _STRING, "tailnum": _STRING}
_MEAN = definition.AGGREGATION_FUNCTION_MEAN
_CATEGORIES = {"carrier": ("AA", "DL", "UA"), "dest": ("ATL", "BOS", "LAX", "ORD")}


def _stream(name: str, time: str, **fields: Any) -> definition.Stream:
    kinds = {**_FLIGHT, **fields, time: _TIME}
    return definition.Stream(
        name=name,
        fields=[definition.Field(name=one, type=kind, nullable=one == "tailnum") for one, kind in kinds.items()],
        key_field="flight_id",
        time_field=time,
        partitions=PARTITIONS,
        lateness_ms=6 * 3_600_000,
        late_policy=definition.LATE_POLICY_DROP,
        dedup_window_ms=3_600_000,
        max_future_ms=600_000,
        max_event_bytes=65_536,
    )


def _aggregation(name: str, function: Any, hours: int, expression: str = "") -> definition.Aggregation:
    kind = definition.FIELD_TYPE_FLOAT64 if expression else definition.FIELD_TYPE_INT64
    return definition.Aggregation(
        name=name, function=function, window_ms=hours * 3_600_000, expression=expression, type=kind
    )


def _view(name: str, stream: str, entity: Sequence[str], *features: definition.Aggregation) -> definition.View:
    return definition.View(name=name, stream=stream, entity=entity, features=features, accuracy=definition.ACCURACY_HOP)


SCHEDULED = _stream("flight-scheduled", "asked_at", departs_at=_TIME, distance_miles=_FLOAT)
DEPARTED = _stream("flight-departed", "departed_at", dep_delay_minutes=_FLOAT)
ARRIVED = _stream("flight-arrived", "landed_at", arr_delay_minutes=_FLOAT)
VIEWS = (
    _view(
        "origin",
        DEPARTED.name,
        ["origin"],
        _aggregation("departures_2h", definition.AGGREGATION_FUNCTION_COUNT, 2),
        _aggregation("mean_delay_2h", _MEAN, 2, "dep_delay_minutes"),
        _aggregation("worst_delay_2h", definition.AGGREGATION_FUNCTION_MAX, 2, "dep_delay_minutes"),
        _aggregation("mean_delay_6h", _MEAN, 6, "dep_delay_minutes"),
    ),
    _view(
        "carrier",
        DEPARTED.name,
        ["carrier", "origin"],
        _aggregation("mean_delay_6h", _MEAN, 6, "dep_delay_minutes"),
        _aggregation("mean_delay_7d", _MEAN, 168, "dep_delay_minutes"),
    ),
    _view(
        "route",
        ARRIVED.name,
        ["origin", "dest"],
        _aggregation("arrivals_6h", definition.AGGREGATION_FUNCTION_COUNT, 6),
        _aggregation("mean_delay_24h", _MEAN, 24, "arr_delay_minutes"),
        _aggregation("mean_delay_7d", _MEAN, 168, "arr_delay_minutes"),
    ),
    _view(
        "plane",
        ARRIVED.name,
        ["tailnum"],
        _aggregation("last_delay", definition.AGGREGATION_FUNCTION_LAST, 24, "arr_delay_minutes"),
    ),
)


def _source(name: str, on: Sequence[str] = (), expression: str = "") -> definition.FeatureSource:
    if expression:
        return definition.FeatureSource(name=name, expression=expression)
    return definition.FeatureSource(name=name, view=definition.ViewLookup(view=name, on=on))


FLIGHT_DELAYS = definition.Pipeline(
    name=PIPELINE,
    request=SCHEDULED.name,
    features=[
        *(_source(view.name, view.entity) for view in VIEWS),
        _source("hour", expression="HOUR(departs_at)"),
        _source("distance", expression="distance_miles"),
        _source("carrier_name", expression="carrier"),
        _source("dest_name", expression="dest"),
    ],
    label=definition.Label(
        stream=ARRIVED.name, expression="arr_delay_minutes > 15", by="flight_id", wait_ms=36 * 3_600_000
    ),
    learner=definition.Learner(library="river", algorithm="linear_model.LogisticRegression"),
    train=definition.Train(window_ms=60 * 86_400_000, min_rows=100, trials=1),
    rollout=[definition.RolloutStep(kind=definition.ROLLOUT_KIND_SHADOW, duration_ms=43_200_000, min_labels=200)],
)
STREAMS = {stream.name: stream for stream in (SCHEDULED, DEPARTED, ARRIVED)}


def definition_record(revision: int = 1, views: Sequence[definition.View] = VIEWS) -> definition.DefinitionRecord:
    """Return the pipeline as `registry.pipelines.v1` carries it."""
    closure = definition.Definition(streams=STREAMS.values(), views=views, pipelines=[FLIGHT_DELAYS])
    return definition.DefinitionRecord(
        kind="pipeline", name=PIPELINE, revision=revision, hash=message_hash(closure), definition=closure, actor="test"
    )


def request_fields(number: int = 0, **changes: feature.Scalar | None) -> dict[str, feature.Scalar]:
    """Return the fields of one request; a change of None leaves the field out."""
    carrier = _CATEGORIES["carrier"][number % 3]
    fields: dict[str, feature.Scalar | None] = {
        "flight_id": feature.Scalar(string_value=f"2013-06-04-{carrier}-{number}"),
        "origin": feature.Scalar(string_value=("EWR", "JFK", "LGA")[number % 3]),
        "dest": feature.Scalar(string_value=_CATEGORIES["dest"][number % 4]),
        "carrier": feature.Scalar(string_value=carrier),
        "tailnum": feature.Scalar(string_value=f"N{number % 50}"),
        "departs_at": feature.Scalar(timestamp_us=NOON_US + 2 * HOUR_US),
        "distance_miles": feature.Scalar(float64_value=500.0 + number % 700),
        "asked_at": feature.Scalar(timestamp_us=NOON_US),
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


def rings(
    flights: Iterable[int],
    *,
    project: str = DEFAULT_PROJECT,
    group: str = DEFAULT_GROUP,
    folded: Sequence[definition.View] = VIEWS,
) -> dict[bytes, bytes]:
    """Return what Redis holds, shards and checkpoints, after these flights came and went, one a minute before noon.

    `folded` may hold several versions of a view.
    """
    numbers = list(flights)
    stored: dict[bytes, bytes] = {}
    for stream, delay in ((DEPARTED, "dep_delay_minutes"), (ARRIVED, "arr_delay_minutes")):
        events = _events(stream, delay, numbers)
        ends = {p: int((events.partition == p).sum()) for p in range(PARTITIONS)}
        views = [view for view in folded if view.stream == stream.name]
        for view in views:
            stored |= _shards(view, stream, events, project)
        ids = frozenset(view_id(view_hash(view, stream)) for view in views)
        for partition, end in ends.items():
            point = Checkpoint(TOPIC_ID, end, 0, int(events.event_us.max(initial=0)), ids)
            stored[checkpoint_key(project, group, events_topic(stream.name), partition)] = point.pack()
    return stored


def _events(stream: definition.Stream, delay: str, numbers: Sequence[int]) -> Events:
    rows = [request_fields(number) for number in numbers]
    count = len(numbers)
    partition = np.arange(count) % PARTITIONS
    columns = {
        name: Column(np.array([row[name].string_value for row in rows], object), np.zeros(count, np.bool_))
        for name in _FLIGHT
    }
    columns[delay] = Column(np.array([float(number % 60) for number in numbers]), np.zeros(count, np.bool_))
    event_us = NOON_US - (count - np.arange(count)) * 60_000_000
    columns[stream.time_field] = Column(event_us, np.zeros(count, np.bool_))
    return Events(partition, np.arange(count) // PARTITIONS, event_us, columns)


def _shards(view: definition.View, stream: definition.Stream, events: Events, project: str) -> dict[bytes, bytes]:
    shards = ViewShards(compile_view(view, stream), project, 100_000)
    found = shards.find(events)
    shards.fold(events, shards.load(found, [None] * len(found.keys), lambda _: TOPIC_ID))
    return dict(shards.dirty({p: int((events.partition == p).sum()) for p in range(PARTITIONS)}))


def encoding() -> Encoding:
    """Return the encoding of every feature of the pipeline."""
    vector = compile_vector(FLIGHT_DELAYS, {view.name: view for view in VIEWS}, STREAMS)
    columns = tuple(EncodedColumn(name, kind) for name, kind in zip(vector.names, vector.category, strict=True))
    return Encoding(columns, {"carrier_name": _CATEGORIES["carrier"], "dest_name": _CATEGORIES["dest"]})


def linear_model(intercept: float) -> LinearModel:
    """Return a model that leans on every column; versions differ in their intercept."""
    columns = list(enumerate(encoding().columns))
    numbers = [NumberTerm(place, 10.0, 0.1, 0.05, -0.02) for place, column in columns if not column.category]
    categories = [CategoryTerm(place, (0.0, 0.1, 0.2, -0.1, 0.3, 0.05)) for place, one in columns if one.category]
    return LinearModel(intercept, tuple(numbers), tuple(categories))


@dataclass
class Versions:
    """Seals bundles and remembers their files; `publish` is called with the path and files of each."""

    key: Ed25519PrivateKey
    publish: Any
    sealed: dict[int, Mapping[str, bytes]] = field(default_factory=dict)

    def make(
        self,
        number: int,
        *,
        scorer: str = "linear",
        model: bytes | None = None,
        views: Sequence[definition.View] = VIEWS,
    ) -> registry.DeployedVersion:
        """Publish a version and return how a deployment names it."""
        name = f"model.{scorer}"
        encoded = encoding()
        manifest = Manifest(
            pipeline=PIPELINE,
            run_id=f"run-{number}",
            definition_hash=definition_record().hash,
            constructor=Constructor("river", "linear_model.LogisticRegression", {}),
            scorer=scorer,
            model_file=name,
            features=tuple(registry.FeatureColumn(name=one.name, category=one.category) for one in encoded.columns),
            views={view.name: view_hash(view, STREAMS[view.stream]) for view in views},
            sources=sources_of(FLIGHT_DELAYS),
            lineage=registry.Lineage(rows=100, seed=number),
            metrics={"log_loss": 0.5},
            files={},
            parity=0.0,
            created_at="2013-06-04T12:00:00Z",
        )
        files = seal(manifest, encoded, {name: model or linear_model(number / 10).to_bytes()}, self.key)
        path = f"{PIPELINE}/{number}"
        self.publish(path, files)
        self.sealed[number] = files
        return registry.DeployedVersion(version=number, bundle=path, manifest_hash=manifest_hash(files[MANIFEST]))


def deployment(revision: int, champion: registry.DeployedVersion, **changes: Any) -> registry.DeploymentRecord:
    """Return a deployment; `changes` are further fields of the record."""
    return registry.DeploymentRecord(pipeline=PIPELINE, revision=revision, champion=champion, **changes)
