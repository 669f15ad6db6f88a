"""A line to a Redis node: one connection on which trips follow each other without waiting for answers.

The library's client takes a connection out of a pool for every trip, and its answers through three buffers and a task
that wakes for every piece; of a read of features that was more than all else. Here the answers are parsed where they
arrive, and the caller wakes when all of them are there.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisDownError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisSlowError

_BUFFER_BYTES = 256 * 1024
_MORE = object()


class _Trip:
    """Answers that a caller waits for."""

    __slots__ = ("answers", "count", "done")

    def __init__(self, count: int, done: "asyncio.Future[list[Any]]") -> None:
        self.count = count
        self.answers: list[Any] = []
        self.done = done


class Line(asyncio.BufferedProtocol):
    """Takes over a connection that the library has opened; whoever lent it closes it.

    `lost`: why nothing comes through any more.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.lost: Exception | None = None
        self._timeout_s: float = connection.socket_timeout
        self._trips: deque[_Trip] = deque()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._reader: Any = hiredis.Reader(
            protocolError=InvalidResponse, replyError=connection._parser.parse_error, notEnoughData=_MORE
        )
        self._loop = asyncio.get_running_loop()
        self._heard_s = 0.0
        self._watch: asyncio.TimerHandle | None = None
        # The library gives nobody its transport.
        self._transport: Any = connection._writer.transport
        # It waits for this one when it closes the connection.
        self._library: asyncio.BaseProtocol = self._transport.get_protocol()
        self._transport.set_protocol(self)

    async def ask(self, commands: Sequence[bytes]) -> list[Any]:
        """Send commands; return what they are answered, errors among it. Raises the library's errors of an outage.

        They go out one behind the other, with nobody else's between them.
        """
        if self.lost is not None:
            raise self.lost
        trip = _Trip(len(commands), self._loop.create_future())
        if not self._trips:
            self._heard_s = self._loop.time()
        self._trips.append(trip)
        self._transport.write(b"".join(commands))
        if self._watch is None:
            self._look_in(self._timeout_s)
        return await trip.done

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where the transport writes what arrives."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take in what arrived."""
        self._heard_s = self._loop.time()
        reader, trips = self._reader, self._trips
        reader.feed(self._buffer, 0, nbytes)
        try:
            while (answer := reader.gets()) is not _MORE:
                trip = trips[0]
                trip.answers.append(answer)
                if len(trip.answers) == trip.count:
                    trips.popleft()
                    if not trip.done.done():  # its caller gave up
                        trip.done.set_result(trip.answers)
        except (InvalidResponse, IndexError) as error:
            self._lose(RedisDownError(f"no answer of Redis: {error!r}"))

    def eof_received(self) -> None:
        """Let the transport close itself."""

    def connection_lost(self, error: Exception | None) -> None:
        """Refuse those that wait."""
        self._lose(RedisDownError(f"Redis closed the connection: {error}" if error else "Redis closed the connection"))
        self._library.connection_lost(error)

    def pause_writing(self) -> None:
        """Go on: a caller sends no more than one trip before it waits, and both callers and keys are bounded."""

    def resume_writing(self) -> None:
        """Go on."""

    def _look_in(self, wait_s: float) -> None:
        self._watch = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        """Give up a connection on which nothing came for too long while somebody waits."""
        self._watch = None
        if not self._trips:
            return
        left_s = self._heard_s + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._look_in(left_s)
        else:
            self._lose(RedisSlowError(f"Redis did not answer for {self._timeout_s:g} s"))

    def _lose(self, error: Exception) -> None:
        if self.lost is None:
            self.lost = error
            self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._trips:
            done = self._trips.popleft().done
            if not done.done():
                done.set_exception(error)
