"""Writes what was admitted, in one flush per request, and turns Kafka's answers into verdicts."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.instants import format_us
from tidemill_contracts.reasons import Reason
from tidemill_runtime.bodies import Room
from tidemill_runtime.errors import Fatal, Poison, Retryable, TidemillError
from tidemill_runtime.metrics import OTHER
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Placed, Producer
from tidemill_runtime.progress import to_wire

from tidemill_ingestion import metrics
from tidemill_ingestion.admission import Admission, Admitted, Gate, Held, Repeat
from tidemill_ingestion.brake import Paused
from tidemill_ingestion.checking import check_events
from tidemill_ingestion.gates import Gates
from tidemill_ingestion.http_events import Parsed
from tidemill_ingestion.recent import Request
from tidemill_ingestion.reporting import resume_command
from tidemill_ingestion.settings import Settings
from tidemill_ingestion.verdicts import Refusal

# Of what operators say; it goes into messages and logs.
MAX_REASON_CHARS = 2_000
_RETRY_S = 1.0
OUTCOME_NAMES = {
    messages.OUTCOME_ACCEPTED: "accepted",
    messages.OUTCOME_DUPLICATE: "duplicate",
    messages.OUTCOME_REFUSED: "refused",
    messages.OUTCOME_RETRY: "retry",
}


class StreamPausedError(Retryable):
    """A stream takes nothing in, because too many of its events were refused."""

    reason = Reason.PAUSED


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
        # Of HTTP bodies that are being read, and of events until Kafka has acknowledged them.
        self.room = Room(settings.max_in_flight_bytes)
        metrics.in_flight.set_function(lambda: self.room.held_bytes)
        self._under_way: set[asyncio.Future[None]] = set()

    async def publish(
        self, batches: Sequence[messages.StreamEvents], watermark: messages.Watermark | None = None
    ) -> messages.PublishBatchResponse:
        """Write the events, then the watermark, and return a verdict per event and the positions written.

        Raises `Poison` where the request as a whole is wrong, `Overloaded` where too much is in flight: nothing was
        written then.
        """
        now_us = self._clock()
        self._check(batches, watermark, now_us)
        with self._holding(sum(len(event.data) for batch in batches for event in batch.events)):
            admitted = self._admit(batches, now_us)
            records = [one.outgoing() for _, found in admitted for one in found if isinstance(one, Admitted)]
            if watermark is not None:
                marks = self._gates.watermarks(watermark.streams, watermark.time_us)
                records += [Outgoing(topic, b"", None, headers, number) for topic, number, headers in marks]
            outcomes = await self._producer.send_each(records)
        response = messages.PublishBatchResponse(written=to_wire(_ends(outcomes)))
        rest = iter(outcomes)
        given: defaultdict[str, list[messages.Verdict]] = defaultdict(list)
        for batch, (gate, found) in zip(batches, admitted, strict=True):
            verdicts = _verdicts(gate, found, rest, now_us, given[batch.stream])
            response.verdicts.extend(verdicts)
            self._count(gate, verdicts, response)
        for outcome in rest:
            if not isinstance(outcome, Placed):
                # Without its watermark the batch's clock would stand still unseen.
                raise Retryable(f"the watermark was not acknowledged: {outcome}; send it again")
        return response

    async def publish_parsed(self, groups: Sequence[tuple[str, str, Sequence[Parsed]]]) -> list[messages.Verdict]:
        """Publish (stream, source, events) and return a verdict per event, in order; the unreadable are refused."""
        batches = [
            messages.StreamEvents(
                stream=stream, source=source, events=[one for one in events if isinstance(one, messages.Event)]
            )
            for stream, source, events in groups
        ]
        published = iter((await self.publish(batches)).verdicts)
        verdicts: list[messages.Verdict] = []
        for stream, _, events in groups:
            refusals = [one for one in events if isinstance(one, Refusal)]
            if refusals:
                self._count_unread(stream, refusals)
            verdicts += [_refused(one) if isinstance(one, Refusal) else next(published) for one in events]
        return verdicts

    def pause_of(self, stream: str) -> Paused | None:
        """Return the pause that a stream is in."""
        found = self._gates.paused([stream], self._clock())
        return None if found is None else found[1]

    def state(self, stream: str) -> messages.StreamState:
        """Return whether a stream takes events now. Raises `Poison(UNKNOWN_STREAM)`."""
        gate, now_us = self._gate(stream), self._clock()
        pause = gate.paused(now_us)
        events, refused = gate.brake.window(now_us)
        state = messages.StreamState(stream=stream, paused=pause is not None, events=events, refused=refused)
        if pause is not None:
            state.pause.CopyFrom(messages.Pause(**pause._asdict(), share=pause.share))
        return state

    def resume(self, stream: str, actor: str, reason: str) -> messages.StreamState:
        """End a stream's pause at once and return its state. Raises `Poison(UNKNOWN_STREAM)`, or for a long reason."""
        if len(reason) > MAX_REASON_CHARS:
            raise Poison(Reason.OVERSIZED, f"reason is longer than {MAX_REASON_CHARS} characters", field="reason")
        self._gate(stream).resume(self._clock(), actor, reason)
        return self.state(stream)

    def _gate(self, stream: str) -> Gate:
        gate = self._gates.find(stream)
        if isinstance(gate, Refusal):
            raise Poison(gate.reason, gate.message, field=gate.field)
        return gate

    def retry_after_s(self, stream: str) -> float:
        """Return when a stream that does not take events now is worth asking again."""
        pause = self.pause_of(stream)
        return _RETRY_S if pause is None else max(_RETRY_S, (pause.until_us - self._clock()) / 1_000_000)

    def _count_unread(self, stream: str, refusals: Sequence[Refusal]) -> None:
        found = self._gates.find(stream)
        gate = found if isinstance(found, Gate) else None
        for refusal in refusals:
            metrics.events.labels(_label(gate), OUTCOME_NAMES[messages.OUTCOME_REFUSED], refusal.reason).inc()
        if gate is not None:
            gate.judged(0, refusals, self._clock())

    def check_events(self, request: messages.CheckEventsRequest) -> messages.CheckEventsResponse:
        """Say what would become of events, and write nothing. Raises `Poison` where the request itself is wrong."""
        self._check([messages.StreamEvents(stream=request.stream, events=request.events)], None, self._clock())
        gate = self._gates.find(request.stream)
        if isinstance(gate, Refusal):
            raise Poison(gate.reason, gate.message, field=gate.field)
        ignore = request.ignore_unknown_fields
        found = check_events(gate.stream, request.events, self._clock(), ignore_unknown_fields=ignore)
        return messages.CheckEventsResponse(verdicts=found)

    async def settled(self) -> None:
        """Return once Kafka has answered every request that is under way now; later ones are not waited for."""
        if self._under_way:
            await asyncio.wait(self._under_way)

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
            if (found := self._gates.paused(watermark.streams, now_us)) is not None:
                # A clock that passed over the events held back would make them late.
                raise StreamPausedError(paused_message(*found), retry_after_s=self.retry_after_s(found[0]))

    @contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        """Hold a request's bytes and its place among those under way. Raises `Overloaded`."""
        with self.room.hold() as hold:
            hold.add(size)
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._under_way.add(ended)
            try:
                yield
            finally:
                self._under_way.remove(ended)
                ended.set_result(None)

    def _admit(
        self, batches: Sequence[messages.StreamEvents], now_us: int
    ) -> list[tuple[Gate | None, list[Admission]]]:
        admitted: list[tuple[Gate | None, list[Admission]]] = []
        requests: dict[str, Request] = {}
        for batch in batches:
            gate = self._gates.find(batch.stream)
            if isinstance(gate, Refusal):
                admitted.append((None, [gate] * len(batch.events)))
                continue
            request = requests.setdefault(batch.stream, gate.request())
            admitted.append((gate, gate.admit(batch.events, batch.source, now_us, self._new_id, request)))
        return admitted

    def _count(
        self, gate: Gate | None, verdicts: Sequence[messages.Verdict], response: messages.PublishBatchResponse
    ) -> None:
        for (outcome, reason), count in Counter((one.outcome, one.reason) for one in verdicts).items():
            metrics.events.labels(_label(gate), OUTCOME_NAMES[outcome], reason).inc(count)
            if outcome == messages.OUTCOME_ACCEPTED:
                response.accepted += count
            elif outcome == messages.OUTCOME_DUPLICATE:
                response.duplicates += count
            elif outcome == messages.OUTCOME_REFUSED:
                response.refused += count


def _label(gate: Gate | None) -> str:
    """Return a stream's label; a name that nobody registered is its caller's, and has none of its own."""
    return OTHER if gate is None else metrics.stream_label(gate.stream.name)


def _ends(outcomes: Sequence[Placed | TidemillError]) -> dict[Partition, int]:
    ends: dict[Partition, int] = {}
    for placed in outcomes:
        if isinstance(placed, Placed):
            partition = Partition(placed.topic, placed.partition)
            ends[partition] = max(ends.get(partition, 0), placed.offset + 1)
    return ends


def _verdicts(
    gate: Gate | None,
    admissions: Sequence[Admission],
    outcomes: Iterator[Placed | TidemillError],
    now_us: int,
    given: list[messages.Verdict],
) -> list[messages.Verdict]:
    """Return a verdict per admission, taking one outcome for each that was written.

    `given` holds the verdicts on the request's events of this stream; those returned are added to it.
    """
    begin = len(given)
    for admission in admissions:
        if isinstance(admission, Admitted):
            outcome = next(outcomes)
            if isinstance(outcome, Placed):
                assert gate is not None
                gate.accepted(admission, outcome.partition, now_us)
                given.append(
                    messages.Verdict(
                        outcome=messages.OUTCOME_ACCEPTED, partition=outcome.partition, offset=outcome.offset
                    )
                )
            else:
                given.append(_failed(outcome))
        elif isinstance(admission, Repeat):
            given.append(_repeated(admission, given))
        elif isinstance(admission, Held):
            assert gate is not None
            message = paused_message(gate.stream.name, admission.pause)
            given.append(messages.Verdict(outcome=messages.OUTCOME_RETRY, reason=Reason.PAUSED.value, message=message))
        else:
            given.append(_refused(admission))
    return given[begin:]


def _refused(refusal: Refusal) -> messages.Verdict:
    return messages.Verdict(
        outcome=messages.OUTCOME_REFUSED,
        reason=refusal.reason.value,
        field=refusal.field,
        message=refusal.message,
    )


def paused_message(stream: str, pause: Paused) -> str:
    """Return what a stream's pause means to who sends to it."""
    return (
        f"stream {stream!r} is paused until {format_us(pause.until_us)}: {pause.share:.0%} of {pause.events:,} events "
        f"were refused, mostly {pause.mostly}; send the event again with the same id then, "
        f"or once somebody ends the pause ({resume_command(stream)})"
    )


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


def _repeated(repeat: Repeat, given: Sequence[messages.Verdict]) -> messages.Verdict:
    if repeat.first is not None and given[repeat.first].outcome != messages.OUTCOME_ACCEPTED:
        # What it repeats was not written either.
        return given[repeat.first]
    return messages.Verdict(
        outcome=messages.OUTCOME_DUPLICATE,
        reason=Reason.DUPLICATE.value,
        message="this (source, id) was accepted before: nothing to do",
    )


def as_dict(verdict: messages.Verdict) -> dict[str, Any]:
    """Return a verdict as JSON shows it."""
    shown: dict[str, Any] = {"outcome": OUTCOME_NAMES[verdict.outcome]}
    if verdict.HasField("offset"):
        return shown | {"partition": verdict.partition, "offset": verdict.offset}
    texts = {"reason": verdict.reason, "field": verdict.field, "message": verdict.message}
    return shown | {name: text for name, text in texts.items() if text}
