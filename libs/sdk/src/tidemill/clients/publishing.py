"""Events in over one long call: a verdict for each in order, and only so many at a time without one.

Where the call breaks (the service restarts, the network goes), what has no verdict yet is sent again over a new one,
under the same ids: what had been written after all is then a `duplicate`, or a second record that every reader of the
stream recognises. So an event without an id gets one here. What ingestion asks to be sent again (it is overloaded, the
stream is paused) is sent again after a growing pause, behind what was sent meanwhile: only there the order changes.
"""

import asyncio
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub

from tidemill.clients.calls import AsyncConnection, CallError, Connection, translated

MAX_IN_FLIGHT = 4_000
MAX_IN_FLIGHT_BYTES = 8 * 1024 * 1024
MESSAGE_EVENTS = 250
# Fruitless attempts in a row, each after twice the pause of the one before: 25 s together.
ATTEMPTS = 8
FIRST_PAUSE_S = 0.1
# Ingestion waits ten seconds for Kafka (`publish_timeout_s`) and then says `retry`; who is silent for longer is away.
SILENCE_S = 60.0

# Told the number of an event, counted from 0 in the order in which they were given, and its verdict.
OnVerdict = Callable[[int, ingestion.Verdict], None]


@dataclass(frozen=True, slots=True)
class Numbered:
    """An event with its place among all that were given."""

    number: int
    event: ingestion.Event


@dataclass
class Flight:
    """What was sent and has no verdict yet, and how patient to be; pure.

    `tell`: called with every final verdict: accepted, duplicate or refused.
    """

    stream: str
    source: str
    tell: OnVerdict
    max_events: int = MAX_IN_FLIGHT
    max_bytes: int = MAX_IN_FLIGHT_BYTES
    silence_s: float = SILENCE_S
    waiting: deque[Numbered] = field(default_factory=deque)
    _bytes: int = 0
    _given: int = 0
    _fruitless: int = 0

    @property
    def full(self) -> bool:
        """Whether verdicts must come before more is sent."""
        return len(self.waiting) > self.max_events or self._bytes > self.max_bytes

    def number(self, events: Sequence[ingestion.Event]) -> list[Numbered]:
        """Return events with their numbers, each with an id."""
        found = []
        for event in events:
            if not event.id:
                event.id = uuid.uuid4().hex
            found.append(Numbered(self._given, event))
            self._given += 1
        return found

    def requests(self, events: Sequence[Numbered]) -> Iterator[ingestion.PublishStreamRequest]:
        """Yield the messages that carry some events, which wait for their verdicts from now on."""
        for start in range(0, len(events), MESSAGE_EVENTS):
            part = events[start : start + MESSAGE_EVENTS]
            self.waiting.extend(part)
            self._bytes += sum(len(one.event.data) for one in part)
            yield ingestion.PublishStreamRequest(
                stream=self.stream, source=self.source, events=[one.event for one in part]
            )

    def take(self, response: ingestion.PublishStreamResponse) -> list[Numbered]:
        """Tell final verdicts, and return the events that are to be sent again. Raises `CallError` after many times."""
        again: list[Numbered] = []
        why = ingestion.Verdict()
        for verdict in response.verdicts:
            one = self.waiting.popleft()
            self._bytes -= len(one.event.data)
            if verdict.outcome == ingestion.OUTCOME_RETRY:
                again.append(one)
                why = verdict
            else:
                self._fruitless = 0
                self.tell(one.number, verdict)
        if again:
            self.failed(CallError("ingestion", grpc.StatusCode.RESOURCE_EXHAUSTED, why.message, reason=why.reason))
        return again

    def broken(self) -> list[Numbered]:
        """Return what a call that broke left without a verdict."""
        left = list(self.waiting)
        self.waiting.clear()
        self._bytes = 0
        return left

    def failed(self, error: CallError) -> None:
        """Count an attempt that came to nothing. Raises the error where it is for good, or there were too many."""
        self._fruitless += 1
        if not error.repeatable or self._fruitless >= ATTEMPTS:
            raise error

    @property
    def pause_s(self) -> float:
        """How long to wait before the next attempt."""
        return FIRST_PAUSE_S * 2.0**self._fruitless / 2


class EventStream:
    """Publishes events of one stream; use it in a `with`, whose end waits for all verdicts.

    Every call may raise `CallError`: what has no verdict then may be written or not, and is sent again with its ids.
    """

    def __init__(self, connection: Connection, flight: Flight) -> None:
        self._connection = connection
        self._stub = IngestionServiceStub(connection.channel)
        self._flight = flight
        self._requests: queue.SimpleQueue[ingestion.PublishStreamRequest | None] = queue.SimpleQueue()
        self._call: Any = None

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, kind: object, *_exception: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._close()

    def send(self, events: Sequence[ingestion.Event]) -> None:
        """Send events; waits for verdicts while too many have none."""
        self._write(self._flight.number(events))
        while self._flight.full:
            self._read()

    def flush(self) -> None:
        """Return once every event has its verdict."""
        while self._flight.waiting:
            self._read()

    def _write(self, events: Sequence[Numbered]) -> None:
        if self._call is None:
            self._requests = queue.SimpleQueue()
            self._call = self._stub.PublishStream(iter(self._requests.get, None))
        for request in self._flight.requests(events):
            self._requests.put(request)

    def _read(self) -> None:
        silent = threading.Event()
        watch = threading.Timer(self._flight.silence_s, _end_silent, (self._call, silent))
        watch.daemon = True
        watch.start()
        try:
            again = self._flight.take(next(self._call))
        except StopIteration:
            self._flight.failed(_ended(self._connection.address))
        except grpc.RpcError as error:
            if silent.is_set():
                raise _silent(self._connection.address, self._flight.silence_s) from error
            self._flight.failed(translated(self._connection.service, self._connection.address, error))
        else:
            if again:
                time.sleep(self._flight.pause_s)
                self._write(again)
            return
        finally:
            watch.cancel()
        self._close()
        time.sleep(self._flight.pause_s)
        self._write(self._flight.broken())

    def _close(self) -> None:
        if self._call is not None:
            self._requests.put(None)
            self._call.cancel()
            self._call = None


class AsyncEventStream:
    """The same for asyncio, in an `async with`."""

    def __init__(self, connection: AsyncConnection, flight: Flight) -> None:
        self._connection = connection
        self._stub = IngestionServiceStub(connection.channel)
        self._flight = flight
        self._requests: asyncio.Queue[ingestion.PublishStreamRequest | None] = asyncio.Queue()
        self._call: Any = None

    async def __aenter__(self) -> "AsyncEventStream":
        return self

    async def __aexit__(self, kind: object, *_exception: object) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            self._close()

    async def send(self, events: Sequence[ingestion.Event]) -> None:
        """Send events; waits for verdicts while too many have none."""
        self._write(self._flight.number(events))
        while self._flight.full:
            await self._read()

    async def flush(self) -> None:
        """Return once every event has its verdict."""
        while self._flight.waiting:
            await self._read()

    def _write(self, events: Sequence[Numbered]) -> None:
        if self._call is None:
            self._requests = asyncio.Queue()
            self._call = self._stub.PublishStream(_queued(self._requests))
        for request in self._flight.requests(events):
            self._requests.put_nowait(request)

    async def _read(self) -> None:
        try:
            response = await asyncio.wait_for(self._call.read(), self._flight.silence_s)
        except TimeoutError as error:
            raise _silent(self._connection.address, self._flight.silence_s) from error
        except grpc.aio.AioRpcError as error:
            self._flight.failed(translated(self._connection.service, self._connection.address, error))
        else:
            if response is not grpc.aio.EOF:
                if again := self._flight.take(response):
                    await asyncio.sleep(self._flight.pause_s)
                    self._write(again)
                return
            self._flight.failed(_ended(self._connection.address))
        self._close()
        await asyncio.sleep(self._flight.pause_s)
        self._write(self._flight.broken())

    def _close(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None


async def _queued(
    requests: "asyncio.Queue[ingestion.PublishStreamRequest | None]",
) -> AsyncIterator[ingestion.PublishStreamRequest]:
    while (request := await requests.get()) is not None:
        yield request


def _end_silent(call: Any, silent: threading.Event) -> None:
    silent.set()
    call.cancel()


def _silent(address: str, silence_s: float) -> CallError:
    """Return what it means that a call went on without a verdict."""
    message = f"{address} took events and gave no verdict for {silence_s:g} s"
    return CallError("ingestion", grpc.StatusCode.DEADLINE_EXCEEDED, message)


def _ended(address: str) -> CallError:
    """Return what it means that a call ended before its verdicts."""
    return CallError("ingestion", grpc.StatusCode.UNAVAILABLE, f"{address} ended the call before its verdicts")
