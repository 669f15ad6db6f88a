"""Streaming requests of both doors: read ahead within bounds, published in order, a verdict for everything read.

    sender ──portions──▶ read ahead ──batches──▶ publisher ──verdicts──▶ sender
              held back ◀── bound on events and bytes ──▶ held back by Kafka

One batch of a request is under way at a time, holding whatever came meanwhile: a partition keeps the order of the
sender, and a busy sender gets large batches by itself.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import NamedTuple, Self

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_runtime.bodies import IdleError
from tidemill_runtime.errors import Overloaded, Poison, Retryable

from tidemill_ingestion import metrics
from tidemill_ingestion.adapters.publisher import Publisher
from tidemill_ingestion.http_events import Parsed
from tidemill_ingestion.settings import Settings

_OVERLOADED_S = 0.05
_CLOSE_S = 3.0


class Portion(NamedTuple):
    """Events of one stream as they came; `size` is the bytes of their data."""

    stream: str
    source: str
    events: Sequence[Parsed]
    size: int


class _Ahead:
    """What was read and not yet taken; one reader, one taker."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._portions: deque[Portion] = deque()
        self._events = 0
        self._bytes = 0
        self._moved = asyncio.Condition()
        self._ended = False
        self._error: Exception | None = None

    async def put(self, portion: Portion) -> None:
        """Add a portion once there is room; one alone always has it."""
        async with self._moved:
            await self._moved.wait_for(lambda: not self._portions or self._fits(portion))
            self._portions.append(portion)
            self._events += len(portion.events)
            self._bytes += portion.size
            self._moved.notify_all()

    async def end(self, error: Exception | None = None) -> None:
        """Say that nothing more comes, and why where that is an error."""
        async with self._moved:
            self._ended, self._error = True, error
            self._moved.notify_all()

    async def take(self) -> list[Portion]:
        """Return everything read so far; empty at the end. Raises what ended the reading, after the last portion."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._portions or self._ended)
            taken = list(self._portions)
            self._portions.clear()
            self._events = self._bytes = 0
            self._moved.notify_all()
        if not taken and self._error is not None:
            raise self._error
        return taken

    def _fits(self, portion: Portion) -> bool:
        return self._events + len(portion.events) <= self._max_events and self._bytes + portion.size <= self._max_bytes


class Flows:
    """Answers streaming requests; closing it ends them, after the verdicts of what they had sent."""

    def __init__(self, publisher: Publisher, settings: Settings) -> None:
        self._publisher = publisher
        self._settings = settings
        self._open = 0
        self._closing = False
        self._readers: set[asyncio.Task[None]] = set()
        self._none = asyncio.Event()
        self._none.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        for reader in self._readers:
            reader.cancel()
        with suppress(TimeoutError):
            # Who reads no verdicts is not waited for: the servers end what is left.
            async with asyncio.timeout(_CLOSE_S):
                await self._none.wait()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one streaming request's place. Raises `Overloaded` where all are taken."""
        if self._closing or self._open >= self._settings.max_streams:
            raise Overloaded(f"{self._open} streaming requests are being answered", retry_after_s=1.0)
        self._open += 1
        metrics.flows.inc()
        self._none.clear()
        try:
            yield
        finally:
            self._open -= 1
            metrics.flows.dec()
            if not self._open:
                self._none.set()

    async def verdicts(self, portions: AsyncIterator[Portion]) -> AsyncGenerator[list[messages.Verdict], None]:
        """Yield the verdicts of all events, in order.

        What ends the reading early (the sender's fault, its silence, the service's stop) is raised after the
        verdicts of everything that was read.
        """
        settings = self._settings
        # They are published together, as one request.
        ahead = _Ahead(min(settings.max_stream_events, settings.max_batch_events), settings.max_stream_bytes)
        reader = asyncio.create_task(self._read(portions, ahead), name="flow-reader")
        self._readers.add(reader)
        try:
            while taken := await ahead.take():
                yield await self._publish(taken)
        finally:
            self._readers.discard(reader)
            reader.cancel()
            await asyncio.wait({reader})

    async def _read(self, portions: AsyncIterator[Portion], ahead: _Ahead) -> None:
        failure: Exception | None = None
        try:
            while True:
                async with asyncio.timeout(self._settings.stream_idle_s):
                    portion = await anext(portions)
                await ahead.put(self._bounded(portion))
        except StopAsyncIteration:
            failure = None
        except TimeoutError:
            idle_s = self._settings.stream_idle_s
            failure = IdleError(f"nothing came for {idle_s:.0f} s: begin a new request")
        except asyncio.CancelledError:
            failure = Retryable("the service stops: send what has no verdict again, elsewhere or later")
        except Exception as error:
            # Raised where the verdicts are given: the sender gets those of what it sent before.
            failure = error
        await ahead.end(failure)

    def _bounded(self, portion: Portion) -> Portion:
        limit = self._settings.max_batch_events
        if len(portion.events) > limit:
            raise Poison(Reason.OVERSIZED, f"{len(portion.events):,} events at once, at most {limit:,}", field="events")
        return portion

    async def _publish(self, portions: Sequence[Portion]) -> list[messages.Verdict]:
        """Publish what came, waiting for room rather than sending it back."""
        size = sum(portion.size for portion in portions)
        groups = _joined(portions)
        while True:
            await self._publisher.room.free(size)
            try:
                return await self._publisher.publish_parsed(groups)
            except Overloaded:
                await asyncio.sleep(_OVERLOADED_S)


def _joined(portions: Sequence[Portion]) -> list[tuple[str, str, list[Parsed]]]:
    """Return the events with neighbours of one stream and source together."""
    groups: list[tuple[str, str, list[Parsed]]] = []
    for stream, source, events, _ in portions:
        if groups and groups[-1][:2] == (stream, source):
            groups[-1][2].extend(events)
        else:
            groups.append((stream, source, list(events)))
    return groups
