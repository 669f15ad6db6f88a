"""Commands against services that answer little, late or not at all; the services are stand-ins over real gRPC."""

# ruff: noqa: N802 - gRPC names the methods

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from tidemill.cli.main import app
from tidemill.clients.calls import AsyncConnection, CallError, Connection
from tidemill.clients.publishing import AsyncEventStream, EventStream, Flight
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_contracts.ingestion.v1 import ingestion_pb2_grpc
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.monitoring.v1 import monitoring_pb2 as monitoring
from tidemill_contracts.monitoring.v1 import monitoring_pb2_grpc
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring_records
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.registry.v1 import registry_pb2_grpc
from tidemill_contracts.serving.v1 import serving_pb2 as serving
from tidemill_contracts.serving.v1 import serving_pb2_grpc
from typer.testing import CliRunner, Result

ORDERS = definition.Definition(
    streams=[
        definition.Stream(
            name="order-placed",
            fields=[definition.Field(name="order_id", type=definition.FIELD_TYPE_STRING)],
        )
    ],
    pipelines=[definition.Pipeline(name="late-orders", request="order-placed")],
)
DAY_US = 86_400_000_000
REQUEST = "3c9e1b52-6f0d-5a37-9c41-d2a7f8e05b16"


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Knows one pipeline, which was never trained, and has forgotten another, which was."""

    def GetDefinition(self, request: Any, context: Any) -> registry.GetDefinitionResponse:
        if request.name not in ("late-orders", "order-placed"):
            info = any_pb2.Any()
            info.Pack(error_details_pb2.ErrorInfo(reason="UNKNOWN_PIPELINE"))
            status = status_pb2.Status(details=[info])
            context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
            context.abort(grpc.StatusCode.NOT_FOUND, f"no pipeline {request.name!r}")
        return registry.GetDefinitionResponse(record=definition.DefinitionRecord(definition=ORDERS))

    def ListRuns(self, request: Any, context: Any) -> registry.ListRunsResponse:
        runs = [registry.Run(run_id="r-1", request_id=REQUEST)] if request.pipeline == "retired" else []
        return registry.ListRunsResponse(runs=runs)

    def ListVersions(self, request: Any, context: Any) -> registry.ListVersionsResponse:
        return registry.ListVersionsResponse()

    def GetDeployment(self, request: Any, context: Any) -> registry.GetDeploymentResponse:
        return registry.GetDeploymentResponse()


class Monitoring(monitoring_pb2_grpc.MonitoringServiceServicer):
    """Takes a request for a training run; knows a pipeline in the midst of a rollout, and one that nothing came to."""

    def GetJoinStats(self, request: Any, context: Any) -> monitoring.GetJoinStatsResponse:
        silent = [monitoring.PartitionTime(topic="events.chargebacks", partition=number) for number in range(5)]
        if request.pipeline == "silent":
            return monitoring.GetJoinStatsResponse(held_by=silent)
        return monitoring.GetJoinStatsResponse(
            predictions=3_000,
            joined=1_200,
            pending=1_700,
            never=100,
            corrected=7,
            labels_without_prediction=2,
            clock=to_timestamp(DAY_US),
            newest=to_timestamp(DAY_US * 3),
            held_by=silent[:1],
        )

    def GetMetrics(self, request: Any, context: Any) -> monitoring.GetMetricsResponse:
        if request.pipeline == "silent":
            return monitoring.GetMetricsResponse()

        def measured(days: int, **more: Any) -> monitoring_records.MetricRecord:
            return monitoring_records.MetricRecord(window_end=to_timestamp(days * DAY_US), rows=1_500, **more)

        said = "v3 scores in shadow beside v2"
        return monitoring.GetMetricsResponse(
            metrics=[
                measured(3, kind="rollout", model_version=3, summary=said),
                measured(2, kind="window", model_version=2, role="champion", values={"log_loss": 0.25}),
                measured(2, kind="window", model_version=3, role="challenger"),
                measured(1, kind="window", model_version=1, role="champion", values={"log_loss": 0.5}),
            ]
        )

    def ListIncidents(self, request: Any, context: Any) -> monitoring.ListIncidentsResponse:
        statuses = ["open", "resolved"] if request.pipeline == "late-orders" else []
        incidents = [
            monitoring_records.IncidentRecord(incident_id=f"i-{status}", status=status, summary="v2 lost 0.2")
            for status in statuses
        ]
        return monitoring.ListIncidentsResponse(incidents=incidents)

    def RequestRetraining(self, request: Any, context: Any) -> monitoring.RequestRetrainingResponse:
        return monitoring.RequestRetrainingResponse(request=monitoring_records.RetrainRequest(request_id=REQUEST))


class Serving(serving_pb2_grpc.PredictionServiceServicer):
    """Answers one call, and is away afterwards."""

    def __init__(self) -> None:
        self.calls = 0

    def PredictBatch(self, request: Any, context: Any) -> serving.PredictBatchResponse:
        self.calls += 1
        if self.calls > 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "it restarts")
        predictions = [serving.Prediction(prediction_id=row.fields["order_id"].string_value) for row in request.rows]
        return serving.PredictBatchResponse(results=[serving.RowResult(prediction=one) for one in predictions])


class Ingestion(ingestion_pb2_grpc.IngestionServiceServicer):
    """Takes events and gives no verdict."""

    def __init__(self) -> None:
        self.ended = Event()

    def PublishStream(self, requests: Any, context: Any) -> Iterator[ingestion.PublishStreamResponse]:
        context.add_callback(self.ended.set)
        self.ended.wait(60)
        yield from ()


@pytest.fixture
def address() -> Iterator[str]:
    """Where all the stand-ins answer."""
    server = grpc.server(ThreadPoolExecutor(4))
    monitoring_pb2_grpc.add_MonitoringServiceServicer_to_server(Monitoring(), server)  # type: ignore[abstract]
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(Registry(), server)  # type: ignore[abstract]
    serving_pb2_grpc.add_PredictionServiceServicer_to_server(Serving(), server)  # type: ignore[abstract]
    ingestion_pb2_grpc.add_IngestionServiceServicer_to_server(Ingestion(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def run(address: str, *arguments: object, actor: str = "ada") -> Result:
    names = ("REGISTRY", "SERVING", "INGESTION", "MONITORING")
    services = {f"TIDEMILL_{name}": address for name in names}
    return CliRunner().invoke(app, [str(one) for one in arguments], env={**services, "TIDEMILL_ACTOR": actor})


def written(path: Path, rows: int, broken: int = 0) -> Path:
    lines = ["{" if number == broken else json.dumps({"order_id": f"o-{number}"}) for number in range(1, rows + 1)]
    path.write_text("\n".join(lines))
    return path


def test_a_row_that_is_no_json_is_one_of_the_answers(address: str, tmp_path: Path) -> None:
    result = run(address, "predict", "late-orders", written(tmp_path / "r.ndjson", 150, broken=141), "--json")
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert [entry["row"] for entry in entries] == list(range(1, 151))
    assert [(entry["row"], entry["reason"]) for entry in entries if "reason" in entry] == [(141, "undecodable")]


def test_what_was_predicted_is_shown_where_serving_goes_away(address: str, tmp_path: Path) -> None:
    result = run(address, "predict", "late-orders", written(tmp_path / "r.ndjson", 250))
    assert result.exit_code == 3
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["row", *map(str, range(1, 201))]
    assert "not reachable" in result.stderr


def test_what_was_predicted_is_shown_where_the_file_breaks_off(address: str, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("order_id\n" + "".join(f"o-{number}\n" for number in range(1, 251)) + "o-251,too much\n")
    result = run(address, "predict", "late-orders", path)
    assert result.exit_code == 1
    assert "o-200" in result.stdout
    assert "row 251 has more cells than the header" in result.stderr


@pytest.mark.parametrize("command", [("runs",), ("models", "list")])
def test_a_pipeline_that_nobody_registered_is_named(address: str, command: tuple[str, ...]) -> None:
    result = run(address, *command, "nosuch", "--json")
    assert (result.exit_code, json.loads(result.stdout)["reason"]) == (1, "unknown_pipeline")
    assert run(address, *command, "late-orders").exit_code == 0


def test_the_runs_of_a_pipeline_that_is_registered_no_more_are_listed(address: str) -> None:
    assert "r-1" in run(address, "runs", "retired").stdout


def test_a_run_is_listed_under_the_request_that_retrain_names(address: str) -> None:
    asked = run(address, "retrain", "retired", "--why", "once more")
    assert asked.stdout == f"requested as {REQUEST}; follow it with `tidemill runs retired`, by this request_id\n"
    columns, listed = (line.split() for line in run(address, "runs", "retired").stdout.splitlines())
    assert "request_id" in columns
    assert REQUEST in listed


def test_an_actor_that_a_call_cannot_carry_is_named_with_its_variable(address: str) -> None:
    result = run(address, "models", "promote", "late-orders", 1, "--why", "x", actor="José")
    assert result.exit_code == 1
    assert "'José' cannot be sent as the actor, which is printable ASCII: set TIDEMILL_ACTOR" in result.stderr


def test_an_ingestion_that_takes_events_and_is_silent_is_away(address: str) -> None:
    flight = Flight("order-placed", "test", lambda _number, _verdict: None, silence_s=0.3)
    with (
        pytest.raises(CallError, match=r"gave no verdict for 0\.3 s") as caught,
        Connection("ingestion", address) as to,
        EventStream(to, flight) as events,
    ):
        events.send([ingestion.Event(data=b"{}")])
    assert not caught.value.reached


async def test_an_ingestion_that_takes_events_and_is_silent_is_away_with_asyncio_too(address: str) -> None:
    flight = Flight("order-placed", "test", lambda _number, _verdict: None, silence_s=0.3)
    with pytest.raises(CallError, match=r"gave no verdict for 0\.3 s") as caught:
        async with AsyncConnection("ingestion", address) as to, AsyncEventStream(to, flight) as events:
            await events.send([ingestion.Event(data=b"{}")])
    assert not caught.value.reached


def test_monitor_shows_the_clock_the_labels_the_last_day_measured_the_rollout_and_what_is_open(address: str) -> None:
    clock, counts, since, *table, rollout, incident = run(address, "monitor", "late-orders").stdout.splitlines()
    assert clock.startswith("late-orders: its clock is at 1970-01-02T00:00:00Z, 48 h behind the newest event: ")
    assert "it waits for events.chargebacks[0]; send watermarks" in clock
    assert counts == (
        "3,000 predictions: 1,200 labelled, 1,700 wait for a label, 100 never got one; 7 corrected; "
        "2 labels belong to no prediction"
    )
    assert since.endswith("to 1970-01-03:")
    assert [line.split() for line in table[1:]] == [["2", "champion", "1,500", "0.2500"], ["3", "challenger", "1,500"]]
    assert rollout == "v3 scores in shadow beside v2"
    assert incident == "incident i-open is open: v2 lost 0.2"


def test_monitor_says_all_of_it_as_json(address: str) -> None:
    found = json.loads(run(address, "monitor", "late-orders", "--json").stdout)
    assert int(found["join"]["pending"]) == 1_700
    assert [one["model_version"] for one in found["windows"]] == [2, 3]
    assert found["rollout"]["model_version"] == 3
    assert [one["incident_id"] for one in found["incidents"]] == ["i-open"]


def test_monitor_names_what_a_pipeline_without_a_clock_waits_for(address: str) -> None:
    clock, counts, measured = run(address, "monitor", "silent").stdout.splitlines()
    named = "events.chargebacks[0], events.chargebacks[1], events.chargebacks[2] and 2 more"
    assert clock.startswith(f"silent: no clock yet, as no event has come on {named}; send watermarks")
    assert counts.startswith("0 predictions: 0 labelled")
    assert measured == "no whole day has been measured yet"
