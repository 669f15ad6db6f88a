"""predict: a file's rows through serving, one answer for each."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from tidemill_contracts.serving.v1 import serving_pb2

from tidemill.cli.answers import NO, USAGE, RefusedError, answering
from tidemill.cli.requests import Ask, entries_of
from tidemill.cli.rows import Row, Schema, Source
from tidemill.cli.scalars import as_of_us
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Registry, Serving, StackName, Target
from tidemill.clients.predictions import PredictionClient
from tidemill.clients.registry import RegistryClient

BATCH_ROWS = 200
_LOG = {"async": serving_pb2.LOG_MODE_ASYNC, "durable": serving_pb2.LOG_MODE_DURABLE}
_COLUMNS = ("row", "probability", "version", "prediction_id", "reason", "message")


# Each option of a command is one parameter, so this function has more than the usual six.
def predict(
    pipeline: Annotated[str, typer.Argument(help="A registered pipeline.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="Requests: CSV, NDJSON, Parquet, -.", show_default=False)],
    as_of: Annotated[str | None, typer.Option(help="The moment to answer for; now unless told.")] = None,
    log: Annotated[str, typer.Option(help="durable waits for Kafka, async does not.")] = "durable",
    features: Annotated[bool, typer.Option("--features", help="Return the features that were used.")] = False,
    file_format: Annotated[str | None, typer.Option("--format", help="csv, ndjson or parquet; else by suffix.")] = None,
    null: Annotated[str, typer.Option(help="What a CSV writes for null, besides nothing.")] = "NA",
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    serving: Serving = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Ask for a prediction for every row of a file; exit 1 when one got none. With --json one line per row."""
    with answering(as_json) as answer:
        if log not in _LOG:
            raise RefusedError(f"unknown log mode {log!r}; there are {', '.join(_LOG)}", USAGE)
        source = Source.of(file, file_format)
        when_us = as_of_us(as_of) or 0
        target = Target(stack, home)
        with target.connect("registry", registry) as connection:
            client = RegistryClient(connection)
            schema = _request_schema(client, pipeline)
        results: list[dict[str, Any]] = []
        with target.connect("serving", serving) as connection:
            predictions = PredictionClient(connection)

            def ask(asked: Sequence[serving_pb2.PredictRow]) -> Sequence[serving_pb2.RowResult]:
                request = serving_pb2.PredictBatchRequest(
                    pipeline=pipeline, rows=asked, as_of_us=when_us, log=_LOG[log], return_features=features
                )
                return predictions.predict(request).results

            try:
                for entry in _entries(source.rows(schema, null), schema, ask):
                    results.append(entry)
                    if as_json or features:
                        answer.json(entry)
            finally:
                # Also where it breaks off: what was predicted until then is in the log.
                if results and not features:
                    answer.table(_COLUMNS, [[entry.get(name) for name in _COLUMNS] for entry in results], "")
        if not results:
            answer.say("no rows")
        if any("reason" in entry for entry in results):
            raise typer.Exit(NO)


def _entries(rows: Iterator[Row], schema: Schema, ask: Ask) -> Iterator[dict[str, Any]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield from entries_of(batch, schema, ask)


def _request_schema(client: RegistryClient, pipeline: str) -> Schema:
    closure = client.definition("pipeline", pipeline).definition
    request = next(found.request for found in closure.pipelines if found.name == pipeline)
    return {field.name: field for stream in closure.streams if stream.name == request for field in stream.fields}
