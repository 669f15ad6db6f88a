"""RegistryService over gRPC: requests in, the books' answers out; every mutating call names its actor."""

# ruff: noqa: N802 -- methods carry the names of the wire

import re
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import registry_pb2 as messages
from tidemill_contracts.registry.v1 import registry_pb2_grpc as services
from tidemill_runtime.actor import require_actor
from tidemill_runtime.errors import Poison

from tidemill_registry.adapters.audit_book import AuditBook
from tidemill_registry.adapters.definition_book import DefinitionBook
from tidemill_registry.adapters.model_book import ModelBook
from tidemill_registry.adapters.run_book import RunBook
from tidemill_registry.definitions import KINDS

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
MAX_TEXT = 2_000
_HASH = re.compile(r"sha256:[0-9a-f]{64}")

Context = Any


class RegistryServicer(services.RegistryServiceServicer):
    """Answers every call of registry.proto."""

    def __init__(self, definitions: DefinitionBook, runs: RunBook, models: ModelBook, audit: AuditBook) -> None:
        self._definitions = definitions
        self._runs = runs
        self._models = models
        self._audit = audit

    async def ApplyDefinition(
        self, request: messages.ApplyDefinitionRequest, context: Context
    ) -> messages.ApplyDefinitionResponse:
        actor = require_actor(context)
        _require(request, *(("reason",) if request.allow_breaking else ()))
        plan = await self._definitions.apply(request, actor=actor)
        return messages.ApplyDefinitionResponse(
            changes=[
                messages.ObjectChange(
                    kind=change.object.kind,
                    name=change.object.name,
                    change=change.change,
                    hash=change.object.hash,
                    revision=change.revision,
                )
                for change in plan.changes
            ],
            breaks=[
                messages.Break(
                    rule=one.rule,
                    subject=one.subject,
                    message=one.message,
                    breaks=one.breaks,
                    fix=one.fix,
                    final=one.final,
                )
                for one in plan.breaks
            ],
            outdated=plan.outdated,
        )

    async def GetDefinition(
        self, request: messages.GetDefinitionRequest, context: Context
    ) -> messages.GetDefinitionResponse:
        _check_kind(request.kind)
        record = await self._definitions.get(request.kind, request.name)
        if record is None:
            reasons = {"stream": Reason.UNKNOWN_STREAM, "view": Reason.UNKNOWN_VIEW}
            reason = reasons.get(request.kind, Reason.UNKNOWN_PIPELINE)
            raise Poison(reason, f"no {request.kind} {request.name!r}", field="name", fix="register it: tidemill apply")
        return messages.GetDefinitionResponse(record=record)

    async def ListDefinitions(
        self, request: messages.ListDefinitionsRequest, context: Context
    ) -> messages.ListDefinitionsResponse:
        if request.kind:
            _check_kind(request.kind)
        return messages.ListDefinitionsResponse(records=await self._definitions.list(request.kind))

    async def StartRun(self, request: messages.StartRunRequest, context: Context) -> messages.StartRunResponse:
        actor = require_actor(context)
        _require(request, "pipeline", "cause_key", "cause_kind")
        run, created = await self._runs.start(request, actor=actor)
        return messages.StartRunResponse(run=run, created=created)

    async def FinishRun(self, request: messages.FinishRunRequest, context: Context) -> messages.FinishRunResponse:
        actor = require_actor(context)
        _require(request, "run_id", "status")
        _check_struct(request.details, "details")
        return messages.FinishRunResponse(run=await self._runs.finish(request, actor=actor))

    async def ListRuns(self, request: messages.ListRunsRequest, context: Context) -> messages.ListRunsResponse:
        return messages.ListRunsResponse(runs=await self._runs.list(request.pipeline, limit_of(request.limit)))

    async def RegisterVersion(
        self, request: messages.RegisterVersionRequest, context: Context
    ) -> messages.RegisterVersionResponse:
        actor = require_actor(context)
        _require(request, "pipeline", "run_id", "bundle", "manifest_hash", "event_time")
        _check_struct(request.reference, "reference")
        if not _HASH.fullmatch(request.manifest_hash):
            raise Poison(Reason.UNDECODABLE, "manifest_hash is no SHA-256, sha256:…", field="manifest_hash")
        return messages.RegisterVersionResponse(version=await self._models.register(request, actor=actor))

    async def GetVersion(self, request: messages.GetVersionRequest, context: Context) -> messages.GetVersionResponse:
        version = await self._models.version(request.pipeline, request.version)
        if version is None:
            raise Poison(
                Reason.UNKNOWN_VERSION,
                f"{request.pipeline} has no version {request.version}",
                field="version",
                fix="list them: tidemill models list",
            )
        return messages.GetVersionResponse(version=version)

    async def ListVersions(
        self, request: messages.ListVersionsRequest, context: Context
    ) -> messages.ListVersionsResponse:
        return messages.ListVersionsResponse(versions=await self._models.versions(request.pipeline))

    async def Promote(self, request: messages.PromoteRequest, context: Context) -> messages.PromoteResponse:
        actor = require_actor(context)
        _require(request, "pipeline", "version", "reason")
        return messages.PromoteResponse(deployment=await self._models.promote(request, actor=actor))

    async def Rollback(self, request: messages.RollbackRequest, context: Context) -> messages.RollbackResponse:
        actor = require_actor(context)
        _require(request, "pipeline", "reason")
        return messages.RollbackResponse(deployment=await self._models.rollback(request, actor=actor))

    async def SetBaselines(
        self, request: messages.SetBaselinesRequest, context: Context
    ) -> messages.SetBaselinesResponse:
        actor = require_actor(context)
        _require(request, "pipeline")
        return messages.SetBaselinesResponse(deployment=await self._models.set_baselines(request, actor=actor))

    async def GetDeployment(
        self, request: messages.GetDeploymentRequest, context: Context
    ) -> messages.GetDeploymentResponse:
        deployment = await self._models.deployment(request.pipeline)
        if deployment is None:
            raise Poison(
                Reason.NO_MODEL,
                f"{request.pipeline} has nothing deployed yet",
                field="pipeline",
                fix="train a first version: tidemill retrain",
            )
        return messages.GetDeploymentResponse(deployment=deployment)

    async def ListDeploymentHistory(
        self, request: messages.ListDeploymentHistoryRequest, context: Context
    ) -> messages.ListDeploymentHistoryResponse:
        return messages.ListDeploymentHistoryResponse(deployments=await self._models.history(request.pipeline))

    async def ListAliasHistory(
        self, request: messages.ListAliasHistoryRequest, context: Context
    ) -> messages.ListAliasHistoryResponse:
        return messages.ListAliasHistoryResponse(changes=await self._models.aliases(request.pipeline))

    async def ListAudit(self, request: messages.ListAuditRequest, context: Context) -> messages.ListAuditResponse:
        return messages.ListAuditResponse(records=await self._audit.list(request.object, limit_of(request.limit)))


def limit_of(asked: int) -> int:
    """Return how many to list: 0 asks for the default."""
    if not 0 <= asked <= MAX_LIMIT:
        raise Poison(Reason.OUT_OF_RANGE, f"limit must be 0 to {MAX_LIMIT}", field="limit")
    return asked or DEFAULT_LIMIT


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise Poison(Reason.OUT_OF_RANGE, f"no kind {kind!r}", field="kind", fix=f"use one of: {', '.join(KINDS)}")


def _require(request: Message, *names: str) -> None:
    """Check that fields are given, and that no text is longer or stranger than PostgreSQL takes."""
    for name in names:
        field = request.DESCRIPTOR.fields_by_name[name]
        given = request.HasField(name) if field.message_type else bool(getattr(request, name))
        if not given:
            raise Poison(Reason.MISSING_FIELD, f"{name} is required", field=name)
    for field, value in request.ListFields():
        if isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise Poison(Reason.OVERSIZED, f"{field.name} is longer than {MAX_TEXT} characters", field=field.name)
            if "\0" in value:
                raise Poison(Reason.BAD_UTF8, f"{field.name} holds a NUL character", field=field.name)


def _check_struct(struct: Struct, name: str) -> None:
    """Refuse numbers that JSON cannot carry."""
    try:
        MessageToDict(struct)
    except ValueError as error:
        raise Poison(Reason.NON_FINITE, f"{name} holds a number that is not finite", field=name) from error
