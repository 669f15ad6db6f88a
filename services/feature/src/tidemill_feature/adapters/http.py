"""Feast's HTTP feature server, as far as reading goes: POST /get-online-features, errors as problem+json."""

import asyncio
from time import time_ns
from typing import Annotated, Any

from fastapi import Body, FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from tidemill_contracts.reasons import Reason
from tidemill_runtime.bodies import BoundedBodies
from tidemill_runtime.errors import Poison
from tidemill_runtime.grpc_server import DeadlinePassedError
from tidemill_runtime.problems import install_problems

from tidemill_feature import feast
from tidemill_feature.adapters.reads import Reads
from tidemill_feature.settings import Settings

_EXAMPLE: dict[str, Any] = {
    "features": ["origin:departures_2h", "origin:mean_delay_2h"],
    "entities": {"origin": ["JFK", "LGA"]},
}


class OnlineFeaturesBody(BaseModel):
    """What Feast's clients send. Entities are columns: a list per entity, all of one length."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    entities: dict[str, list[Any]]
    features: Annotated[list[str], Field(description="`view:feature`, or `view@version:feature`")] = []
    feature_service: Annotated[str | None, Field(description="a pipeline: every feature that it looks up")] = None
    full_feature_names: Annotated[bool, Field(description="name features `view__feature`")] = False
    include_feature_view_version_metadata: bool = False


def feast_app(reads: Reads, settings: Settings) -> FastAPI:
    """Return the service's own HTTP routes."""
    app = FastAPI(title="Tidemill feature", version="1", docs_url="/docs", redoc_url=None)
    install_problems(app)
    # Feast's documentation sends what it asks with `curl -d`.
    app.add_middleware(BoundedBodies, max_bytes=settings.http_body_max_bytes, untyped=True)

    @app.post("/get-online-features", summary="Online feature values, as Feast's feature server gives them")
    async def get_online_features(body: Annotated[OnlineFeaturesBody, Body()]) -> JSONResponse:
        """Return a vector of values, statuses and event timestamps per column, entities first."""
        if body.include_feature_view_version_metadata:
            raise Poison(
                Reason.UNSUPPORTED, "versions are hashes, not numbers", field="include_feature_view_version_metadata"
            )
        definitions = reads.definitions
        selection = feast.select(body.features, body.feature_service, definitions, full_names=body.full_feature_names)
        wanted = feast.lookups(selection, body.entities, definitions, reads.rows_max)
        try:
            async with asyncio.timeout(settings.grpc.default_deadline_s):
                result = await reads.values(wanted, time_ns() // 1000)
        except TimeoutError as error:
            raise DeadlinePassedError(f"no answer within {settings.grpc.default_deadline_s:g} s") from error
        return JSONResponse(feast.answer(selection, body.entities, result))

    return app
