"""A slice of the demo on the real stack, short enough to be lived several times in one session."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import time_ns
from typing import Any, NamedTuple

import grpc
import httpx
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from tidemill.definition import compile_file
from tidemill.demo.flights import DAY_US, Year, data_folder
from tidemill.demo.run import Demo, Options, run, undisturbed
from tidemill.stack import Stack
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.definition.v1 import definition_pb2 as definition

FLIGHTS = Path(__file__).parents[2] / "docs/examples/flights/flights.py"
REASONS = Path(__file__).parents[2] / "docs/reasons.md"
PROBE = Path(__file__).with_name("probe.py")
DAY_MS = 24 * 3_600_000
OPTIONS = Options(out=Path(), days=17, first_model_days=8)


def slice_definition() -> definition.Definition:
    """Return the flights' definition with a schedule, rollout and wait short enough for a slice of it."""
    compiled = compile_file(FLIGHTS)
    pipeline = compiled.pipelines[0]
    pipeline.train.min_rows = 1_000
    for trigger in pipeline.retrain.on:
        if trigger.HasField("every"):
            trigger.every.period_ms = 4 * DAY_MS
    pipeline.retrain.cooldown_ms = DAY_MS
    for gate in pipeline.gates:
        if gate.HasField("at_least"):
            # Eight days of January teach less than two months do.
            gate.at_least.value = 0.5
    for step in pipeline.rollout:
        step.duration_ms = DAY_MS // 4
        step.min_labels = 50
    return compiled


@dataclass(frozen=True)
class Lived:
    """One finished run."""

    report: dict[str, Any]
    sample: list[dict[str, Any]]
    out: Path


Live = Callable[..., Lived]


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """Return a function that lives the slice once: `live(name, each_hour=…, **options)`."""

    def lived(name: str, each_hour: Callable[[Stack, int], None] = undisturbed, **options: Any) -> Lived:
        out = tmp_path_factory.mktemp(name)
        report = run(replace(OPTIONS, out=out, **options), slice_definition(), Console(), each_hour)
        return Lived(report, json.loads((out / "sample.json").read_text()), out)

    return lived


@pytest.fixture(scope="session")
def undisturbed_run(live: Live) -> Lived:
    """The slice, lived once with nothing broken: what every other run has to equal. Skew is measured meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEMILL_FEATURE_SKEW_PAUSE_S", "2")
        patch.setenv("TIDEMILL_FEATURE_ARCHIVE_EVERY_S", "2")
        return live("undisturbed")


SHARED_DAYS = 4
# How long the shared stack's services wait for Kafka, so that tests of an outage need not wait longer.
IMPATIENT = {"TIDEMILL_INGESTION_PUBLISH_TIMEOUT_S": "5", "TIDEMILL_SERVING_DURABLE_TIMEOUT_S": "5"}


def forgiving_definition() -> definition.Definition:
    """Return the flights' definition for a first model after a few days: no gate holds it back."""
    compiled = compile_file(FLIGHTS)
    compiled.pipelines[0].train.min_rows = 1_000
    del compiled.pipelines[0].gates[:]
    return compiled


class Refusal(NamedTuple):
    """How a gRPC call was refused; `field` is empty where the whole request is at fault."""

    reason: str
    code: grpc.StatusCode
    field: str


@dataclass(frozen=True)
class Shared:
    """One stack with all six services for every test that leaves it as it found it."""

    stack: Stack
    endpoints: Endpoints
    channels: dict[str, grpc.Channel]
    probe: definition.Definition

    def http(self, service: str) -> str:
        """Return the base URL of a service."""
        return f"http://{self.endpoints.services[service].http}"

    def physical(self, topic: str) -> str:
        """Return a topic's name in Kafka."""
        return self.endpoints.topic_prefix + topic

    def write(self, topic: str, value: bytes, headers: Iterable[tuple[str, bytes]] = ()) -> RecordMetadata:
        """Write one record straight into Kafka, as a producer of one's own does; return where it lies."""

        async def send() -> RecordMetadata:
            async with AIOKafkaProducer(bootstrap_servers=self.endpoints.kafka) as producer:
                return await producer.send_and_wait(self.physical(topic), value, key=b"k", headers=list(headers))

        return asyncio.run(send())

    def counts(self, service: str, metric: str, *labels: str) -> Counter[tuple[str, ...]]:
        """Return a service's counter by the values of some of its labels."""
        found: Counter[tuple[str, ...]] = Counter()
        for family in text_string_to_metric_families(httpx.get(f"{self.http(service)}/metrics", timeout=60).text):
            for sample in family.samples:
                if sample.name == f"tidemill_{metric}_total":
                    found[tuple(sample.labels[label] for label in labels)] += int(sample.value)
        return found

    @staticmethod
    def documented(reason: str) -> str:
        """Return the reason once it is sure that the documentation has its row."""
        assert not reason or f"\n| `{reason}` |" in REASONS.read_text(), f"{reason} is not in docs/reasons.md"
        return reason

    def refused(self, call: Callable[[], Any]) -> Refusal:
        """Make a call that must fail; return what its rich status says."""
        with pytest.raises(grpc.RpcError) as caught:
            call()
        error: Any = caught.value
        status, info, bad = status_pb2.Status(), details.ErrorInfo(), details.BadRequest()
        status.ParseFromString(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b""))
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
        field = bad.field_violations[0].field if bad.field_violations else ""
        return Refusal(self.documented(info.reason.lower()), error.code(), field)

    def problem(self, answer: httpx.Response) -> str:
        """Return the reason of a problem+json answer."""
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        assert answer.status_code == answer.json()["status"]
        return self.documented(answer.json()["reason"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what shares the stack last, so that it does not idle beside the runs that have one of their own."""
    items.sort(key=lambda item: "shared" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """The stack with the flights' pipeline and one that never gets a model, registered and followed by everybody.

    TIDEMILL_TEST_STACK names a folder whose stack is left running for the next session, to save its start.
    """
    kept = os.environ.get("TIDEMILL_TEST_STACK")
    home = Path(kept) if kept else tmp_path_factory.mktemp("shared") / "stack"
    stack = Stack("shared", home, service_environment=IMPATIENT)
    try:
        endpoints = stack.start(attached=not kept)
        for compiled in (forgiving_definition(), compile_file(PROBE)):
            Demo(endpoints, compiled).apply()
        with ExitStack() as channels:
            opened = {
                name: channels.enter_context(grpc.insecure_channel(address.grpc))
                for name, address in endpoints.services.items()
            }
            yield Shared(stack, endpoints, opened, compile_file(PROBE))
    finally:
        if not kept:
            stack.stop()


@pytest.fixture(scope="session")
def trained(shared: Shared) -> Shared:
    """The same stack after some days of flights and the first model."""
    demo = Demo(shared.endpoints, forgiving_definition())
    if demo.deployments():
        return shared
    year = Year(data_folder(), SHARED_DAYS)
    for day in range(1, SHARED_DAYS + 1):
        time_us = year.first_us + day * DAY_US
        demo.replay.live(demo.replay.hour(year.until(time_us), time_us, ask=False), lambda: None)
    demo.first_model(time_us)
    return shared


PARK = '''
"""Rides of a park."""
from datetime import datetime
import tidemill as tm

class Ride(tm.Event, stream="{stream}", key="ride_id", time="ended_at", partitions=1, dedup="2h"):
    ride_id: str
    gate: str
    minutes: float
    ended_at: datetime

features = {{"rides_1h": tm.count("1h"), "longest_1h": tm.max("minutes", "{window}")}}
gates = tm.View("{view}", Ride, by="gate", features=features)
'''


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of a command that was asked for JSON."""
        return json.loads(self.out.strip().splitlines()[-1])

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.strip().splitlines()]


Run = Callable[..., Done]
COMMAND = [sys.executable, "-m", "tidemill.cli.main"]


@pytest.fixture(scope="session")
def tidemill(shared: Any) -> Run:
    """Return a function that runs one command against the stack."""
    home = str(shared.stack.layout.home)
    environment = {**os.environ, "TIDEMILL_ACTOR": "ada"}

    def run(*arguments: object, stack: bool = True, stdin: str | None = None) -> Done:
        command = [*COMMAND, *map(str, arguments), *(["--home", home] if stack else [])]
        done = subprocess.run(
            command, capture_output=True, text=True, input=stdin, env=environment, timeout=120, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@dataclass(frozen=True)
class Park:
    """A stream and a view of this session's own."""

    stream: str
    view: str
    file: Path

    def write(self, window: str = "1h") -> Path:
        self.file.write_text(PARK.format(stream=self.stream, view=self.view, window=window))
        return self.file


@pytest.fixture(scope="session")
def park(tidemill: Run, tmp_path_factory: pytest.TempPathFactory) -> Park:
    name = f"rides-{time_ns()}"
    found = Park(name, f"gates-{time_ns()}", tmp_path_factory.mktemp("park") / "park.py")
    registered = tidemill("apply", found.write(), "--json")
    assert registered.code == 0, registered
    assert {(one["kind"], one["change"]) for one in registered.json["changes"]} == {
        ("stream", "created"),
        ("view", "created"),
    }
    return found
