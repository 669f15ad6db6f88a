"""Writes what was admitted, in one flush per request, and turns Kafka's answers into verdicts."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_runtime import metrics
from tidemill_runtime.errors import Fatal, Overloaded, Poison, Retryable, TidemillError
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Placed, Producer
from tidemill_runtime.progress import to_wire

from tidemill_ingestion.admission import Admission, Admitted, Gate, Repeat
from tidemill_ingestion.gates import Gates
from tidemill_ingestion.settings import Settings
from tidemill_ingestion.verdicts import Refusal

_events = metrics.counter(
    "ingestion_events",
    "Events by stream, outcome and, where not accepted, named reason.",
    ("stream", "outcome", "reason"),
)
_in_flight = metrics.gauge("ingestion_in_flight_bytes", "Event data not yet acknowledged by Kafka.")
OUTCOME_NAMES = {
    messages.OUTCOME_ACCEPTED: "accepted",
    messages.OUTCOME_DUPLICATE: "duplicate",
    messages.OUTCOME_REFUSED: "refused",
    messages.OUTCOME_RETRY: "retry",
}


class Publisher:
    """Publishes requests; bounded by the bytes that wait for Kafka."""

    def __init__(
        self,
        gates: Gates,
        producer: Producer,
        settings: Settings,
        *,
        clock: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self._gates = gates
        self._producer = producer
        self._settings = settings
        self._clock = clock
        self._new_id = new_id
        self._bytes = 0
        self._requests = 0
        self._stream_label = metrics.Bounded()
        self._idle = asyncio.Event()
        self._idle.set()

    async def publish(
        self, batches: Sequence[messages.StreamEvents], watermark: messages.Watermark | None = None
    ) -> messages.PublishBatchResponse:
        """Write the events, then the watermark, and return a verdict per event and the positions written.

        Raises `Poison` where the request as a whole is wrong, `Overloaded` where too much is in flight: nothing was
        written then.
        """
        now_us = self._clock()
        self._check(batches, watermark, now_us)
        with self._room(sum(len(event.data) for batch in batches for event in batch.events)):
            admitted = [self._admit(batch, now_us) for batch in batches]
            records = [_outgoing(one) for _, found in admitted for one in found if isinstance(one, Admitted)]
            if watermark is not None:
                marks = self._gates.watermarks(watermark.streams, watermark.time_us)
                records += [Outgoing(topic, b"", None, headers, number) for topic, number, headers in marks]
            outcomes = await self._producer.send_each(records)
        response = messages.PublishBatchResponse(written=to_wire(_ends(outcomes)))
        rest = iter(outcomes)
        for batch, (gate, found) in zip(batches, admitted, strict=True):
            verdicts = _verdicts(gate, found, rest)
            response.verdicts.extend(verdicts)
            self._count(batch.stream, verdicts, response)
        for outcome in rest:
            if not isinstance(outcome, Placed):
                # Without its watermark the batch's clock would stand still unseen.
                raise Retryable(f"the watermark was not acknowledged: {outcome}; send it again")
        return response

    def count_unread(self, stream: str, refusals: Sequence[Refusal]) -> None:
        """Count events that a door could not even read, so that no refusal is silent."""
        label = self._stream_label(stream)
        for refusal in refusals:
            _events.labels(label, OUTCOME_NAMES[messages.OUTCOME_REFUSED], refusal.reason).inc()

    async def idle(self) -> None:
        """Return once nothing waits for Kafka."""
        await self._idle.wait()

    def _check(
        self, batches: Sequence[messages.StreamEvents], watermark: messages.Watermark | None, now_us: int
    ) -> None:
        count = sum(len(batch.events) for batch in batches)
        if count > self._settings.max_batch_events:
            limit = self._settings.max_batch_events
            raise Poison(Reason.OVERSIZED, f"{count:,} events in one request, at most {limit:,}", field="batches")
        if watermark is not None:
            refusal = self._gates.check_watermark(watermark.streams, watermark.time_us, now_us)
            if refusal is not None:
                raise Poison(refusal.reason, refusal.message, field=refusal.field)

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        if self._bytes and self._bytes + size > self._settings.max_in_flight_bytes:
            raise Overloaded(f"{self._bytes:,} bytes of events wait for Kafka", retry_after_s=0.5)
        self._bytes += size
        self._requests += 1
        _in_flight.set(self._bytes)
        self._idle.clear()
        try:
            yield
        finally:
            self._bytes -= size
            self._requests -= 1
            _in_flight.set(self._bytes)
            if not self._requests:
                self._idle.set()

    def _admit(self, batch: messages.StreamEvents, now_us: int) -> tuple[Gate | None, list[Admission]]:
        gate = self._gates.find(batch.stream)
        if isinstance(gate, Refusal):
            return None, [gate] * len(batch.events)
        return gate, gate.admit(batch.events, batch.source, now_us, self._new_id)

    def _count(
        self, stream: str, verdicts: Sequence[messages.Verdict], response: messages.PublishBatchResponse
    ) -> None:
        label = self._stream_label(stream)
        for (outcome, reason), count in Counter((one.outcome, one.reason) for one in verdicts).items():
            _events.labels(label, OUTCOME_NAMES[outcome], reason).inc(count)
            if outcome == messages.OUTCOME_ACCEPTED:
                response.accepted += count
            elif outcome == messages.OUTCOME_DUPLICATE:
                response.duplicates += count
            elif outcome == messages.OUTCOME_REFUSED:
                response.refused += count


def _outgoing(admitted: Admitted) -> Outgoing:
    return Outgoing(admitted.topic, admitted.value, admitted.key, admitted.headers)


def _ends(outcomes: Sequence[Placed | TidemillError]) -> dict[Partition, int]:
    ends: dict[Partition, int] = {}
    for placed in outcomes:
        if isinstance(placed, Placed):
            partition = Partition(placed.topic, placed.partition)
            ends[partition] = max(ends.get(partition, 0), placed.offset + 1)
    return ends


def _verdicts(
    gate: Gate | None, admissions: Sequence[Admission], outcomes: Iterator[Placed | TidemillError]
) -> list[messages.Verdict]:
    """Return a verdict per admission, taking one outcome for each that was written."""
    verdicts: list[messages.Verdict] = []
    for admission in admissions:
        if isinstance(admission, Admitted):
            outcome = next(outcomes)
            if isinstance(outcome, Placed):
                assert gate is not None
                gate.accepted(admission)
                verdicts.append(
                    messages.Verdict(
                        outcome=messages.OUTCOME_ACCEPTED, partition=outcome.partition, offset=outcome.offset
                    )
                )
            else:
                verdicts.append(_failed(outcome))
        elif isinstance(admission, Repeat):
            verdicts.append(_repeated(admission, verdicts))
        else:
            verdicts.append(
                messages.Verdict(
                    outcome=messages.OUTCOME_REFUSED,
                    reason=admission.reason.value,
                    field=admission.field,
                    message=admission.message,
                )
            )
    return verdicts


def _failed(error: TidemillError) -> messages.Verdict:
    if isinstance(error, Fatal):
        raise error
    refused = isinstance(error, Poison)
    assert isinstance(error, Poison | Retryable)
    return messages.Verdict(
        outcome=messages.OUTCOME_REFUSED if refused else messages.OUTCOME_RETRY,
        reason=error.reason.value,
        message=str(error) if refused else f"{error}; send the event again with the same id",
    )


def _repeated(repeat: Repeat, verdicts: Sequence[messages.Verdict]) -> messages.Verdict:
    if repeat.first is not None and verdicts[repeat.first].outcome != messages.OUTCOME_ACCEPTED:
        # What it repeats was not written either.
        return verdicts[repeat.first]
    return messages.Verdict(
        outcome=messages.OUTCOME_DUPLICATE,
        reason=Reason.DUPLICATE.value,
        message="this (source, id) was accepted before: nothing to do",
    )
