"""Rows of a file as requests for predictions, and an entry for each row of what became of it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import format_us
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import serving_pb2

from tidemill.cli.rows import Row, Schema
from tidemill.cli.scalars import UnfitError, python_value, scalar, wire_text

Ask = Callable[[Sequence[serving_pb2.PredictRow]], Sequence[serving_pb2.RowResult]]


def entries_of(batch: Sequence[Row], schema: Schema, ask: Ask) -> Iterator[dict[str, Any]]:
    """Yield an entry for every row in order; what cannot be a request is not asked with, and says why."""
    requests: dict[int, serving_pb2.PredictRow] = {}
    unfit: dict[int, UnfitError] = {}
    for row in batch:
        try:
            requests[row.number] = serving_pb2.PredictRow(fields=fields_of(row.data, schema))
        except UnfitError as error:
            unfit[row.number] = error
    results = ask(list(requests.values())) if requests else ()
    answered = dict(zip(requests, results, strict=True))
    for row in batch:
        if (fault := unfit.get(row.number)) is not None:
            yield {"row": row.number, "reason": str(fault.reason), "field": fault.field, "message": str(fault)}
        else:
            yield _entry(row.number, answered[row.number])


def fields_of(data: bytes, schema: Schema) -> Mapping[str, feature.Scalar]:
    """Return the fields of a row (JSON). Raises `UnfitError`."""
    try:
        found = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise UnfitError(Reason.BAD_UTF8, f"byte {error.start} of the row is not UTF-8") from error
    except RecursionError as error:
        raise UnfitError(Reason.UNDECODABLE, "nested too deeply: a request is one flat JSON object") from error
    except json.JSONDecodeError as error:
        raise UnfitError(Reason.UNDECODABLE, f"no JSON: {error}") from error
    except ValueError as error:
        # Python reads no number of more than a few thousand digits.
        raise UnfitError(Reason.NON_FINITE, "a number is longer than any that a 64-bit float holds") from error
    if not isinstance(found, dict):
        raise UnfitError(Reason.UNDECODABLE, "a row is one JSON object with the request's fields")
    return {wire_text(name, name): scalar(name, value, schema.get(name)) for name, value in found.items()}


def _entry(row: int, result: serving_pb2.RowResult) -> dict[str, Any]:
    if result.HasField("error"):
        error = result.error
        return {"row": row, "reason": error.reason, "field": error.field, "message": error.message}
    found = result.prediction
    entry: dict[str, Any] = {
        "row": row,
        "prediction_id": found.prediction_id,
        "probability": found.probability,
        "version": found.model_version,
        "as_of": format_us(found.as_of_us),
    }
    if found.features:
        entry["features"] = {used.name: python_value(used.value.value) for used in found.features}
    return entry
