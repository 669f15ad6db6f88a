"""Parquet files row by row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from tidemill.cli.answers import USAGE, RefusedError

BATCH_ROWS = 2_000


def _open(path: Path) -> ParquetFile:
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise RefusedError(f"{path} is no Parquet file: {error}", USAGE) from error


def rows_of(path: Path) -> int:
    """Return how many rows a file has."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as dictionaries. Raises `RefusedError` where a part of it cannot be read."""
    done = 0
    with _open(path) as file:
        try:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                rows = batch.to_pylist()
                yield from rows
                done += len(rows)
        except (ArrowException, OSError, ValueError) as error:
            raise RefusedError(f"{path} cannot be read beyond row {done:,}: {error}") from error
