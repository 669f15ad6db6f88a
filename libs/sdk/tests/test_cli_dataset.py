"""What `tidemill dataset` says of a set without rows, over an offline log of a few events."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from tidemill.cli.dataset_command import why_empty, window_of
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us
from tidemill_contracts.topics import events_topic
from tidemill_features.archive import NAMESPACE, columns_of
from tidemill_features.iceberg import Archive, arrow_schema
from tidemill_features.log_reader import read_inputs
from tidemill_features.training_set import TrainingSet

NOON = parse_us("2013-06-04T12:00:00Z")
HOUR = 3_600_000_000
TEXT, FLOAT, TIME = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_TIMESTAMP


def stream(name: str) -> definition.Stream:
    fields = [definition.Field(name=field, type=kind) for field, kind in (("id", TEXT), ("fare", FLOAT), ("at", TIME))]
    return definition.Stream(name=name, fields=fields, key_field="id", time_field="at", partitions=1)


PIPELINE = definition.Pipeline(
    name="p",
    request="asked",
    features=[definition.FeatureSource(name="fare", expression="fare")],
    label=definition.Label(stream="paid", expression="fare > 2", by="id", wait_ms=3 * 3_600_000),
    train=definition.Train(window_ms=86_400_000),
)
CLOSURE = definition.Definition(streams=[stream("asked"), stream("paid")], pipelines=[PIPELINE])


def archived(folder: Path, events: Mapping[str, list[float]]) -> Archive:
    """Return an offline log of events that are given as hours after noon, by stream."""
    archive = Archive.over(SqlCatalog(NAMESPACE, uri=f"sqlite:///{folder}/catalogue.db", warehouse=f"file://{folder}"))
    for name, hours in events.items():
        topic = events_topic(name)
        columns = columns_of(topic, {one.name: one for one in CLOSURE.streams})
        rows: list[dict[str, Any]] = [
            {
                "_partition": 0,
                "_offset": number,
                "_identity": f"{number}",
                "_event_us": NOON + int(hour * HOUR),
                "_available_us": NOON,
                "id": f"{number}",
                "fare": 3.0,
            }
            for number, hour in enumerate(hours)
        ]
        table = pa.table({one.name: [row.get(one.name) for row in rows] for one in columns}, arrow_schema(columns))
        archive.append(topic, columns, table, {})
    return archive


@pytest.mark.parametrize(
    ("events", "until_us", "why"),
    [
        (
            {"asked": [0, 1]},
            None,
            "no rows: none of the requests in the window (2) has a label, which comes within 3h of the request and up "
            "to 2013-06-04T13:00:00.000001Z; nothing of paid is archived yet",
        ),
        (
            {"asked": [0], "paid": [4]},
            None,
            "2013-06-04T16:00:00.000001Z; events of paid are archived of 2013-06-04T16:00:00Z to 2013-06-04T16:00:00Z",
        ),
        (
            {"asked": [0, 1], "paid": [1]},
            NOON - HOUR,
            "no rows: no request lies in the window, 2013-06-03T11:00:00Z to 2013-06-04T11:00:00Z; "
            "events of asked are archived of 2013-06-04T12:00:00Z to 2013-06-04T13:00:00Z",
        ),
        ({"paid": [0]}, None, "2013-06-04T12:00:00.000001Z; nothing of asked is archived yet"),
        ({"asked": [0], "paid": [1]}, None, ""),
    ],
)
def test_a_set_without_rows_says_why(
    tmp_path: Path, events: dict[str, list[float]], until_us: int | None, why: str
) -> None:
    archive = archived(tmp_path, events)
    window = window_of(archive, CLOSURE, None, until_us)
    inputs = read_inputs(archive, CLOSURE, window, {})
    rows = TrainingSet(CLOSURE, inputs.logs, inputs.predicted, window)
    said = why_empty(archive, PIPELINE, rows, window)
    assert said.endswith(why)
    assert bool(said) == bool(why)
