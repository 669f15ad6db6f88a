"""What an HTTP request may carry: so many bytes, and text in UTF-8."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tidemill_contracts.reasons import Reason

from tidemill_runtime.errors import Poison
from tidemill_runtime.problems import problem


class BoundedBodies:
    """Reads a request's body up to a bound before the application sees it.

    A larger one is refused as oversized, and one that is not UTF-8 by that name: JSON is (RFC 8259, section 8.1), while
    Python's decoder would guess, and take UTF-16 for right.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                oversized = Poison(Reason.OVERSIZED, f"the body is larger than {self._max_bytes} bytes")
                await problem(oversized)(scope, receive, send)
                return
        if (refusal := _no_text(body)) is not None:
            await problem(refusal)(scope, receive, send)
            return
        parts: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return parts.pop() if parts else await receive()

        await self._app(scope, replay, send)


def _no_text(body: bytearray) -> Poison | None:
    """Return why a body is refused that is not UTF-8. UTF-16 of plain text is: then each letter is beside a NUL."""
    fix = "send JSON as UTF-8"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return Poison(Reason.BAD_UTF8, f"the body: {error}", fix=fix)
    return Poison(Reason.BAD_UTF8, "the body holds NUL bytes, as UTF-16 does", fix=fix) if 0 in body else None
