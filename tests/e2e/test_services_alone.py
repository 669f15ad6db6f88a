"""Any part may be away: the others keep what their READMEs promise, say what they cannot do, and recover alone (I8)."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx
import pytest
from tidemill.stack.spec import SERVICES
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub
from tidemill_contracts.monitoring.v1 import monitoring_pb2 as monitoring
from tidemill_contracts.monitoring.v1.monitoring_pb2_grpc import MonitoringServiceStub
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tidemill_contracts.serving.v1 import serving_pb2 as serving
from tidemill_contracts.serving.v1.serving_pb2_grpc import PredictionServiceStub
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_contracts.training.v1.training_pb2_grpc import TrainingServiceStub
from tidemill_testkit.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(600)]

PIPELINE = "flight-delays"
ASYNC, DURABLE = serving.LOG_MODE_ASYNC, serving.LOG_MODE_DURABLE
# A service says that something is away within its own time limit and this.
SLACK_S = 15.0
RECOVERY_S = 60.0


class Doors:
    """One small piece of work at every service's door; what cannot be done raises the gRPC error."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared
        channels = shared.channels
        self._ingestion = IngestionServiceStub(channels["ingestion"])
        self._feature = FeatureServiceStub(channels["feature"])
        self._registry = RegistryServiceStub(channels["registry"])
        self._serving = PredictionServiceStub(channels["serving"])
        self._monitoring = MonitoringServiceStub(channels["monitoring"])
        self._training = TrainingServiceStub(channels["training"])
        self._work: dict[str, Callable[[], object]] = {
            "ingestion": lambda: self.publish("alone"),
            "feature": lambda: self.seen("alone"),
            "registry": lambda: self._registry.ListRuns(registry.ListRunsRequest(pipeline=PIPELINE), timeout=60),
            "serving": lambda: (self.predict(ASYNC), self.predict(DURABLE)),
            "monitoring": self.joined,
            "training": self.look_for_a_run,
        }

    def work(self, service: str) -> object:
        """Do a service's piece of work."""
        return self._work[service]()

    def publish(self, probe_id: str) -> ingestion.Verdict:
        """Publish a probe seen now; raises where it was not accepted."""
        seen_at = datetime.now(UTC).isoformat()
        data = f'{{"probe_id":"{probe_id}","tries":1,"level":1,"sound":true,"note":null,"seen_at":"{seen_at}"}}'
        request = ingestion.PublishRequest(stream="probe", event=ingestion.Event(data=data.encode()))
        verdict: ingestion.Verdict = self._ingestion.Publish(request, timeout=60).verdict
        assert verdict.outcome in (ingestion.OUTCOME_ACCEPTED, ingestion.OUTCOME_RETRY), verdict
        return verdict

    def seen(self, probe_id: str) -> int:
        """Return how many probes of this name are in the rings."""
        key = feature.EntityKey(values=[feature.Scalar(string_value=probe_id)])
        request = feature.GetFeaturesRequest(views=[feature.ViewKeys(view="probes", keys=[key])])
        return int(self._feature.GetFeatures(request, timeout=60).views[0].rows[0].values[0].value.int64_value)

    def predict(self, log: serving.LogMode.ValueType) -> serving.Prediction:
        """Ask for a prediction as of now."""
        text = {"flight_id": f"alone-{time.time_ns()}", "origin": "JFK", "dest": "LAX", "carrier": "UA"}
        fields = {name: feature.Scalar(string_value=value) for name, value in text.items()}
        now = feature.Scalar(timestamp_us=time.time_ns() // 1000)
        fields |= {"departs_at": now, "asked_at": now, "distance_miles": feature.Scalar(float64_value=2475.0)}
        request = serving.PredictRequest(pipeline=PIPELINE, fields=fields, log=log)
        prediction: serving.Prediction = self._serving.Predict(request, timeout=60).prediction
        return prediction

    def joined(self) -> int:
        """Return how many predictions monitoring has taken in."""
        request = monitoring.GetJoinStatsRequest(pipeline=PIPELINE)
        return int(self._monitoring.GetJoinStats(request, timeout=60).predictions)

    def look_for_a_run(self) -> None:
        """Ask training for a run that does not exist: a service that works says so."""
        try:
            self._training.GetRun(training.GetRunRequest(run_id="none"), timeout=60)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise

    def health(self, service: str, path: str) -> dict[str, str]:
        """Return what /live or /ready complains of."""
        answer = httpx.get(f"{self.shared.http(service)}/{path}", timeout=60)
        faults: dict[str, str] = answer.json()["faults"]
        assert (answer.status_code == 200) == (not faults)
        return faults

    def unavailable(self, work: Callable[[], object], within_s: float) -> None:
        """Do work that must be refused as unavailable, in bounded time."""
        began = time.monotonic()
        found = self.shared.refused(work)
        assert (found.reason, found.code) == (Reason.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE)
        assert time.monotonic() - began < within_s + SLACK_S

    def recovers(self, service: str) -> None:
        """Wait until a service works again and says so."""
        eventually(
            lambda: (self.work(service), not self.health(service, "ready"))[1],
            RECOVERY_S,
            claim=f"{service} works again and is ready",
            tolerate=(grpc.RpcError, httpx.TransportError, AssertionError),
        )


@pytest.fixture(scope="module")
def doors(trained: Any) -> Doors:
    found = Doors(trained)
    for service in SERVICES:
        found.recovers(service)
    return found


@contextmanager
def away(doors: Doors, *names: str) -> Iterator[None]:
    """Take processes away in this order, and bring them back in reverse."""
    stopped: list[str] = []
    try:
        for name in names:
            doors.shared.stack.stop_process(name)
            stopped.append(name)
        yield
    finally:
        for name in reversed(stopped):
            doors.shared.stack.start_process(name)


@pytest.mark.parametrize("name", SERVICES)
def test_without_one_service_the_five_others_go_on(doors: Doors, name: str) -> None:
    before, probe = doors.joined(), f"without-{name}-{time.time_ns()}"
    with away(doors, name):
        for other in SERVICES:
            if other != name:
                doors.work(other)
                assert not doors.health(other, "live"), other
        if name != "ingestion":
            assert doors.publish(probe).outcome == ingestion.OUTCOME_ACCEPTED
        if name != "serving":
            assert 0 < doors.predict(DURABLE).probability < 1
    doors.recovers(name)
    # What came while it was away is caught up with.
    if name != "ingestion":
        eventually(lambda: doors.seen(probe) == 1, RECOVERY_S, claim="the probe is folded")
    if name != "serving":
        eventually(lambda: doors.joined() > before, RECOVERY_S, claim="the predictions are joined")


def test_without_redis_predictions_and_features_say_unavailable_at_once_and_come_back_alone(doors: Doors) -> None:
    probe = f"no-redis-{time.time_ns()}"

    def crowd() -> int:
        """Read from many threads at once, so that a service opens, or uses again, many connections."""
        with ThreadPoolExecutor(16) as threads:
            return sum(threads.map(doors.seen, ["alone"] * 64))

    assert crowd() >= 64
    with away(doors, "redis"):
        doors.unavailable(lambda: doors.predict(ASYNC), within_s=1)
        doors.unavailable(lambda: doors.predict(DURABLE), within_s=1)
        doors.unavailable(lambda: doors.seen(probe), within_s=5)
        assert doors.publish(probe).outcome == ingestion.OUTCOME_ACCEPTED
        for service in ("registry", "monitoring", "training"):
            doors.work(service)
        assert not any(doors.health(service, "live") for service in SERVICES)
    for service in ("serving", "feature"):
        doors.recovers(service)
    assert crowd() >= 64, "no connection of before the outage fails a request after it"
    eventually(lambda: doors.seen(probe) == 1, RECOVERY_S, claim="what came meanwhile is folded")


def test_without_postgresql_serving_ingestion_and_features_go_on(doors: Doors) -> None:
    probe, before = f"no-postgres-{time.time_ns()}", doors.joined()
    with away(doors, "postgres"):
        for service in ("serving", "ingestion", "feature"):
            doors.work(service)
        assert doors.publish(probe).outcome == ingestion.OUTCOME_ACCEPTED
        eventually(lambda: doors.seen(probe) == 1, claim="events are folded without PostgreSQL")
        for service in ("registry", "monitoring", "training"):
            doors.unavailable(lambda name=service: doors.work(name), within_s=10)  # type: ignore[misc]
        assert not any(doors.health(service, "live") for service in SERVICES)
    for service in SERVICES:
        doors.recovers(service)
    eventually(lambda: doors.joined() >= before + 2, RECOVERY_S, claim="what was predicted meanwhile is joined")


def test_without_kafka_registry_and_postgresql_serving_answers_and_only_durable_is_unavailable(doors: Doors) -> None:
    before, probe = doors.joined(), f"no-kafka-{time.time_ns()}"
    with away(doors, "registry", "kafka", "postgres"):
        answers = [doors.predict(ASYNC) for _ in range(10)]
        assert all(answer.model_version >= 1 for answer in answers)
        doors.unavailable(lambda: doors.predict(DURABLE), within_s=5)
        assert doors.seen("alone") >= 1, "what is in the rings is read"
        verdict = doors.publish(probe)
        assert (verdict.outcome, verdict.reason) == (ingestion.OUTCOME_RETRY, Reason.UNAVAILABLE)
        url = f"{doors.shared.http('ingestion')}/v1/streams/probe/events"
        again = httpx.post(url, content=b"{}", headers={"content-type": "application/json"}, timeout=60)
        assert doors.shared.problem(again) == Reason.MISSING_FIELD, "what is wrong is told without Kafka too"
        eventually(lambda: doors.health("ingestion", "ready"), claim="ingestion is not ready")
        others = [service for service in SERVICES if service != "registry"]
        assert not any(doors.health(service, "live") for service in others)
    for service in SERVICES:
        doors.recovers(service)
    eventually(lambda: doors.joined() >= before + 10, RECOVERY_S, claim="no ASYNC record was lost")


def test_serving_restarts_from_its_last_good_state_while_kafka_and_the_registry_are_gone(doors: Doors) -> None:
    version = doors.predict(DURABLE).model_version
    with away(doors, "registry", "kafka"):
        with away(doors, "serving"), pytest.raises(grpc.RpcError):
            doors.predict(ASYNC)
        eventually(
            lambda: doors.predict(ASYNC).model_version == version,
            20,
            claim="serving answers with the same version",
            tolerate=(grpc.RpcError,),
        )
        doors.unavailable(lambda: doors.predict(DURABLE), within_s=5)
    for service in SERVICES:
        doors.recovers(service)
