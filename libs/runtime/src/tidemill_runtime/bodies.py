"""What HTTP requests may carry: so many bytes each and all together, in time, and text in UTF-8."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tidemill_contracts.reasons import Reason

from tidemill_runtime.errors import Overloaded, Poison, Retryable
from tidemill_runtime.problems import problem
from tidemill_runtime.settings import MEBIBYTE

_FORM = b"application/x-www-form-urlencoded"


class IdleError(Retryable):
    """Nothing moved for too long."""

    reason = Reason.DEADLINE_EXCEEDED


class Room:
    """The bytes that requests hold, all together bounded; one request alone has room whatever its size."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0
        self._freed = asyncio.Event()

    @contextmanager
    def hold(self) -> Iterator["Hold"]:
        """Lend what one request holds; nothing at first."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.held_bytes -= hold.size_bytes
            self._freed.set()

    def has(self, size_bytes: int, own_bytes: int = 0) -> bool:
        """Return whether a request that holds `own_bytes` may hold so many more."""
        return not size_bytes or self.held_bytes == own_bytes or self.held_bytes + size_bytes <= self._max_bytes

    async def free(self, size_bytes: int) -> None:
        """Return once there is room for so many bytes."""
        while not self.has(size_bytes):
            self._freed.clear()
            await self._freed.wait()


class Hold:
    """What one request holds of a room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Hold more. Raises `Overloaded` where others leave no room for it."""
        if not self._room.has(size_bytes, self.size_bytes):
            raise Overloaded(f"requests hold {self._room.held_bytes:,} bytes here", retry_after_s=0.5)
        self.size_bytes += size_bytes
        self._room.held_bytes += size_bytes


class BoundedBodies:
    """Reads a request's body up to a bound before the application sees it.

    A larger one is refused as oversized, and one that is not UTF-8 by that name: JSON is (RFC 8259, section 8.1), while
    Python's decoder would guess, and take UTF-16 for right. With `untyped` a body that is called a form, as `curl -d`
    does, or nothing, is JSON too: for reads alone, since pages of other sites can have a browser send such.

    All bodies together are at most `max_held_bytes` until they are answered; what goes beyond is refused as overloaded.
    A body of which nothing comes for `idle_s` is given up.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        *,
        untyped: bool = False,
        max_held_bytes: int = 64 * MEBIBYTE,
        idle_s: float = 60.0,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._untyped = untyped
        self._room = Room(max_held_bytes)
        self._idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._room.hold() as hold:
            try:
                body = await read_body(receive, hold, max_bytes=self._max_bytes, idle_s=self._idle_s)
                _check_text(body)
            except (Poison, Retryable) as error:
                await problem(error)(scope, receive, send)
                return
            except ClientDisconnect:
                return
            parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay() -> Message:
                return parts.pop() if parts else await receive()

            typed = {**scope, "headers": _as_json(scope["headers"])} if self._untyped else scope
            await self._app(typed, replay, send)


async def read_body(receive: Receive, hold: Hold, *, max_bytes: int, idle_s: float) -> bytes:
    """Return a request's body, held as it comes.

    Raises `Poison` where it has more than `max_bytes`, `Overloaded` where there is no room for the rest of it,
    `IdleError` where nothing of it comes for `idle_s`, and `ClientDisconnect` where it breaks off.
    """
    body, more = bytearray(), True
    while more:
        try:
            async with asyncio.timeout(idle_s):
                message = await receive()
        except TimeoutError as error:
            raise IdleError(f"nothing of the body came for {idle_s:g} s: send the request again") from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        if len(body) + len(piece) > max_bytes:
            raise Poison(Reason.OVERSIZED, f"the body has more than {max_bytes:,} bytes", fix="send less at once")
        hold.add(len(piece))
        body += piece
        more = message.get("more_body", False)
    return bytes(body)


def _as_json(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers, with JSON as the content type where none is named, or that of a form."""
    named = dict(headers).get(b"content-type", _FORM)
    others = [(name, value) for name, value in headers if name != b"content-type"]
    return [*others, (b"content-type", b"application/json" if named.startswith(_FORM) else named)]


def _check_text(body: bytes) -> None:
    """Raise `Poison` where a body is not UTF-8. UTF-16 of plain text is: then each letter is beside a NUL."""
    fix = "send JSON as UTF-8"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Poison(Reason.BAD_UTF8, f"the body: {error}", fix=fix) from error
    if 0 in body:
        raise Poison(Reason.BAD_UTF8, "the body holds NUL bytes, as UTF-16 does", fix=fix)
