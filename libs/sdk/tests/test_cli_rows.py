"""Rows of a file become JSON of the stream's types; what does not fit is left for the service to name."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tidemill.cli.answers import RefusedError
from tidemill.cli.push_command import Tally, identified
from tidemill.cli.rows import Row, Source
from tidemill.cli.scalars import python_value, scalar
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion

SCHEMA = {
    "id": definition.Field(name="id", type=definition.FIELD_TYPE_STRING),
    "note": definition.Field(name="note", type=definition.FIELD_TYPE_STRING, nullable=True),
    "seats": definition.Field(name="seats", type=definition.FIELD_TYPE_INT64, nullable=True),
    "delay": definition.Field(name="delay", type=definition.FIELD_TYPE_FLOAT64, nullable=True),
    "late": definition.Field(name="late", type=definition.FIELD_TYPE_BOOL),
    "at": definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
}


def read(path: Path, null: str = "NA") -> list[Any]:
    return [json.loads(row.data) for row in Source.of(path, None).rows(SCHEMA, null)]


@pytest.mark.parametrize(
    ("column", "text", "wanted"),
    [
        ("id", "007", "007"),
        ("id", "", None),
        ("id", "NA", None),
        ("note", "", None),
        ("seats", "12", 12),
        ("seats", "12.5", "12.5"),
        ("seats", "", None),
        ("delay", "12", 12.0),
        ("delay", "NA", None),
        ("delay", "nan", "nan"),
        ("delay", "1e999", "1e999"),
        ("late", "TRUE", True),
        ("late", "0", False),
        ("late", "perhaps", "perhaps"),
        ("at", "2013-06-04T00:00:00Z", "2013-06-04T00:00:00Z"),
        ("unknown", "7", "7"),
    ],
)
def test_a_cell_becomes_what_its_field_says(tmp_path: Path, column: str, text: str, wanted: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'x,{column}\n1,"{text}"\n')
    found = read(path)[0][column]
    assert (found, type(found)) == (wanted, type(wanted))


def test_a_quoted_cell_may_hold_commas_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfid,note\r\n1,"a,\nb"\r\n2,c\r\n')
    assert read(path) == [{"id": "1", "note": "a,\nb"}, {"id": "2", "note": "c"}]


def test_a_row_with_more_cells_than_the_header_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,note\n1,a\n2,b,c\n")
    with pytest.raises(RefusedError, match="row 2 has more cells than the header"):
        read(path)


def test_bytes_that_are_no_utf8_reach_the_service_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,note\n1,\xff\xfe\n")
    assert b"\xff\xfe" in next(iter(Source.of(path, None).rows(SCHEMA, "NA"))).data


def test_ndjson_is_sent_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": 1 }\n\n  {"id":\n')
    rows = list(Source.of(path, None).rows(SCHEMA, "NA"))
    assert [(row.number, row.data, row.position) for row in rows] == [(1, b'{"id": 1 }', 11), (3, b'{"id":', 21)]


def test_parquet_rows_keep_their_types(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    at = datetime(2013, 6, 4, tzinfo=UTC)
    table = {"id": ["a"], "seats": [None], "delay": [float("nan")], "late": [True], "at": [at]}
    parquet.write_table(pyarrow.table(table), path)
    assert Source.of(path, None).size == 1
    assert read(path) == [{"id": "a", "seats": None, "delay": "nan", "late": True, "at": "2013-06-04T00:00:00+00:00"}]


def test_parquet_bytes_are_text_and_lists_stay_lists_for_ingestion_to_name(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    table = {"id": [b"JFK"], "note": [{"a": [b"b"]}], "delay": [[1.5, float("inf")]]}
    parquet.write_table(pyarrow.table(table), path)
    assert read(path) == [{"id": "JFK", "note": {"a": ["b"]}, "delay": [1.5, "inf"]}]
    parquet.write_table(pyarrow.table({"id": [b"\xff"]}), path)
    assert next(iter(Source.of(path, None).rows(SCHEMA, "NA"))).data == b'{"id":"\xff"}'


def test_a_parquet_file_that_breaks_off_says_how_far_it_was_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"id": [f"x{number}" for number in range(20_000)]})
    parquet.write_table(table, path, use_dictionary=False, row_group_size=10_000)
    whole = bytearray(path.read_bytes())
    second = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    whole[second + 40 : second + 400] = bytes(360)
    path.write_bytes(whole)
    rows = Source.of(path, None).rows(SCHEMA, "NA")
    with pytest.raises(RefusedError, match=r"rows.parquet cannot be read beyond row 10,000: "):
        for _ in rows:
            pass


def test_a_row_is_named_by_its_content() -> None:
    one, same, other = Row(1, b'{"a":1}', 0), Row(2, b'{"a":1}', 0), Row(3, b'{"a":2}', 0)
    assert identified(one).id == identified(same).id != identified(other).id


def test_verdicts_are_counted_by_reason() -> None:
    verdicts = [
        ingestion.Verdict(outcome=ingestion.OUTCOME_ACCEPTED),
        ingestion.Verdict(outcome=ingestion.OUTCOME_REFUSED, reason="wrong_type", field="seats", message="whole"),
        ingestion.Verdict(outcome=ingestion.OUTCOME_DUPLICATE),
    ]
    tally = Tally()
    for row, verdict in enumerate(verdicts, 2):
        tally.note(row, verdict)
    assert (tally.rows, tally.accepted, tally.duplicates, dict(tally.refused)) == (3, 1, 1, {"wrong_type": 1})
    assert tally.examples == [{"row": 3, "reason": "wrong_type", "field": "seats", "message": "whole"}]


@pytest.mark.parametrize(
    ("value", "column", "wanted"),
    [
        (None, "id", feature.Scalar()),
        (3, "delay", feature.Scalar(float64_value=3.0)),
        (3, "seats", feature.Scalar(int64_value=3)),
        (True, "seats", feature.Scalar(bool_value=True)),
        ("1970-01-01T00:00:01Z", "at", feature.Scalar(timestamp_us=1_000_000)),
        ("noon", "at", feature.Scalar(string_value="noon")),
        (2**63 - 1, "id", feature.Scalar(int64_value=2**63 - 1)),
    ],
)
def test_a_request_field_takes_the_wire_form_of_its_type(value: Any, column: str, wanted: feature.Scalar) -> None:
    assert scalar(column, value, SCHEMA[column]) == wanted


def test_an_instant_is_shown_as_one() -> None:
    assert python_value(feature.Scalar(timestamp_us=1_000_000)) == "1970-01-01T00:00:01Z"


@pytest.mark.parametrize(("name", "text"), [("63", '{"id": "a"}\n{"id": "b"}\n'), ("rows.csv", "id\na\nb\n")])
def test_a_pipe_is_read_like_standard_input(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with ThreadPoolExecutor() as pool:
        pool.submit(path.write_text, text)
        assert [row["id"] for row in read(path)] == ["a", "b"]
    os.mkfifo(tmp_path / "rows.parquet")
    with pytest.raises(RefusedError, match="Parquet is read from a file"):
        Source.of(tmp_path / "rows.parquet", None)
