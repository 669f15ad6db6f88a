"""Tells operators what streams look like and when one pauses: gauges, log lines, the topic ingestion.quality.v1."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

import structlog
from tidemill_contracts.ingestion.v1 import records_pb2 as records
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.metrics import OTHER
from tidemill_runtime.producer import Producer

from tidemill_ingestion import metrics
from tidemill_ingestion.admission import Gate
from tidemill_ingestion.gates import Gates
from tidemill_ingestion.reporting import change_record, outgoing, profile_record

# How long a pause or its end may stay untold.
_LOOK_S = 0.5
_LAST_S = 3.0

log = structlog.get_logger(__name__)


class Reporter(Component):
    """Looks at every stream; a `Component` for `running`.

    A profile that Kafka does not take is counted and dropped; pauses and their ends are told once Kafka is back. What
    it will never take is counted and dropped whatever it is about: nothing that is only told ends the service.
    """

    def __init__(
        self, gates: Gates, producer: Producer, *, hop_s: float, replica: str, clock: Callable[[], int]
    ) -> None:
        self._gates = gates
        self._producer = producer
        self._hop_s = hop_s
        self._replica = replica
        self._clock = clock
        self._stopping = asyncio.Event()
        self._busy: set[str] = set()
        self._forgotten: dict[str, int] = {}

    def stop(self) -> None:
        """Report what there is and end."""
        self._stopping.set()

    async def run(self) -> None:
        """Report until `stop`, and once more then, so that the last hop is told too."""
        began_s = monotonic()
        while not self._stopping.is_set():
            await self._changes()
            if monotonic() - began_s >= self._hop_s:
                began_s += self._hop_s
                await self._profiles()
            try:
                await asyncio.wait_for(self._stopping.wait(), min(_LOOK_S, self._hop_s))
            except TimeoutError:
                continue
        with suppress(TimeoutError):
            # With Kafka away nobody is told; the service's stop does not wait for it.
            async with asyncio.timeout(_LAST_S):
                await self._changes()
                await self._profiles()

    async def _changes(self) -> None:
        for gate in self._gates:
            now_us, name = self._clock(), gate.stream.name
            gate.profile.begin(now_us)
            paused = gate.paused(now_us) is not None
            label = metrics.stream_label(name)
            metrics.paused.labels(label).set(paused)
            while gate.changes:
                record = change_record(name, gate.changes[0], self._replica, now_us)
                if not await self._send(record, now_us):
                    break
                gate.changes.popleft()
                if record.kind == "paused":
                    metrics.pauses.labels(label).inc()
                log.warning("stream_" + record.kind, stream=name, summary=record.summary)

    async def _profiles(self) -> None:
        for gate in self._gates:
            name, now_us = gate.stream.name, self._clock()
            offered = gate.profile.offered
            profile = gate.profile.cut(now_us)
            self._measure(gate, profile)
            # A stream that falls silent is told of once.
            told = offered or name in self._busy
            if told and not await self._send(profile_record(name, profile, self._replica, now_us), now_us):
                metrics.unreported.inc()
            (self._busy.add if offered else self._busy.discard)(name)

    async def _send(self, record: records.QualityRecord, now_us: int) -> bool:
        """Write one message, or drop what Kafka never takes; False where Kafka is away, which is not waited for."""
        if self._producer.fault() is not None:
            return False
        try:
            await self._producer.send(outgoing(record, now_us))
        except Retryable as error:
            log.warning("quality_unreported", stream=record.stream, kind=record.kind, error=str(error))
            return False
        except Poison as error:
            metrics.unreported.inc()
            log.warning("quality_unreportable", stream=record.stream, kind=record.kind, error=str(error))
        return True

    def _measure(self, gate: Gate, profile: records.StreamProfile) -> None:
        stream = metrics.stream_label(gate.stream.name)
        metrics.identities.labels(stream).set(len(gate.recent))
        metrics.forgotten.labels(stream).inc(gate.recent.forgotten - self._forgotten.get(gate.stream.name, 0))
        self._forgotten[gate.stream.name] = gate.recent.forgotten
        if stream == OTHER:
            return
        metrics.rate.labels(stream).set(profile.rate)
        metrics.refused_share.labels(stream).set(profile.refused_share)
        metrics.duplicate_share.labels(stream).set(profile.duplicate_share)
        metrics.late_share.labels(stream).set(profile.late_share)
        if profile.HasField("freshness_seconds"):
            metrics.freshness.labels(stream).set(profile.freshness_seconds)
        for field in profile.fields:
            if metrics.field_label(f"{gate.stream.name}.{field.name}") == OTHER:
                continue
            metrics.null_share.labels(stream, field.name).set(field.null_share)
            metrics.distinct.labels(stream, field.name).set(field.distinct)
            if field.HasField("min"):
                metrics.low.labels(stream, field.name).set(field.min)
                metrics.high.labels(stream, field.name).set(field.max)
