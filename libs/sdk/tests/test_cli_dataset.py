"""`tidemill dataset` over an offline log of a few events, without servers."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from tidemill.cli import dataset_command
from tidemill.cli.main import app
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us
from tidemill_contracts.topics import events_topic
from tidemill_features.archive import NAMESPACE, columns_of
from tidemill_features.iceberg import Archive, arrow_schema
from typer.testing import CliRunner, Result

NOON = parse_us("2013-06-04T12:00:00Z")
HOUR = 3_600_000_000
TEXT, FLOAT, TIME = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_TIMESTAMP
Dataset = Callable[..., Result]


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


class Registry:
    """Knows the one pipeline."""

    def __init__(self, _connection: object) -> None:
        return

    def definition(self, _kind: str, _name: str) -> definition.DefinitionRecord:
        return definition.DefinitionRecord(definition=CLOSURE, hash="sha256:0")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Run the command over events that are given as hours after noon, by stream."""
    archive = Archive.over(
        SqlCatalog(NAMESPACE, uri=f"sqlite:///{tmp_path}/catalogue.db", warehouse=f"file://{tmp_path}")
    )
    monkeypatch.setattr(dataset_command, "Archive", lambda *_places: archive)
    monkeypatch.setattr(dataset_command, "RegistryClient", Registry)

    def run(events: Mapping[str, list[float]], *options: str) -> Result:
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
        places = ("--registry", "127.0.0.1:1", "--catalogue", "postgresql://unused", "--warehouse", str(tmp_path))
        return CliRunner().invoke(app, ["dataset", "p", "-o", str(tmp_path / "set.parquet"), *places, *options])

    return run


EMPTY = [
    (
        {"asked": [0, 1]},
        (),
        "no rows: none of the requests in the window (2) has a label, which comes within 3h of the request and up to "
        "2013-06-04T13:00:00.000001Z; nothing of paid is archived yet",
    ),
    (
        {"asked": [0], "paid": [4]},
        (),
        "2013-06-04T16:00:00.000001Z; events of paid are archived of 2013-06-04T16:00:00Z to 2013-06-04T16:00:00Z",
    ),
    (
        {"asked": [0, 1], "paid": [1]},
        ("--to", "2013-06-04T11:00:00Z"),
        "no rows: no request lies in the window, 2013-06-03T11:00:00Z to 2013-06-04T11:00:00Z; "
        "events of asked are archived of 2013-06-04T12:00:00Z to 2013-06-04T13:00:00Z",
    ),
    ({"paid": [0]}, (), "2013-06-04T12:00:00.000001Z; nothing of asked is archived yet"),
]


@pytest.mark.parametrize(("events", "options", "why"), EMPTY)
def test_a_set_without_rows_says_why(
    dataset: Dataset, tmp_path: Path, events: dict[str, list[float]], options: tuple[str, ...], why: str
) -> None:
    result = dataset(events, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].endswith(why)
    assert pq.read_metadata(tmp_path / "set.parquet").num_rows == 0


def test_programs_are_told_too_and_of_nothing_where_there_are_rows(dataset: Dataset) -> None:
    found = json.loads(dataset({"asked": [0]}, "--json").stdout)
    assert (found["rows"], "nothing of paid is archived yet" in found["message"]) == (0, True)
    found = json.loads(dataset({"paid": [1]}, "--json").stdout)
    assert (found["rows"], found.get("message")) == (1, None)
