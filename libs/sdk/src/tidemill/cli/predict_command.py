"""predict: a file's rows through serving, one answer for each."""

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import format_us
from tidemill_contracts.serving.v1 import serving_pb2

from tidemill.cli.answers import NO, USAGE, RefusedError, answering
from tidemill.cli.rows import Row, Schema, Source
from tidemill.cli.scalars import instant_us, python_value, scalar
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
        as_of_us = instant_us(as_of) or 0
        target = Target(stack, home)
        with target.connect("registry", registry) as connection:
            client = RegistryClient(connection)
            schema = _request_schema(client, pipeline)
        results: list[dict[str, Any]] = []
        with target.connect("serving", serving) as connection:
            predictions = PredictionClient(connection)
            rows = source.rows(schema, null)
            while batch := list(islice(rows, BATCH_ROWS)):
                request = serving_pb2.PredictBatchRequest(
                    pipeline=pipeline,
                    rows=[serving_pb2.PredictRow(fields=_fields(row, schema)) for row in batch],
                    as_of_us=as_of_us,
                    log=_LOG[log],
                    return_features=features,
                )
                answers = predictions.predict(request).results
                for row, result in zip(batch, answers, strict=True):
                    entry = _entry(row, result)
                    results.append(entry)
                    if as_json or features:
                        answer.json(entry)
        if not features:
            answer.table(_COLUMNS, [[entry.get(name) for name in _COLUMNS] for entry in results], "no rows")
        if any("reason" in entry for entry in results):
            raise typer.Exit(NO)


def _request_schema(client: RegistryClient, pipeline: str) -> Schema:
    closure = client.definition("pipeline", pipeline).definition
    request = next(found.request for found in closure.pipelines if found.name == pipeline)
    return {field.name: field for stream in closure.streams if stream.name == request for field in stream.fields}


def _fields(row: Row, schema: Schema) -> dict[str, feature.Scalar]:
    try:
        found = json.loads(row.data)
    except ValueError as error:
        raise RefusedError(f"row {row.number} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise RefusedError(f"row {row.number} is no JSON object")
    return {name: scalar(value, schema.get(name)) for name, value in found.items()}


def _entry(row: Row, result: serving_pb2.RowResult) -> dict[str, Any]:
    if result.HasField("error"):
        error = result.error
        return {"row": row.number, "reason": error.reason, "field": error.field, "message": error.message}
    found = result.prediction
    entry: dict[str, Any] = {
        "row": row.number,
        "prediction_id": found.prediction_id,
        "probability": found.probability,
        "version": found.model_version,
        "as_of": format_us(found.as_of_us),
    }
    if found.features:
        entry["features"] = {used.name: python_value(used.value.value) for used in found.features}
    return entry
