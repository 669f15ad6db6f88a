"""What the registry refuses, and by which name, over gRPC and HTTP on the real servers."""

from typing import Any

import grpc
import httpx
import pytest
from tidemill_contracts.registry.v1 import registry_pb2 as messages

pytestmark = pytest.mark.servers

# Method, request, the reason and the field at fault.
BAD: list[tuple[str, Any, tuple[str, str]]] = [
    ("GetDefinition", messages.GetDefinitionRequest(kind="table", name="x"), ("out_of_range", "kind")),
    ("GetDefinition", messages.GetDefinitionRequest(kind="view", name="x"), ("unknown_view", "name")),
    ("GetDeployment", messages.GetDeploymentRequest(pipeline="x"), ("no_model", "pipeline")),
    ("GetVersion", messages.GetVersionRequest(pipeline="x", version=1), ("unknown_version", "version")),
    ("StartRun", messages.StartRunRequest(pipeline="x"), ("missing_field", "cause_key")),
    (
        "StartRun",
        messages.StartRunRequest(pipeline="x", cause_key="c", cause_kind="drift"),
        ("unknown_pipeline", "pipeline"),
    ),
    ("FinishRun", messages.FinishRunRequest(run_id="x", status="failed"), ("unknown_entity", "run_id")),
    ("FinishRun", messages.FinishRunRequest(run_id="x", status="odd"), ("out_of_range", "status")),
    ("Rollback", messages.RollbackRequest(pipeline="x", reason="a\0b"), ("bad_utf8", "reason")),
    ("Rollback", messages.RollbackRequest(pipeline="x", reason="a" * 3000), ("oversized", "reason")),
    ("ListAudit", messages.ListAuditRequest(limit=-1), ("out_of_range", "limit")),
    ("ApplyDefinition", messages.ApplyDefinitionRequest(), ("undecodable", "definition")),
]


async def test_bad_input_has_a_named_reason(registry: Any) -> None:
    found = []
    for method, request, _ in BAD:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(registry.rpc, method)(request, metadata=registry.actor)
        found.append((method, registry.refusal(caught.value)[1:]))
    assert found == [(method, expected) for method, _, expected in BAD]


async def test_numbers_that_json_cannot_carry_are_refused(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    run = (await registry.start_run("cause-1")).run
    request = messages.FinishRunRequest(run_id=run.run_id, status="failed")
    request.details.update({"loss": float("inf")})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.rpc.FinishRun(request, metadata=registry.actor)
    assert registry.refusal(caught.value)[1:] == ("non_finite", "details")
    assert (await registry.start_run("cause-1")).run.status == "started"


async def test_a_mutating_call_without_an_actor_is_refused(registry: Any, rides: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.rpc.ApplyDefinition(messages.ApplyDefinitionRequest(definition=rides()))
    assert registry.refusal(caught.value)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "missing_actor")


async def test_http_answers_what_people_look_up_and_problems_carry_the_reason(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    await registry.register("cause-1")
    async with httpx.AsyncClient(base_url=registry.http, timeout=60) as http:
        listed = (await http.get("/v1/pipelines")).json()["items"]
        assert [(item["name"], item["revision"]) for item in listed] == [("tips", 1)]
        assert (await http.get("/v1/pipelines/tips/deployment")).json()["champion"]["version"] == 1
        for part in ("versions", "history", "aliases", "runs"):
            assert len((await http.get(f"/v1/pipelines/tips/{part}")).json()["items"]) == 1, part
        assert len((await http.get("/v1/audit", params={"object": "deployment/tips"})).json()["items"]) == 1
        missing = await http.get("/v1/pipelines/nobody/versions")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
        assert missing.json()["reason"] == "unknown_pipeline"
        assert (await http.get("/v1/audit", params={"limit": "many"})).json()["reason"] == "wrong_type"
        assert (await http.get("/ready")).status_code in {200, 503}
        assert "tidemill_outbox_relayed_total" in (await http.get("/metrics")).text
