"""A sound definition file compiles to one canonical message, and to nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tidemill.definition import compile_file
from tidemill_contracts.canonical import message_hash, to_dict
from tidemill_contracts.definition.v1 import definition_pb2 as definition

FLIGHTS = Path(__file__).parents[3] / "docs/examples/flights/flights.py"
GOLDEN = Path(__file__).parent / "goldens/flights.json"

SMALL = """\
from datetime import datetime
import tidemill as tm
class Base(tm.Event):
    key: str
class Seen(Base, stream="seen", key="key", time="at"):
    value: {type}
    at: datetime
view = tm.View("view", Seen, by="key", features={{"x": {feature}}}, max_age="1d")
"""


def compiled(tmp_path: Path, type_: str = "int | None", feature: str = 'tm.count("1h")') -> definition.Definition:
    path = tmp_path / "small.py"
    path.write_text(SMALL.format(type=type_, feature=feature))
    return compile_file(path)


def test_a_view_says_how_exact_it_is_and_with_how_many_events(tmp_path: Path) -> None:
    path = tmp_path / "small.py"
    small = SMALL.format(type="int", feature='tm.count("1h")')
    (hop,) = compiled(tmp_path).views
    for options, edge_events in (('accuracy="exact"', 0), ('accuracy="exact", edge_events=500', 500)):
        path.write_text(small.replace('max_age="1d"', f'max_age="1d", {options}'))
        (view,) = compile_file(path).views
        assert (view.accuracy, view.edge_events) == (definition.ACCURACY_EXACT, edge_events)
    assert (hop.accuracy, hop.edge_events) == (definition.ACCURACY_HOP, 0)


def test_the_flights_compile_to_the_golden() -> None:
    """Regenerate it: `tidemill check docs/examples/flights/flights.py --canonical > …/goldens/flights.json`."""
    assert to_dict(compile_file(FLIGHTS)) == json.loads(GOLDEN.read_text())


def test_the_definition_language_is_light_to_import() -> None:
    heavy = "{'numpy', 'grpc', 'sqlglot', 'google.protobuf', 'typer'}"
    code = f"import sys, tidemill; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_compiling_twice_gives_the_same_hash_and_leaves_nothing_behind(tmp_path: Path) -> None:
    first = compiled(tmp_path)
    path_before, files_before = list(sys.path), sorted(tmp_path.iterdir())
    assert message_hash(compiled(tmp_path)) == message_hash(first)
    assert sys.path == path_before
    assert sorted(tmp_path.iterdir()) == files_before


def test_equal_expressions_written_differently_give_one_hash(tmp_path: Path) -> None:
    one = compiled(tmp_path, feature='tm.mean("value>15", "2h")')
    other = compiled(tmp_path, feature='tm.mean("(value > 15)", "120m")')
    assert message_hash(one) == message_hash(other)


def test_order_of_declarations_does_not_change_the_hash(tmp_path: Path) -> None:
    a = 'class A(tm.Event, stream="a", key="k", time="t"):\n    k: str\n    t: datetime\n'
    b = a.replace("class A", "class B").replace('stream="a"', 'stream="b"')
    head = "from datetime import datetime\nimport tidemill as tm\n"
    (tmp_path / "one.py").write_text(head + a + b)
    (tmp_path / "two.py").write_text(head + b + a)
    assert message_hash(compile_file(tmp_path / "one.py")) == message_hash(compile_file(tmp_path / "two.py"))


@pytest.mark.parametrize(
    ("type_", "feature", "wanted"),
    [
        ("int", 'tm.sum("value", "1h")', definition.FIELD_TYPE_INT64),
        ("float", 'tm.sum("value", "1h")', definition.FIELD_TYPE_FLOAT64),
        ("int", 'tm.mean("value", "1h")', definition.FIELD_TYPE_FLOAT64),
        ("bool", 'tm.mean("value", "1h")', definition.FIELD_TYPE_FLOAT64),
        ("bool", 'tm.sum("value", "1h")', definition.FIELD_TYPE_INT64),
        ("int", 'tm.max("value", "1h")', definition.FIELD_TYPE_INT64),
        ("datetime", 'tm.min("value", "1h")', definition.FIELD_TYPE_TIMESTAMP),
        ("str", 'tm.last("value")', definition.FIELD_TYPE_STRING),
        ("str", 'tm.count("1h", where="value = \'x\'")', definition.FIELD_TYPE_INT64),
    ],
)
def test_a_feature_has_the_type_that_its_aggregation_gives(
    tmp_path: Path, type_: str, feature: str, wanted: definition.FieldType.ValueType
) -> None:
    assert compiled(tmp_path, type_, feature).views[0].features[0].type == wanted


def test_defaults_are_written_out_in_the_canonical_form(tmp_path: Path) -> None:
    stream = compiled(tmp_path).streams[0]
    assert (stream.partitions, stream.late_policy) == (4, definition.LATE_POLICY_DROP)
    assert (stream.dedup_window_ms, stream.max_future_ms, stream.max_event_bytes) == (3_600_000, 600_000, 65_536)
    assert [(field.name, field.nullable) for field in stream.fields] == [("key", False), ("value", True), ("at", False)]


def test_a_file_may_import_its_neighbour_and_sees_its_changes(tmp_path: Path) -> None:
    events = "from datetime import datetime\nimport tidemill as tm\n"
    events += 'class Seen(tm.Event, stream="{}", key="k", time="t"):\n    k: str\n    t: datetime\n'
    (tmp_path / "neighbour.py").write_text(events.format("one"))
    (tmp_path / "main.py").write_text("from neighbour import Seen\n")
    assert compile_file(tmp_path / "main.py").streams[0].name == "one"
    (tmp_path / "neighbour.py").write_text(events.format("two"))
    assert compile_file(tmp_path / "main.py").streams[0].name == "two"


def test_postponed_annotations_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "small.py"
    text = SMALL.format(type="float | None", feature='tm.count("1h")')
    path.write_text("from __future__ import annotations\n" + text)
    assert compile_file(path).streams[0].fields[1].nullable


def test_what_no_label_means_is_part_of_the_definition_and_nothing_unless_told(tmp_path: Path) -> None:
    text = FLIGHTS.read_text()
    meant = {}
    for told in ("", ", absent=False", ", absent=True"):
        path = tmp_path / "flights.py"
        path.write_text(text.replace('wait="36h"', f'wait="36h"{told}'))
        found = compile_file(path)
        label = found.pipelines[0].label
        meant[message_hash(found)] = label.absent if label.HasField("absent") else None
    assert list(meant.values()) == [None, False, True]
    assert next(iter(meant)) == message_hash(compile_file(FLIGHTS))
