"""One prediction over REST: POST /v1/pipelines/{pipeline}/predict, errors as problem+json."""

import asyncio
import math
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import format_us, parse_us
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import serving_pb2 as messages
from tidemill_runtime.bodies import BoundedBodies
from tidemill_runtime.errors import Poison
from tidemill_runtime.grpc_server import DeadlinePassedError
from tidemill_runtime.problems import install_problems

from tidemill_serving.predictor import Ask, Predictor
from tidemill_serving.request import Row, instant_poison

MAX_BODY_BYTES = 1024 * 1024
_INT64 = range(-(2**63), 2**63)


class PredictBody(BaseModel):
    """The request's fields as JSON; instants are RFC 3339."""

    model_config = ConfigDict(extra="forbid")

    fields: Annotated[
        dict[str, bool | int | float | str | None],
        Field(examples=[{"flight_id": "2013-06-04-UA-1545-EWR", "origin": "EWR", "distance_miles": 719.0}]),
    ]
    prediction_id: str = ""
    as_of: str | None = Field(None, description="the moment the prediction is for; absent: now")
    log: Literal["async", "durable"] | None = None


def predict_app(predictor: Predictor, *, durable_by_default: bool, deadline_s: float) -> FastAPI:
    """Return the service's own HTTP routes."""
    app = FastAPI(title="Tidemill serving", version="1", docs_url="/docs", redoc_url=None)
    install_problems(app)
    app.add_middleware(BoundedBodies, max_bytes=MAX_BODY_BYTES)

    @app.post("/v1/pipelines/{pipeline}/predict")
    async def predict(pipeline: str, body: Annotated[PredictBody, Body()]) -> dict[str, Any]:
        """Return the probability, the exact version and the features used."""
        ask = Ask(
            pipeline=pipeline,
            rows=[_row(body)],
            as_of_us=_instant(body.as_of),
            include={},
            durable=durable_by_default if body.log is None else body.log == "durable",
            return_features=True,
        )
        try:
            async with asyncio.timeout(deadline_s):
                (answer,) = (await predictor.predict(ask)).answers
        except TimeoutError as error:
            raise DeadlinePassedError(f"no answer within {deadline_s:g} s") from error
        if isinstance(answer, Poison):
            raise answer
        return _shown(answer)

    return app


def _row(body: PredictBody) -> Row:
    fields = {_text(name, name): _scalar(name, value) for name, value in body.fields.items()}
    return Row(fields, _text("prediction_id", body.prediction_id))


def _instant(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return parse_us(text)
    except ValueError as error:
        raise instant_poison("as_of", text, error) from error


def _text(name: str, text: str) -> str:
    """Return a text that the wire can carry; JSON's escapes may write what is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = ascii(name)[1:-1]
        raise Poison(Reason.BAD_UTF8, "a \\u escape is half of a surrogate pair", field=shown) from error
    return text


def _scalar(name: str, value: bool | float | str | None) -> feature.Scalar:
    if value is None:
        return feature.Scalar()
    if isinstance(value, bool):
        return feature.Scalar(bool_value=value)
    if isinstance(value, str):
        return feature.Scalar(string_value=_text(name, value))
    if isinstance(value, int):
        if value not in _INT64:
            raise Poison(Reason.OUT_OF_RANGE, f"field {name!r} does not fit an int64", field=name)
        return feature.Scalar(int64_value=value)
    return feature.Scalar(float64_value=value)


def _shown(prediction: messages.Prediction) -> dict[str, Any]:
    return {
        "prediction_id": prediction.prediction_id,
        "pipeline": prediction.pipeline,
        "model_version": prediction.model_version,
        "probability": prediction.probability,
        "as_of": format_us(prediction.as_of_us),
        "features": {used.name: _feature(used.value) for used in prediction.features},
    }


def _feature(value: feature.FeatureValue) -> dict[str, Any]:
    kind = value.value.WhichOneof("value")
    raw = None if kind is None else getattr(value.value, kind)
    shown: dict[str, Any] = {
        # JSON has no infinity; a feature that overflowed has no value here.
        "value": raw if not isinstance(raw, float) or math.isfinite(raw) else None,
        "status": feature.Status.Name(value.status).removeprefix("STATUS_"),
    }
    if value.event_time_us:
        shown["event_time"] = format_us(value.event_time_us)
    if value.head_excluded:
        shown["head_excluded"] = True
    if value.hop_accuracy:
        shown["hop_accuracy"] = True
    return shown
