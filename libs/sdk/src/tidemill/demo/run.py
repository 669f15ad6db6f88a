"""The demo from start to report: stack, definition, first model, then hands off."""

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from rich.console import Console
from tidemill_contracts.canonical import to_dict
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import from_timestamp, to_timestamp
from tidemill_contracts.monitoring.v1 import monitoring_pb2 as monitoring
from tidemill_contracts.monitoring.v1.monitoring_pb2_grpc import MonitoringServiceStub
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tidemill_contracts.serving.v1 import records_pb2 as serving

from tidemill.demo.chart import draw
from tidemill.demo.flights import DAY_US, HOUR_US, Year, data_folder
from tidemill.demo.memory import PeakMemory
from tidemill.demo.outcomes import latest_outcomes, logged_predictions, named_features
from tidemill.demo.replay import Hour, Replay
from tidemill.demo.report import evidence_chain, scores, weekly
from tidemill.demo.view import LiveView
from tidemill.stack import Stack
from tidemill.stack.endpoints import Endpoints

ACTOR = (("x-tidemill-actor", "demo"),)
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
STATIC_VERSION = 1
# Within the folder that the demo writes to.
STACK_FOLDER = "stack"
# Predictions whose features are written out, so that anyone can check them against the data.
SAMPLE = 1_000


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    out: Path
    # 366 because the last flights of the year leave on 1 January, UTC.
    days: int = 366
    # The first model learns from this many days; the demo then only watches.
    first_model_days: int = 28
    # Shuffle the days with this seed: a year without drift.
    twin_seed: int | None = None
    break_challenger: bool = False
    hop_delay_ms: int = 0
    keep_stack: bool = False


def service_environment(options: Options) -> dict[str, str]:
    """Return the test flags of this run as settings of the services."""
    environment: dict[str, str] = {}
    if options.hop_delay_ms:
        services = ("INGESTION", "FEATURE", "TRAINING", "REGISTRY", "SERVING", "MONITORING")
        environment |= {f"TIDEMILL_{name}_TEST_HOP_DELAY_MS": str(options.hop_delay_ms) for name in services}
    if options.break_challenger:
        # The second run is the first with a champion to compare with.
        environment["TIDEMILL_TRAINING_TEST_FLIP_LABELS_ONCE"] = "2"
    return environment


class Demo:
    """One run over a started stack."""

    def __init__(self, endpoints: Endpoints, compiled: definition.Definition) -> None:
        self.endpoints = endpoints
        self.definition = compiled
        self.pipeline = compiled.pipelines[0].name
        sizes = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        self.channels = {
            name: grpc.insecure_channel(address.grpc, options=sizes) for name, address in endpoints.services.items()
        }
        self.registry = RegistryServiceStub(self.channels["registry"])
        self.monitoring = MonitoringServiceStub(self.channels["monitoring"])
        self.replay = Replay(self.pipeline, self.channels)
        self.sample: list[serving.PredictionRecord] = []

    def apply(self) -> None:
        """Register the definition and wait until every service follows it."""
        self.registry.ApplyDefinition(
            registry.ApplyDefinitionRequest(definition=self.definition), metadata=ACTOR, timeout=30
        )
        self.replay.settle(self.replay.wait(("registry", "outbox"), [], 0), 0)

    def first_model(self, time_us: int) -> None:
        """Ask for the first model and make it the fixed yardstick beside whatever follows."""
        request = monitoring.RequestRetrainingRequest(
            pipeline=self.pipeline,
            reason="the first model",
            idempotency_key="first-model",
            event_time=to_timestamp(time_us),
        )
        self.replay.persist("retrain", lambda: self.monitoring.RequestRetraining(request, metadata=ACTOR, timeout=30))
        self.replay.settle(self.replay.wait(("monitoring", "join"), [], time_us), time_us)
        baseline = registry.SetBaselinesRequest(
            pipeline=self.pipeline, versions=[STATIC_VERSION], reason="a static copy for comparison"
        )
        self.replay.persist("baseline", lambda: self.registry.SetBaselines(baseline, metadata=ACTOR, timeout=30))
        self.replay.settle(self.replay.wait(("registry", "outbox"), [], time_us), time_us)

    def live(self, year: Year, first_model_us: int, view: LiveView, each_hour: Callable[[int], None]) -> None:
        """Run through the year hour by hour, and on until every wait for a label is over.

        `each_hour` is called with every hour's end before it is lived: tests break things there.
        """
        wait_us = self.definition.pipelines[0].label.wait_ms * 1_000
        end_us = (year.last_us // HOUR_US + 1) * HOUR_US + wait_us
        history = Watch(self, view)

        def hour(time_us: int) -> Hour:
            return self.replay.hour(year.until(time_us), time_us, ask=time_us > first_model_us)

        upcoming = hour(year.first_us)
        for time_us in range(year.first_us, end_us + HOUR_US, HOUR_US):
            each_hour(time_us)
            upcoming = self.replay.live(upcoming, partial(hour, time_us + HOUR_US))
            if time_us == first_model_us:
                view.say(time_us, "training the first model")
                self.first_model(time_us)
            view.advance(time_us, self.replay.tally.events.total())
            if time_us % DAY_US == 0:
                history.look(time_us)
        history.look(end_us)

    def incidents(self) -> list[dict[str, Any]]:
        """Return every incident, oldest first."""
        found = self.monitoring.ListIncidents(
            monitoring.ListIncidentsRequest(pipeline=self.pipeline, limit=1_000), timeout=30
        )
        return [to_dict(incident) for incident in sorted(found.incidents, key=lambda i: from_timestamp(i.detected_at))]

    def deployments(self) -> list[records.DeploymentRecord]:
        """Return every deployment revision, oldest first."""
        request = registry.ListDeploymentHistoryRequest(pipeline=self.pipeline)
        return list(self.registry.ListDeploymentHistory(request, timeout=30).deployments)

    def runs(self) -> list[registry.Run]:
        """Return every training run, oldest first."""
        found = self.registry.ListRuns(registry.ListRunsRequest(pipeline=self.pipeline, limit=1_000), timeout=30).runs
        return sorted(found, key=lambda run: from_timestamp(run.requested_at))

    def report(self, seconds: float, peak_mb: dict[str, float]) -> dict[str, Any]:
        """Gather the report from the services and their topics."""
        client: dict[str, Any] = {"bootstrap_servers": self.endpoints.kafka}
        prefix = self.endpoints.topic_prefix
        scored = asyncio.run(latest_outcomes(client, prefix, STATIC_VERSION)).scored()
        logged = asyncio.run(logged_predictions(client, prefix, SAMPLE))
        self.sample = logged.sample
        joined = self.monitoring.GetJoinStats(monitoring.GetJoinStatsRequest(pipeline=self.pipeline), timeout=30)
        tally, runs, deployments, incidents = self.replay.tally, self.runs(), self.deployments(), self.incidents()
        changes = [to_dict(deployment) for deployment in deployments]
        return {
            "events": dict(sorted(tally.events.items())),
            "refused": dict(sorted(tally.refused.items())),
            "predictions": logged.distinct,
            "predictions_asked": tally.predictions,
            "predictions_logged": logged.records,
            "failed_predictions": sum(tally.failed_predictions.values()),
            "labels": {"joined": joined.joined, "pending": joined.pending, "never": joined.never},
            "incidents": incidents,
            "retrainings": dict(sorted(Counter(run.cause_kind for run in runs).items())),
            "retrainings_at": [
                {"at": to_dict(run).get("requested_at"), "cause": run.cause_kind, "status": run.status} for run in runs
            ],
            "promotions": [
                {
                    "version": change["champion"]["version"],
                    "at": change.get("decided_at"),
                    "cause": _cause(change, runs),
                }
                for change in changes
                if change.get("change") in ("first", "promoted")
            ],
            "rollbacks": sum(change.get("change") == "rolled_back" for change in changes),
            **scores(scored.label, scored.adaptive, scored.static),
            "weeks": weekly(scored),
            "evidence_chain": evidence_chain(incidents, [to_dict(run) for run in runs], changes),
            "seconds": round(seconds, 1),
            "events_per_s": round(tally.events.total() / seconds),
            "peak_rss_mb": {name: round(peak) for name, peak in sorted(peak_mb.items())},
            "retries": dict(sorted(tally.retries.items())),
        }

    def sampled(self) -> list[dict[str, Any]]:
        """Return the sampled predictions with their features by name."""
        versions = self.registry.ListVersions(registry.ListVersionsRequest(pipeline=self.pipeline), timeout=30).versions
        columns = {version.version: version.features for version in versions}
        return [
            {
                "prediction_id": prediction.prediction_id,
                "flight_id": prediction.join_key,
                "as_of_us": prediction.as_of_us,
                "features": named_features(prediction, columns[prediction.model_version]),
            }
            for prediction in self.sample
        ]


def _cause(change: dict[str, Any], runs: list[registry.Run]) -> str:
    return next((run.cause_kind for run in runs if run.request_id == change.get("cause_id")), "")


class Watch:
    """Tells the view what the services have decided since the last look."""

    def __init__(self, demo: Demo, view: LiveView) -> None:
        self._demo = demo
        self._view = view
        self._told: set[str] = set()

    def look(self, time_us: int) -> None:
        incidents = self._demo.incidents()
        self._view.incidents = len(incidents)
        for incident in incidents:
            self._tell(time_us, f"incident/{incident['incident_id']}", incident.get("summary", ""))
        for deployment in self._demo.deployments():
            self._view.version = deployment.champion.version
            self._tell(from_timestamp(deployment.decided_at), _name(deployment), deployment.summary)

    def _tell(self, time_us: int, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self._view.say(time_us, text)


def _name(message: Message) -> str:
    return f"deployment/{getattr(message, 'revision', 0)}"


def undisturbed(stack: Stack, time_us: int) -> None:
    """Leave the stack alone."""


def run(
    options: Options,
    compiled: definition.Definition,
    console: Console,
    each_hour: Callable[[Stack, int], None] = undisturbed,
) -> dict[str, Any]:
    """Run the whole demo and return its report, which is also written to `report.json`."""
    options.out.mkdir(parents=True, exist_ok=True)
    home = options.out / STACK_FOLDER
    with ExitStack() as cleanup:
        Stack("demo", home).stop()
        shutil.rmtree(home, ignore_errors=True)
        stack = Stack("demo", home, service_environment=service_environment(options))
        reading = cleanup.enter_context(ThreadPoolExecutor(1)).submit(
            Year, data_folder(), options.days, options.twin_seed
        )
        console.print("starting Kafka, PostgreSQL, Redis and six services, reading the year …")
        endpoints = stack.start(deadline_s=180, attached=not options.keep_stack)
        if not options.keep_stack:
            cleanup.callback(stack.stop)
        year = reading.result()
        demo = Demo(endpoints, compiled)
        demo.apply()
        began = time.monotonic()
        memory = cleanup.enter_context(PeakMemory(lambda: pids(stack)))
        with LiveView(console, total=len(year)) as view:
            first_model_us = year.first_us + options.first_model_days * DAY_US
            demo.live(year, first_model_us, view, lambda time_us: each_hour(stack, time_us))
        report = demo.report(time.monotonic() - began, memory.peak_mb)
        (options.out / "sample.json").write_text(json.dumps(demo.sampled(), indent=1))
    (options.out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if report["weeks"]:
        draw(report, options.out / "chart.png")
    return report


def pids(stack: Stack) -> dict[str, int]:
    """Return the running processes of a stack by name."""
    state = stack.state
    return {process.name: process.pid for process in state.processes if process.pid} if state else {}
