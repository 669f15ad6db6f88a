import asyncio
import json
from typing import Any

import grpc
import httpx
import pytest
from redis.asyncio import Redis
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_contracts.serving.v1 import serving_pb2 as messages
from tidemill_runtime.rpc_errors import from_rpc
from tidemill_serving.identity import prediction_id
from tidemill_testkit.flight_world import (
    NOON_US,
    PIPELINE,
    VIEWS,
    definition_record,
    deployment,
    request_fields,
    rings,
)

pytestmark = pytest.mark.servers


def one(number: int = 0, **changes: Any) -> messages.PredictRequest:
    return messages.PredictRequest(pipeline=PIPELINE, fields=request_fields(number), as_of_us=NOON_US, **changes)


def batch(count: int, **changes: Any) -> messages.PredictBatchRequest:
    rows = [messages.PredictRow(fields=request_fields(number)) for number in range(count)]
    return messages.PredictBatchRequest(pipeline=PIPELINE, rows=rows, as_of_us=NOON_US, **changes)


async def refused(call: Any) -> tuple[grpc.StatusCode, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), from_rpc(caught.value)


async def test_a_prediction_names_its_version_its_features_and_what_they_rest_on(stage: Any, read_log: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        answer = (await service.predictions.Predict(one(3), timeout=60)).prediction
        assert answer.model_version == 1
        assert 0 < answer.probability < 1
        assert answer.prediction_id == prediction_id(PIPELINE, "2013-06-04-AA-3", NOON_US)
        used = {feature_.name: feature_.value for feature_ in answer.features}
        assert used["origin.departures_2h"].value.float64_value == 40
        assert used["origin.departures_2h"].status == feature.STATUS_PRESENT
        assert used["hour"].value.float64_value == 14
        assert used["dest_name"].value.string_value == "ORD"
        (record,) = await read_log(stage.kafka, 1)
    assert record.prediction_id == answer.prediction_id
    assert record.probability == answer.probability
    assert record.join_key == "2013-06-04-AA-3"
    assert record.as_of_us == NOON_US
    assert record.sequence == 1
    assert len(record.features.statuses) == len(answer.features)
    assert {(p.topic, p.partition, p.next_offset) for p in record.positions} == {
        (f"events.{stream}", partition, 200) for stream in ("flight-departed", "flight-arrived") for partition in (0, 1)
    }


async def test_a_durable_batch_is_in_the_log_before_its_answer_and_says_where(stage: Any, read_log: Any) -> None:
    await stage.define()
    first, second = stage.versions.make(1), stage.versions.make(2)
    await stage.deploy(deployment(1, first, challenger=second, step_kind="canary", share=0.5, baselines=[first]))
    async with stage.serving() as service:
        answer = await service.predictions.PredictBatch(batch(38, log=messages.LOG_MODE_DURABLE), timeout=60)
        assert sum(place.next_offset for place in answer.written) == 38
        found = {record.prediction_id: record for record in await read_log(stage.kafka, 38)}
        again = await service.predictions.PredictBatch(batch(38), timeout=60)
    assert {result.prediction.model_version for result in answer.results} == {1, 2}
    assert not answer.results[0].prediction.features
    for result in answer.results:
        record = found[result.prediction.prediction_id]
        assert (record.model_version, record.probability) == (
            result.prediction.model_version,
            result.prediction.probability,
        )
        assert [(score.model_version, score.role) for score in record.scores] == [
            (1, records.ROLE_CHAMPION),
            (2, records.ROLE_CHALLENGER),
        ]
        assert record.deployment_revision == 1
    assert [r.prediction for r in again.results] == [r.prediction for r in answer.results]


async def test_every_fault_of_a_row_has_its_reason_and_spares_the_other_rows(stage: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        request = batch(3)
        del request.rows[1].fields["origin"]
        request.rows[2].fields["flight_id"].ClearField("value")
        results = (await service.predictions.PredictBatch(request, timeout=60)).results
        assert results[0].prediction.model_version == 1
        assert [(r.error.reason, r.error.field) for r in results[1:]] == [
            ("missing_field", "origin"),
            ("null_key", "flight_id"),
        ]
        unknown = messages.PredictRequest(pipeline="flight-delay")
        assert (await refused(service.predictions.Predict(unknown)))[0] is grpc.StatusCode.NOT_FOUND
        future = one()
        future.as_of_us = 2**55
        code, error = await refused(service.predictions.Predict(future))
        assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "too_far_in_future")
        wrong = one()
        wrong.fields["distance_miles"].string_value = "far"
        code, error = await refused(service.predictions.Predict(wrong))
        assert (code, error.reason, error.field) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "wrong_type",
            "distance_miles",
        )
        empty = messages.PredictBatchRequest(pipeline=PIPELINE)
        assert (await refused(service.predictions.PredictBatch(empty)))[1].reason == "empty"
        assert (await refused(service.predictions.PredictBatch(batch(5_001))))[1].reason == "out_of_range"


async def test_a_registered_pipeline_without_a_model_says_so(stage: Any) -> None:
    defined = await stage.define()
    async with stage.serving() as service:
        await service.settled(defined)
        code, error = await refused(service.predictions.Predict(one()))
        assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "no_model")


async def test_an_unknown_entity_is_answered_from_what_is_known(stage: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        request = one()
        request.fields["tailnum"].ClearField("value")
        request.fields["origin"].string_value = "XXX"
        answer = (await service.predictions.Predict(request, timeout=60)).prediction
        statuses = {used.name: used.value.status for used in answer.features}
        assert statuses["plane.last_delay"] == statuses["origin.departures_2h"] == feature.STATUS_NOT_FOUND
        assert statuses["hour"] == feature.STATUS_PRESENT


async def test_a_request_waits_for_positions_that_the_rings_do_not_include_yet(stage: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        place = progress.TopicPartitionOffset(topic="events.flight-departed", partition=0, next_offset=200)
        other = progress.TopicPartitionOffset(topic="events.elsewhere", partition=0, next_offset=7)
        assert (await service.predictions.Predict(one(include=[place, other]), timeout=60)).prediction
        place.next_offset = 201
        code, _ = await refused(service.predictions.Predict(one(include=[place]), timeout=0.3))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_concurrent_requests_get_the_answers_that_they_would_get_alone(stage: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        together = await asyncio.gather(*(service.predictions.Predict(one(number)) for number in range(64)))
        alone = [await service.predictions.Predict(one(number)) for number in range(64)]
        assert together == alone


async def test_the_same_prediction_over_rest(stage: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service, httpx.AsyncClient(base_url=service.http, timeout=60) as http:
        fields = {
            "flight_id": "2013-06-04-AA-0",
            "origin": "EWR",
            "dest": "ATL",
            "carrier": "AA",
            "tailnum": "N0",
            "departs_at": "2013-06-04T14:00:00Z",
            "distance_miles": 500,
            "asked_at": "2013-06-04T12:00:00Z",
        }
        path = f"/v1/pipelines/{PIPELINE}/predict"
        body = {"fields": fields, "as_of": "2013-06-04T12:00:00Z"}
        answer = await http.post(path, json=body)
        over_grpc = (await service.predictions.Predict(one())).prediction
        assert answer.status_code == 200
        assert answer.json()["probability"] == over_grpc.probability
        assert answer.json()["prediction_id"] == over_grpc.prediction_id
        assert answer.json()["features"]["hour"] == {"value": 14.0, "status": "PRESENT"}
        for change, status, reason in (
            ({"fields": {**fields, "asked_at": "2013-06-04T12:00:00"}}, 400, "naive_timestamp"),
            ({"fields": {**fields, "distance_miles": 2**70}}, 400, "out_of_range"),
            ({"fields": {**fields, "origin": ["EWR"]}}, 400, "wrong_type"),
            ({"prediction_id": "x"}, 400, "missing_field"),
            ({**body, "as_of": "2013-06-04T12:00:00"}, 400, "naive_timestamp"),
            ({**body, "log": "never"}, 400, "out_of_range"),
            ({**body, "extra": 1}, 400, "unknown_field"),
        ):
            problem = await http.post(path, json=change)
            assert (problem.status_code, problem.json()["reason"]) == (status, reason)
        for raw, reason in (
            (b"", "empty"),
            (b"{", "undecodable"),
            (b'{"fields": {"origin": "\xff"}}', "bad_utf8"),
            *((json.dumps(body).encode(name), "bad_utf8") for name in ("utf-16", "utf-16-le", "utf-32-be")),
            (b'{"fields": {"origin": "\\ud800"}}', "bad_utf8"),
            (b'{"fields": {"\\ud800": "x"}}', "bad_utf8"),
        ):
            problem = await http.post(path, content=raw, headers={"content-type": "application/json"})
            assert (problem.status_code, problem.json()["reason"]) == (400, reason)
        large = await http.post(path, content=b" " * (2 * 1024 * 1024))
        assert (large.status_code, large.json()["reason"]) == (413, "oversized")
        metrics = (await http.get("/metrics")).text
        assert 'tidemill_serving_feature_values_total{pipeline="flight-delays",status="present"}' in metrics
        assert 'tidemill_serving_predictions_total{pipeline="flight-delays",role="champion"}' in metrics
        missing = await http.post("/v1/pipelines/nothing/predict", json=body)
        assert missing.status_code == 404
        assert missing.headers["content-type"] == "application/problem+json"


async def test_each_value_used_at_hop_accuracy_is_marked_and_counted(stage: Any) -> None:
    exact = definition.View()
    exact.CopyFrom(VIEWS[0])
    exact.accuracy, exact.edge_events = definition.ACCURACY_EXACT, 1
    views = [exact, *VIEWS[1:]]
    await stage.publish("registry.pipelines.v1", f"pipeline/{PIPELINE}", to_json(definition_record(1, views)))
    stored = rings(range(400), project=stage.project, folded=views)
    stage.stored |= stored
    async with Redis.from_url(stage.redis_url) as redis:
        await redis.mset(stored)
    await stage.deploy(deployment(1, stage.versions.make(1, views=views)))
    async with stage.serving() as service, httpx.AsyncClient(base_url=service.http, timeout=60) as http:

        async def counted() -> float:
            lines = (await http.get("/metrics")).text.splitlines()
            name = f'tidemill_serving_hop_accuracy_values_total{{pipeline="{PIPELINE}"}}'
            return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

        before, marked = await counted(), 0
        # At noon sharp a window begins with a bucket; half a minute later its edge cuts one that has several flights.
        for late_us in (0, 30_000_000):
            request = one(3)
            request.as_of_us += late_us
            prediction = (await service.predictions.Predict(request, timeout=60)).prediction
            marked += sum(feature_.value.hop_accuracy for feature_ in prediction.features)
            assert await counted() == before + marked
        assert marked
