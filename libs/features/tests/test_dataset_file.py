"""A dataset's file: the rows that training sees, and what they were made from."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.columns import column_of
from tidemill_features.dataset_file import Lineage, lineage_of, write_dataset
from tidemill_features.training_set import Asked, StreamLog, TrainingSet, Window

SECOND = 1_000_000
ROWS = 250
LINEAGE = Lineage("p", "sha256:d", {"events_asked": 2**60}, 0, 1_000 * SECOND)


def rows() -> TrainingSet:
    """Return a set whose every fourth request names nobody and whose first ones see nothing."""
    asked = definition.Stream(name="asked", key_field="id", time_field="at", partitions=1)
    kinds = {"id": definition.FIELD_TYPE_STRING, "who": definition.FIELD_TYPE_STRING}
    amount = {"amount": definition.FIELD_TYPE_FLOAT64}
    for name, kind in (kinds | amount).items():
        asked.fields.add(name=name, type=kind, nullable=name != "id")
    view = definition.View(name="who", stream="asked", entity=["who"])
    view.features.add(
        name="mean",
        function=definition.AGGREGATION_FUNCTION_MEAN,
        expression="amount",
        window_ms=60_000,
        type=definition.FIELD_TYPE_FLOAT64,
    )
    pipeline = definition.Pipeline(name="p", request="asked")
    pipeline.features.add(name="v", view=definition.ViewLookup(view="who", on=["who"]))
    pipeline.features.add(name="from", expression="who")
    pipeline.label.CopyFrom(definition.Label(stream="asked", expression="amount > 3", by="id", wait_ms=1_000))
    closure = definition.Definition(streams=[asked], views=[view], pipelines=[pipeline])
    columns = {
        "id": column_of([f"r{number}" for number in range(ROWS)], kinds["id"]),
        "who": column_of([None if number % 4 == 3 else f"w{number % 3}" for number in range(ROWS)], kinds["who"]),
        "amount": column_of([number % 7 + 0.1 for number in range(ROWS)], amount["amount"]),
    }
    places = np.arange(ROWS, dtype=np.int64)
    log = StreamLog(np.zeros(ROWS, np.int64), places, places * SECOND, np.ones(ROWS, np.bool_), columns)
    nobody = Asked(np.empty(0, np.object_), places[:0], {n: column_of([], kinds[n]) for n in kinds}, {})
    nobody.columns.update({"amount": column_of([], amount["amount"])})  # type: ignore[attr-defined]
    return TrainingSet(closure, {"asked": log}, nobody, Window(0, 1_000 * SECOND))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_file_holds_every_row_whatever_the_size_of_its_parts_and_names_its_lineage(
    tmp_path: Path, suffix: str
) -> None:
    told: list[int] = []
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    write_dataset(rows(), LINEAGE, one, told.append, part_rows=100)
    write_dataset(rows(), LINEAGE, other, lambda _: None)
    assert told == [100, 200, ROWS]
    assert read(one).equals(read(other))
    assert lineage_of(one) == LINEAGE.to_json()
    assert lineage_of(one)["snapshots"] == {"events_asked": 2**60}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([one.name, other.name])


def test_the_values_are_those_of_training_with_null_for_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    whole = rows()
    write_dataset(whole, LINEAGE, path, lambda _: None, part_rows=64)
    found = pq.read_table(path)
    (part,) = whole.parts()
    # The first of each of three has nobody before it.
    assert found["v.mean"].null_count == ROWS // 4 + 3
    back = found["v.mean"].to_numpy()
    assert np.array_equal(back, part.numbers["v.mean"], equal_nan=True)
    assert found["from"].to_pylist() == part.categories["from"]
    assert found["_label"].to_pylist() == whole.labels.tolist()
    assert found["_as_of"].cast(pa.int64()).to_pylist() == whole.as_of_us.tolist()


def test_duckdb_reads_a_dataset_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    write_dataset(rows(), LINEAGE, path, lambda _: None)
    query = 'SELECT count(*), count("v.mean"), count(DISTINCT _join_key) FROM read_parquet(?)'
    assert duckdb.execute(query, [str(path)]).fetchone() == (ROWS, ROWS - ROWS // 4 - 3, ROWS)


def test_another_definition_log_or_window_is_another_dataset() -> None:
    others = [
        Lineage("p", "sha256:e", LINEAGE.snapshots, 0, LINEAGE.until_us),
        Lineage("p", "sha256:d", {"events_asked": 1}, 0, LINEAGE.until_us),
        Lineage("p", "sha256:d", LINEAGE.snapshots, 1, LINEAGE.until_us),
    ]
    assert len({LINEAGE.id, *(other.id for other in others)}) == 4
    assert Lineage("p", "sha256:d", dict(LINEAGE.snapshots), 0, LINEAGE.until_us).id == LINEAGE.id


def test_a_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def full(_: int) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_dataset(rows(), LINEAGE, tmp_path / "set.parquet", full)
    assert not list(tmp_path.iterdir())


def read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.ipc.open_file(path) as file:
        return file.read_all()
