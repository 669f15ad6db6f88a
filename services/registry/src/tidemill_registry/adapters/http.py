"""The registry over HTTP, read only: what people and dashboards look up; errors are problem+json."""

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import FastAPI, Query
from google.protobuf.message import Message
from tidemill_contracts.canonical import to_dict
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Poison
from tidemill_runtime.problems import install_problems

from tidemill_registry.adapters.audit_book import AuditBook
from tidemill_registry.adapters.definition_book import DefinitionBook
from tidemill_registry.adapters.model_book import ModelBook
from tidemill_registry.adapters.run_book import RunBook

Limit = Annotated[int, Query(ge=1, le=10_000, description="how many, newest first")]
Items = dict[str, list[dict[str, Any]]]


def build_app(definitions: DefinitionBook, runs: RunBook, models: ModelBook, audit: AuditBook) -> FastAPI:
    """Return the application; it is mounted beside /live, /ready and /metrics."""
    app = FastAPI(title="Tidemill registry", version="1", docs_url="/docs", redoc_url=None)
    install_problems(app)

    async def known(pipeline: str) -> dict[str, Any]:
        record = await definitions.get("pipeline", pipeline)
        if record is None:
            raise Poison(Reason.UNKNOWN_PIPELINE, f"no pipeline {pipeline!r}", field="name", fix="see /v1/pipelines")
        return to_dict(record)

    @app.get("/v1/pipelines", summary="Registered pipelines with their definitions")
    async def pipelines() -> Items:
        return _items(await definitions.list("pipeline"))

    @app.get("/v1/pipelines/{name}", summary="One pipeline with its definition")
    async def pipeline(name: str) -> dict[str, Any]:
        return await known(name)

    @app.get("/v1/pipelines/{name}/versions", summary="Model versions, oldest first")
    async def versions(name: str) -> Items:
        await known(name)
        return _items(await models.versions(name))

    @app.get("/v1/pipelines/{name}/deployment", summary="Which versions answer, shadow and compare now")
    async def deployment(name: str) -> dict[str, Any]:
        await known(name)
        record = await models.deployment(name)
        if record is None:
            raise Poison(Reason.NO_MODEL, f"{name} has nothing deployed yet", field="name")
        return to_dict(record)

    @app.get("/v1/pipelines/{name}/history", summary="Every revision of the deployment, oldest first")
    async def history(name: str) -> Items:
        await known(name)
        return _items(await models.history(name))

    @app.get("/v1/pipelines/{name}/aliases", summary="Every change of champion and challenger, oldest first")
    async def aliases(name: str) -> Items:
        await known(name)
        return _items(await models.aliases(name))

    @app.get("/v1/pipelines/{name}/runs", summary="Training runs, newest first")
    async def run_list(name: str, limit: Limit = 100) -> Items:
        await known(name)
        return _items(await runs.list(name, limit))

    @app.get("/v1/audit", summary="Who did what, oldest first; each record's hash covers the one before")
    async def audit_trail(object: str = "", limit: Limit = 100) -> Items:  # noqa: A002 -- the record's own word
        return _items(await audit.list(object, limit))

    return app


def _items(messages: Iterable[Message]) -> Items:
    return {"items": [to_dict(message) for message in messages]}
