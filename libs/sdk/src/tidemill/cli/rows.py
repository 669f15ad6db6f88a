"""Files of rows (CSV, NDJSON, Parquet, standard input) read in batches, and cells given the types of a schema."""

import csv
import importlib
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, BinaryIO

from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill.cli.answers import USAGE, RefusedError

FORMATS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson", ".parquet": "parquet"}
STDIN = Path("-")
MAX_LINE_BYTES = 16 * 1024 * 1024
_TRUE, _FALSE = {"true", "t", "1", "yes"}, {"false", "f", "0", "no"}

Schema = Mapping[str, definition.Field]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number from 1, its bytes as JSON, and how far into the file it ends (0 to `Source.size`)."""

    number: int
    data: bytes
    position: int


@dataclass(frozen=True)
class Source:
    """A file of rows; `size` is in bytes, or rows for Parquet, None where nobody knows."""

    path: Path
    format: str
    size: int | None

    @classmethod
    def of(cls, path: Path, format_: str | None) -> "Source":
        """Return the file with its format, told or by suffix. Raises `RefusedError`."""
        known = sorted(set(FORMATS.values()))
        if format_ is not None and format_ not in known:
            raise RefusedError(f"unknown format {format_!r}; there are {', '.join(known)}", USAGE)
        # A pipe is what a shell's <(…) is.
        streamed = path == STDIN or path.is_fifo()
        if not streamed and not path.is_file():
            raise RefusedError(f"there is no file {path}", USAGE)
        chosen = format_ or FORMATS.get(path.suffix.lower()) or ("ndjson" if streamed else None)
        if chosen is None:
            raise RefusedError(f"{path.name}: unknown kind of file; say --format {', '.join(known)}", USAGE)
        if not streamed:
            size = _parquet().rows_of(path) if chosen == "parquet" else path.stat().st_size
            return cls(path, chosen, size)
        if chosen == "parquet":
            raise RefusedError("Parquet is read from a file: its end says where everything lies", USAGE)
        return cls(path, chosen, None)

    def rows(self, schema: Schema, null: str) -> Iterator[Row]:
        """Yield the rows in order; cells of a CSV become what `schema` says, `null` and empty ones null."""
        if self.format == "parquet":
            for number, fields in enumerate(_parquet().read_rows(self.path), start=1):
                yield Row(number, _json({name: plain(value) for name, value in fields.items()}), number)
            return
        with _opened(self.path) as file:
            yield from _csv_rows(file, schema, null) if self.format == "csv" else _json_rows(file)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}", USAGE) from error
    with file:
        yield file


class _Counted(io.RawIOBase):
    """Bytes on their way through, counted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


def _csv_rows(file: BinaryIO, schema: Schema, null: str) -> Iterator[Row]:
    counted = _Counted(file)
    # Bytes that are no UTF-8 travel on as they are, so that ingestion names them.
    text = io.TextIOWrapper(io.BufferedReader(counted), "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text)
    try:
        for number, cells in enumerate(reader, start=1):
            if None in cells:
                raise RefusedError(f"row {number} has more cells than the header")
            fields = {name: cell(value, schema.get(name), null) for name, value in cells.items()}
            yield Row(number, _json(fields), counted.count)
    except csv.Error as error:
        raise RefusedError(f"line {reader.line_num} is no CSV: {error}") from error


def _json_rows(file: BinaryIO) -> Iterator[Row]:
    position = number = 0
    while line := file.readline(MAX_LINE_BYTES):
        position += len(line)
        number += 1
        if line.strip():
            yield Row(number, line.strip(), position)


def cell(text: str | None, field: definition.Field | None, null: str) -> Any:
    """Return a CSV cell as its field's type; text that does not fit stays text, for the service to name.

    >>> cell("12", definition.Field(type=definition.FIELD_TYPE_FLOAT64), "NA")
    12.0
    """
    if text is None or text in ("", null):
        return None
    if field is None:
        return text
    try:
        if field.type == definition.FIELD_TYPE_INT64:
            return int(text)
        if field.type == definition.FIELD_TYPE_FLOAT64:
            number = float(text)
            return number if math.isfinite(number) else text
    except ValueError:
        return text
    if field.type == definition.FIELD_TYPE_BOOL:
        lowered = text.lower()
        return True if lowered in _TRUE else False if lowered in _FALSE else text
    return text


def plain(value: Any) -> Any:
    """Return a Parquet value as JSON can say it; a number that is not finite becomes its name, to be refused.

    >>> plain([b"JFK", 1, float("nan")])
    ['JFK', 1, 'nan']
    """
    if isinstance(value, bytes):
        # Bytes that are no UTF-8 travel on as they are, as those of a CSV do.
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _parquet() -> Any:
    """Return the Parquet reader, which needs a large package that few need."""
    try:
        return importlib.import_module("tidemill.cli.parquet")
    except ImportError as error:
        raise RefusedError("reading Parquet needs pyarrow: pip install 'tidemill[parquet]'", USAGE) from error
