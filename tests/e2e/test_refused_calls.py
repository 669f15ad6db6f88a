"""Every bad call has one named reason: the same in gRPC, batches of rows, HTTP, metrics and docs/reasons.md."""

import json
import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import httpx
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub
from tidemill_contracts.monitoring.v1 import monitoring_pb2 as monitoring
from tidemill_contracts.monitoring.v1.monitoring_pb2_grpc import MonitoringServiceStub
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tidemill_contracts.serving.v1 import serving_pb2 as serving
from tidemill_contracts.serving.v1.serving_pb2_grpc import PredictionServiceStub
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_contracts.training.v1.training_pb2_grpc import TrainingServiceStub
from tidemill_runtime.rpc_errors import code_of
from tidemill_testkit.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(600)]

JSON_BODY = {"content-type": "application/json"}
ACTOR = (("x-tidemill-actor", "tester"),)
AHEAD = datetime.now(UTC) + timedelta(days=1)
PIPELINE = "flight-delays"
# Within the registry's bound of characters, but more bytes than an index of PostgreSQL takes.
LONG_KEY = "".join(chr(0x4E00 + n * n * 31 % 20_000) for n in range(1_900))
# A position that no log will reach during the test.
FAR = [progress.TopicPartitionOffset(topic="events.flight-departed", partition=0, next_offset=10**12)]

REQUEST: dict[str, Any] = {
    "flight_id": "f-1",
    "origin": "JFK",
    "dest": "LAX",
    "carrier": "UA",
    "tailnum": None,
    "departs_at": "2013-01-05T14:00:00Z",
    "distance_miles": 2475.0,
    "asked_at": "2013-01-05T12:00:00Z",
}
BAD_REQUESTS: list[tuple[dict[str, Any], Reason]] = [
    ({"altitude": 1}, Reason.UNKNOWN_FIELD),
    ({"origin": ...}, Reason.MISSING_FIELD),
    ({"origin": None}, Reason.MISSING_FIELD),
    ({"flight_id": ...}, Reason.MISSING_FIELD),
    ({"flight_id": None}, Reason.NULL_KEY),
    ({"flight_id": ""}, Reason.NULL_KEY),
    ({"flight_id": 7}, Reason.WRONG_TYPE),
    ({"distance_miles": "far"}, Reason.WRONG_TYPE),
    ({"asked_at": "yesterday"}, Reason.WRONG_TYPE),
    ({"distance_miles": math.nan}, Reason.NON_FINITE),
    ({"distance_miles": math.inf}, Reason.NON_FINITE),
    ({"asked_at": "2013-01-05T12:00:00"}, Reason.NAIVE_TIMESTAMP),
    ({"asked_at": "1492-10-12T00:00:00Z"}, Reason.OUT_OF_RANGE),
    ({"flight_id": "f" * 600}, Reason.OVERSIZED),
    ({"carrier": "c" * 70_000}, Reason.OVERSIZED),
    ({"flight_id": "a\0b"}, Reason.BAD_UTF8),
]
HTTP_ONLY: list[tuple[bytes, Reason]] = [
    (b"", Reason.EMPTY),
    (b'{"fields": {', Reason.UNDECODABLE),
    (b"[" * 100_000, Reason.UNDECODABLE),
    (b'{"fields": {"origin": "\xff"}}', Reason.BAD_UTF8),
    (json.dumps({"fields": REQUEST}).encode("utf-16"), Reason.BAD_UTF8),
    (b'{"fields": {"origin": "\\ud800"}}', Reason.BAD_UTF8),
    (json.dumps({"fields": {**REQUEST, "distance_miles": 2**70}}).encode(), Reason.OUT_OF_RANGE),
    (json.dumps({"fields": REQUEST, "as_of": "2013-01-05T12:00:00"}).encode(), Reason.NAIVE_TIMESTAMP),
    (json.dumps({"fields": REQUEST, "as_of": AHEAD.isoformat()}).encode(), Reason.TOO_FAR_IN_FUTURE),
    (json.dumps({"fields": REQUEST, "prediction_id": "p" * 300}).encode(), Reason.OVERSIZED),
    (json.dumps({"fields": REQUEST, "log": "never"}).encode(), Reason.OUT_OF_RANGE),
    (json.dumps({"fields": REQUEST, "more": 1}).encode(), Reason.UNKNOWN_FIELD),
]


def scalar(value: Any) -> feature.Scalar:
    if value is None:
        return feature.Scalar()
    kind = {bool: "bool_value", int: "int64_value", float: "float64_value", str: "string_value"}[type(value)]
    return feature.Scalar(**{kind: value})


def fields_of(**changes: Any) -> dict[str, feature.Scalar]:
    return {name: scalar(value) for name, value in {**REQUEST, **changes}.items() if value is not ...}


def test_serving_gives_a_bad_request_its_one_reason_over_grpc_batch_http_and_in_its_metric(trained: Any) -> None:
    stub = PredictionServiceStub(trained.channels["serving"])
    url = f"{trained.http('serving')}/v1/pipelines/{PIPELINE}/predict"
    before = (
        trained.counts("serving", "serving_refused_rows", "reason"),
        trained.counts("serving", "http_refused", "reason"),
    )
    for changes, reason in BAD_REQUESTS:
        single = serving.PredictRequest(pipeline=PIPELINE, fields=fields_of(**changes))
        found = trained.refused(lambda request=single: stub.Predict(request, timeout=60))
        assert found.reason == reason, changes
        rows = [serving.PredictRow(fields=fields_of(**some)) for some in (changes, {})]
        bad, good = stub.PredictBatch(serving.PredictBatchRequest(pipeline=PIPELINE, rows=rows), timeout=60).results
        assert (bad.error.reason, good.HasField("prediction")) == (reason, True)
        left = {name: value for name, value in {**REQUEST, **changes}.items() if value is not ...}
        raw = json.dumps({"fields": left}).encode()
        assert trained.problem(httpx.post(url, content=raw, headers=JSON_BODY, timeout=60)) == reason, changes
    for raw, reason in HTTP_ONLY:
        assert trained.problem(httpx.post(url, content=raw, headers=JSON_BODY, timeout=60)) == reason, raw[:80]
    by_row = Counter((reason.value,) for _, reason in BAD_REQUESTS)
    by_http = Counter((reason.value,) for _, reason in HTTP_ONLY)
    rows_counted = trained.counts("serving", "serving_refused_rows", "reason") - before[0]
    # What HTTP hands on is refused as a row too; what it cannot read never gets that far.
    assert all(rows_counted[reason] >= 3 * count for reason, count in by_row.items())
    assert trained.counts("serving", "http_refused", "reason") - before[1] == by_row + by_http
    nobody = f"{trained.http('serving')}/v1/pipelines/nothing/predict"
    assert trained.problem(httpx.post(nobody, json={"fields": REQUEST}, timeout=60)) == Reason.UNKNOWN_PIPELINE


def calls(shared: Any) -> list[tuple[Any, Any, Reason]]:
    """Return calls that each service refuses: the method, the request, the reason."""
    predictions = PredictionServiceStub(shared.channels["serving"])
    features = FeatureServiceStub(shared.channels["feature"])
    books = RegistryServiceStub(shared.channels["registry"])
    watch = MonitoringServiceStub(shared.channels["monitoring"])
    runs = TrainingServiceStub(shared.channels["training"])
    ask, batch = serving.PredictRequest, serving.PredictBatchRequest
    good = fields_of()

    def view(name: str, *values: Any) -> feature.GetFeaturesRequest:
        keys = [feature.EntityKey(values=[scalar(value) for value in values])]
        return feature.GetFeaturesRequest(views=[feature.ViewKeys(view=name, keys=keys)])

    ahead_us = int(AHEAD.timestamp()) * 1_000_000
    again = definition.Definition()
    again.CopyFrom(shared.probe)
    again.streams[0].fields[1].type = definition.FIELD_TYPE_STRING
    del again.pipelines[:], again.views[:], again.streams[1:]
    promote, start, retrain = registry.PromoteRequest, registry.StartRunRequest, monitoring.RequestRetrainingRequest
    return [
        (predictions.Predict, ask(pipeline="nothing", fields=good), Reason.UNKNOWN_PIPELINE),
        (predictions.Predict, ask(pipeline="", fields=good), Reason.UNKNOWN_PIPELINE),
        (predictions.Predict, ask(pipeline="probing", fields=good), Reason.NO_MODEL),
        (predictions.Predict, ask(pipeline=PIPELINE, fields=good, as_of_us=ahead_us), Reason.TOO_FAR_IN_FUTURE),
        (predictions.Predict, ask(pipeline=PIPELINE, fields=good, as_of_us=-1), Reason.OUT_OF_RANGE),
        (predictions.Predict, ask(pipeline=PIPELINE, fields=good, prediction_id="p" * 300), Reason.OVERSIZED),
        (predictions.PredictBatch, batch(pipeline=PIPELINE), Reason.EMPTY),
        (features.GetFeatures, view("nothing", "JFK"), Reason.UNKNOWN_VIEW),
        (features.GetFeatures, view("origin"), Reason.MISSING_FIELD),
        (features.GetFeatures, view("origin", "JFK", "LAX"), Reason.MISSING_FIELD),
        (features.GetFeatures, view("origin", 7), Reason.WRONG_TYPE),
        (books.GetVersion, registry.GetVersionRequest(pipeline=PIPELINE, version=99), Reason.UNKNOWN_VERSION),
        (books.Promote, promote(pipeline=PIPELINE, version=99, reason="test"), Reason.UNKNOWN_VERSION),
        (books.Promote, promote(pipeline="nothing", version=1, reason="test"), Reason.UNKNOWN_PIPELINE),
        (books.Promote, promote(pipeline=PIPELINE, version=1), Reason.MISSING_FIELD),
        (books.Promote, promote(pipeline=PIPELINE, version=1, reason="x" * 3_000), Reason.OVERSIZED),
        (books.Promote, promote(pipeline=PIPELINE, version=1, reason="a\0b"), Reason.BAD_UTF8),
        (books.GetVersion, registry.GetVersionRequest(pipeline="a\0b", version=1), Reason.BAD_UTF8),
        (books.StartRun, start(pipeline=PIPELINE, cause_key=LONG_KEY, cause_kind="operator"), Reason.OVERSIZED),
        (books.GetDefinition, registry.GetDefinitionRequest(kind="stream", name="nothing"), Reason.UNKNOWN_STREAM),
        (books.GetDefinition, registry.GetDefinitionRequest(kind="view", name="nothing"), Reason.UNKNOWN_VIEW),
        (books.GetDefinition, registry.GetDefinitionRequest(kind="model", name="x"), Reason.OUT_OF_RANGE),
        (books.GetDeployment, registry.GetDeploymentRequest(pipeline="probing"), Reason.NO_MODEL),
        (books.ListRuns, registry.ListRunsRequest(limit=-1), Reason.OUT_OF_RANGE),
        (books.ApplyDefinition, registry.ApplyDefinitionRequest(definition=again), Reason.BREAKING_CHANGE),
        (watch.GetMetrics, monitoring.GetMetricsRequest(pipeline="nothing"), Reason.UNKNOWN_PIPELINE),
        (watch.ListIncidents, monitoring.ListIncidentsRequest(status="closed"), Reason.OUT_OF_RANGE),
        (watch.ListIncidents, monitoring.ListIncidentsRequest(limit=-1), Reason.OUT_OF_RANGE),
        (watch.ResolveIncident, monitoring.ResolveIncidentRequest(incident_id="none"), Reason.UNKNOWN_ENTITY),
        (watch.ResolveIncident, monitoring.ResolveIncidentRequest(incident_id="a\0b"), Reason.BAD_UTF8),
        (watch.RequestRetraining, retrain(pipeline=PIPELINE, reason="x" * 600), Reason.OVERSIZED),
        (watch.RequestRetraining, retrain(pipeline="nothing", reason="test"), Reason.UNKNOWN_PIPELINE),
        (watch.RequestRetraining, retrain(pipeline=PIPELINE), Reason.MISSING_FIELD),
        (runs.GetRun, training.GetRunRequest(run_id="none"), Reason.UNKNOWN_ENTITY),
        (runs.GetRun, training.GetRunRequest(run_id="a\0b"), Reason.BAD_UTF8),
        (runs.SubmitRun, training.SubmitRunRequest(pipeline=PIPELINE), Reason.MISSING_FIELD),
        (runs.SubmitRun, training.SubmitRunRequest(pipeline="nothing", reason="test"), Reason.UNKNOWN_PIPELINE),
        (runs.SubmitRun, training.SubmitRunRequest(pipeline=PIPELINE, reason="x" * 600), Reason.OVERSIZED),
    ]


def test_every_service_names_what_is_wrong_with_a_call(trained: Any) -> None:
    def everywhere() -> Counter[tuple[str, ...]]:
        counted: Counter[tuple[str, ...]] = Counter()
        for name in trained.channels:
            counted += trained.counts(name, "rpc_refused", "method", "reason")
        return counted

    before = everywhere()
    expected: Counter[tuple[str, ...]] = Counter()
    for method, request, reason in calls(trained):
        name = method._method.decode()
        found = trained.refused(lambda: method(request, metadata=ACTOR, timeout=60))  # noqa: B023 -- called at once
        assert (found.reason, found.code) == (reason, code_of(reason)), (name, request)
        expected[name, reason.value] += 1
    # Services call each other too; only what was called here counts.
    assert expected == {labels: count for labels, count in (everywhere() - before).items() if labels in expected}


def test_an_unknown_entity_of_a_view_is_answered_as_not_found(shared: Any) -> None:
    keys = [feature.EntityKey(values=[scalar(value)]) for value in ("NOWHERE", "", None)]
    asked = feature.GetFeaturesRequest(views=[feature.ViewKeys(view="origin", keys=keys)])
    answer = FeatureServiceStub(shared.channels["feature"]).GetFeatures(asked, timeout=60)
    statuses = {value.status for row in answer.views[0].rows for value in row.values}
    assert statuses == {feature.STATUS_NOT_FOUND}


def test_a_change_without_an_actor_is_refused_by_everybody(shared: Any) -> None:
    for service, method, request in (
        ("registry", RegistryServiceStub(shared.channels["registry"]).Promote, registry.PromoteRequest()),
        ("monitoring", MonitoringServiceStub(shared.channels["monitoring"]).RequestRetraining, None),
        ("training", TrainingServiceStub(shared.channels["training"]).SubmitRun, training.SubmitRunRequest()),
    ):
        asked = request or monitoring.RequestRetrainingRequest()
        found = shared.refused(lambda: method(asked, timeout=60))  # noqa: B023 -- called at once
        assert (service, found.reason) == (service, Reason.MISSING_ACTOR)


@pytest.mark.parametrize(
    ("service", "method"),
    [
        ("ingestion", "tidemill.ingestion.v1.IngestionService/Publish"),
        ("feature", "tidemill.feature.v1.FeatureService/GetFeatures"),
        ("training", "tidemill.training.v1.TrainingService/WatchRun"),
        ("registry", "tidemill.registry.v1.RegistryService/ListRuns"),
        ("serving", "tidemill.serving.v1.PredictionService/Predict"),
        ("monitoring", "tidemill.monitoring.v1.MonitoringService/GetMetrics"),
    ],
)
def test_bytes_that_are_no_message_are_named_by_every_service(shared: Any, service: str, method: str) -> None:
    channel = shared.channels[service]
    call = (channel.unary_stream if method.endswith("WatchRun") else channel.unary_unary)(f"/{method}")

    def send(raw: bytes) -> Any:
        answer = call(raw, timeout=60)
        return list(answer) if method.endswith("WatchRun") else answer

    truncated, mangled = b"\x0a\x7fx", b"\x0a\x02\xff\xfe"
    assert shared.refused(lambda: send(truncated)).reason == Reason.UNDECODABLE
    # GetFeatures begins with a message, in which the same bytes are a torn tag.
    expected = Reason.UNDECODABLE if service in ("feature",) else Reason.BAD_UTF8
    assert shared.refused(lambda: send(mangled)).reason == expected


def test_a_deadline_that_expires_is_told_and_counted_by_its_name(trained: Any) -> None:
    predict = PredictionServiceStub(trained.channels["serving"]).Predict
    asked = serving.PredictRequest(pipeline=PIPELINE, fields=fields_of(), include=FAR)
    read = FeatureServiceStub(trained.channels["feature"]).GetFeatures
    keys = [feature.EntityKey(values=[scalar("JFK")])]
    wanted = feature.GetFeaturesRequest(views=[feature.ViewKeys(view="origin", keys=keys)], include=FAR)
    for service, method, request in (("serving", predict, asked), ("feature", read, wanted)):
        labels = (method._method.decode(), trained.documented(Reason.DEADLINE_EXCEEDED))
        before = trained.counts(service, "rpc_refused", "method", "reason")[labels]
        with pytest.raises(grpc.RpcError) as caught:
            # Long enough to reach the service, which is to count it.
            method(request, timeout=2)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(
            lambda: trained.counts(service, "rpc_refused", "method", "reason")[labels] == before + 1,  # noqa: B023
            claim=f"{service} counts the deadline",
        )


def test_the_registrys_pages_give_the_same_names(shared: Any) -> None:
    base = f"{shared.http('registry')}/v1"
    for path, reason in (
        ("/pipelines/nothing", Reason.UNKNOWN_PIPELINE),
        ("/pipelines/probing/deployment", Reason.NO_MODEL),
        ("/audit?limit=0", Reason.OUT_OF_RANGE),
        ("/audit?limit=many", Reason.WRONG_TYPE),
    ):
        assert shared.problem(httpx.get(base + path, timeout=60)) == reason
