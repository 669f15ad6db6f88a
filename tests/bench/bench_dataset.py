"""`feature.dataset`: a point-in-time training set of a million rows with twenty window features, beside DuckDB.

The log is in Iceberg as the offline role leaves it: three streams of a million events over 30 days, 10,000 payers. The
measured process does what `tidemill dataset` does, from the catalogue to the finished Parquet file; its peak of memory
is kept too. DuckDB computes the same aggregates over the same files with window functions, by time alone: no cuts at
offsets, no duplicates, no late events, no labels.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.archive import columns_of, table_name
from tidemill_features.dataset_file import Lineage, write_dataset
from tidemill_features.iceberg import Archive, arrow_schema
from tidemill_features.log_reader import read_inputs
from tidemill_features.training_set import TrainingSet, Window

ROWS, PAYERS, COMMITS, PARTITIONS = 1_000_000, 10_000, 10, 4
DAY_US = 86_400_000_000
START_US = 1_370_347_200_000_000
END_US = START_US + 30 * DAY_US
HOURS = (1, 6, 24, 168)
FUNCTIONS = ("COUNT", "SUM", "MEAN", "MIN", "MAX")
GOAL_S, GOAL_BYTES = 60.0, 4 * 1024**3
_KINDS = {
    "id": definition.FIELD_TYPE_STRING,
    "payer": definition.FIELD_TYPE_STRING,
    "amount": definition.FIELD_TYPE_FLOAT64,
    "at": definition.FIELD_TYPE_TIMESTAMP,
}


def closure() -> definition.Definition:
    """Return the pipeline: requests by payer, five aggregates over four windows, a label that comes an hour later."""
    streams = []
    for name in ("asked", "paid", "settled"):
        streams.append(definition.Stream(name=name, key_field="id", time_field="at", partitions=PARTITIONS))
        streams[-1].lateness_ms, streams[-1].dedup_window_ms = 3_600_000, 3_600_000
        for column, kind in _KINDS.items():
            streams[-1].fields.add(name=column, type=kind)
    view = definition.View(name="payer", stream="paid", entity=["payer"])
    for hours in HOURS:
        for function in FUNCTIONS:
            counts = function == "COUNT"
            view.features.add(
                name=f"{function.lower()}_{hours}h",
                function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
                expression="" if counts else "amount",
                window_ms=hours * 3_600_000,
                type=definition.FIELD_TYPE_INT64 if counts else definition.FIELD_TYPE_FLOAT64,
            )
    pipeline = definition.Pipeline(name="bench", request="asked")
    pipeline.features.add(name="p", view=definition.ViewLookup(view="payer", on=["payer"]))
    pipeline.label.CopyFrom(definition.Label(stream="settled", expression="amount > 250", by="id", wait_ms=7_200_000))
    return definition.Definition(streams=streams, views=[view], pipelines=[pipeline])


def fill(archive: Archive, described: definition.Definition) -> None:
    """Append the streams in commits as the offline role makes them."""
    chance = np.random.default_rng(7)
    asked_us = np.sort(chance.integers(START_US, END_US, ROWS))
    times = {
        "asked": asked_us,
        "paid": np.sort(chance.integers(START_US, END_US, ROWS)),
        "settled": asked_us + 3_600_000_000,
    }
    streams = {stream.name: stream for stream in described.streams}
    for name, event_us in times.items():
        columns = columns_of(events_topic(name), streams)
        for rows in np.array_split(np.arange(ROWS), COMMITS):
            order = rows[np.argsort(rows % PARTITIONS, kind="stable")]
            values: dict[str, Any] = {
                "_partition": order % PARTITIONS,
                "_offset": order // PARTITIONS,
                "_identity": [f"bench\x1f{name}-{row}" for row in order.tolist()],
                "_event_us": event_us[order],
                "_available_us": event_us[order],
                "_schema_hash": ["bench"] * len(order),
                "id": [f"r{row}" for row in order.tolist()],
                "payer": [f"payer-{one}" for one in chance.integers(0, PAYERS, len(order)).tolist()],
                "amount": np.round(chance.uniform(1, 500, len(order)), 2),
                "at": event_us[order],
            }
            table = pa.table({column.name: values[column.name] for column in columns}, arrow_schema(columns))
            archive.append(events_topic(name), columns, table, {})


def build(dsn: str, warehouse: str, out: str) -> None:
    """Write the dataset and say how long that took; this is what the measured process does."""
    began = perf_counter()
    window, described = Window(START_US, END_US + DAY_US), closure()
    inputs = read_inputs(Archive(dsn, warehouse), described, window, {})
    rows = TrainingSet(described, inputs.logs, inputs.predicted, window)
    lineage = Lineage("bench", "sha256:bench", inputs.snapshots, window.from_us, window.until_us)
    write_dataset(rows, lineage, Path(out), lambda _: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps({"seconds": perf_counter() - began, "rows": len(rows), "bytes": peak}))


def by_duckdb(warehouse: Path, out: Path) -> float:
    """Return how long DuckDB takes for the same aggregates, by time alone."""
    files = {
        name: f"{warehouse}/tidemill/{table_name(events_topic(name))}/data/*.parquet" for name in ("asked", "paid")
    }
    windows = ", ".join(
        f"w{hours} AS (PARTITION BY payer ORDER BY us RANGE BETWEEN {hours * 3_600_000_000} PRECEDING AND CURRENT ROW)"
        for hours in HOURS
    )
    calls = {"COUNT": "count", "SUM": "sum", "MEAN": "avg", "MIN": "min", "MAX": "max"}
    features = ", ".join(
        f"{calls[function]}(amount) OVER w{hours} AS {function.lower()}_{hours}h"
        for hours in HOURS
        for function in FUNCTIONS
    )
    query = f"""
        COPY (SELECT * FROM (
            SELECT id, us, {features} FROM (
                SELECT id, payer, _event_us AS us, NULL AS amount FROM read_parquet('{files["asked"]}')
                UNION ALL SELECT NULL, payer, _event_us, amount FROM read_parquet('{files["paid"]}'))
            WINDOW {windows}) WHERE id IS NOT NULL) TO '{out}' (FORMAT parquet)"""
    began = perf_counter()
    duckdb.execute(query)
    return perf_counter() - began


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Fill the log once, measure twice, and compare."""
    dsn = servers.postgres_dsn
    with tempfile.TemporaryDirectory(prefix="tm-dataset-") as home:
        warehouse = Path(home) / "warehouse"
        fill(Archive(dsn, str(warehouse)), closure())
        command = [sys.executable, __file__, dsn, str(warehouse), f"{home}/set.parquet"]
        # One thread per library and process, as in a training run.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        found = [
            json.loads(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
            for _ in range(2)
        ]
        baseline = by_duckdb(warehouse, Path(home) / "duck.parquet")
    seconds = [one["seconds"] for one in found]
    if found[0]["rows"] != ROWS:
        raise ValueError(f"{found[0]['rows']:,} rows instead of {ROWS:,}")
    return [
        {
            "name": "feature.dataset",
            "value": min(seconds),
            "unit": "s / 1 M rows",
            "baseline": "DuckDB, windows by time alone",
            "baseline_value": baseline,
            "ratio": min(seconds) / baseline,
            "min": min(seconds),
            "median": sum(seconds) / len(seconds),
            "max": max(seconds),
            "runs": len(seconds),
            "peak_bytes": max(one["bytes"] for one in found),
            "goal": f"< {GOAL_S:.0f} s, < {GOAL_BYTES / 1024**3:.0f} GiB",
            "met": min(seconds) < GOAL_S and max(one["bytes"] for one in found) < GOAL_BYTES,
        }
    ]


if __name__ == "__main__":
    build(*sys.argv[1:4])
