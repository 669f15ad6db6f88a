"""A training set as a file, Parquet or Arrow IPC, that says in its metadata exactly what it was made from."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill_features.training_set import PART_ROWS, TrainingSet
from tidemill_features.vector import VectorRows

# Key of the file's metadata: JSON of `Lineage`, with the dataset's id.
LINEAGE_KEY = b"tidemill.dataset"
SUFFIXES = {".parquet": "parquet", ".arrow": "arrow", ".ipc": "arrow", ".feather": "arrow"}
# Columns beside the features.
KEY, AS_OF, LABEL = "_join_key", "_as_of", "_label"


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a dataset came from: equal lineages are equal rows. Instants in microseconds."""

    pipeline: str
    definition_hash: str
    # Iceberg snapshot per table.
    snapshots: Mapping[str, int]
    from_us: int
    until_us: int

    @property
    def id(self) -> str:
        """A name for the dataset that only another definition, log or window changes."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the form that stands in a file's metadata."""
        return {"id": self.id, **asdict(self)}


def write_dataset(
    rows: TrainingSet, lineage: Lineage, path: Path, on_rows: Callable[[int], None], part_rows: int = PART_ROWS
) -> int:
    """Write every row with its features part by part, and return how many bytes the file has.

    The file appears under its name when it is whole. `on_rows` hears how many rows are written. Raises `KeyError` for a
    suffix that is none of `SUFFIXES`.
    """
    schema = schema_of(rows, lineage)
    kind = SUFFIXES[path.suffix.lower()]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer: Any = pq.ParquetWriter(unfinished, schema) if kind == "parquet" else pa.ipc.new_file(unfinished, schema)
        with writer:
            first = 0
            for part in rows.parts(part_rows):
                end = first + len(part.status)
                writer.write(_table(rows, part, first, schema))
                first = end
                on_rows(end)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path.stat().st_size


def schema_of(rows: TrainingSet, lineage: Lineage) -> pa.Schema:
    """Return the file's columns: the request's key, its instant, the label, then the features in the model's order."""
    features = [
        pa.field(name, pa.string() if category else pa.float64())
        for name, category in zip(rows.names, rows.category, strict=True)
    ]
    own = [
        pa.field(KEY, pa.string(), nullable=False),
        pa.field(AS_OF, pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field(LABEL, pa.float64(), nullable=False),
    ]
    return pa.schema([*own, *features], {LINEAGE_KEY: json.dumps(lineage.to_json())})


def lineage_of(path: Path) -> dict[str, Any]:
    """Return what a dataset's file says it was made from. Raises `ValueError` where it says nothing."""
    if SUFFIXES[path.suffix.lower()] == "parquet":
        schema = pq.read_schema(path)
    else:
        with pa.ipc.open_file(path) as file:
            schema = file.schema
    raw = (schema.metadata or {}).get(LINEAGE_KEY)
    if raw is None:
        raise ValueError(f"{path} is no dataset: its metadata names no lineage")
    found: dict[str, Any] = json.loads(raw)
    return found


def _table(rows: TrainingSet, part: VectorRows, first: int, schema: pa.Schema) -> pa.Table:
    mine = slice(first, first + len(part.status))
    columns = {KEY: rows.join_key[mine], AS_OF: rows.as_of_us[mine], LABEL: rows.labels[mine]}
    arrays = [pa.array(columns[name], schema.field(name).type) for name in (KEY, AS_OF, LABEL)]
    for name in part.names:
        # NaN, which is how a vector says null, is null in the file.
        values = part.numbers.get(name)
        arrays.append(pa.array(part.categories[name], pa.string()) if values is None else _nullable(values))
    return pa.Table.from_arrays(arrays, schema=schema)


def _nullable(values: Any) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)
