"""What an HTTP request may carry: so many bytes, and text in UTF-8."""

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tidemill_contracts.reasons import Reason

from tidemill_runtime.errors import Poison
from tidemill_runtime.problems import problem

_FORM = b"application/x-www-form-urlencoded"


class BoundedBodies:
    """Reads a request's body up to a bound before the application sees it.

    A larger one is refused as oversized, and one that is not UTF-8 by that name: JSON is (RFC 8259, section 8.1), while
    Python's decoder would guess, and take UTF-16 for right. With `untyped` a body that is called a form, as `curl -d`
    does, or nothing, is JSON too: for reads alone, since pages of other sites can have a browser send such.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, *, untyped: bool = False) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._untyped = untyped

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

        typed = {**scope, "headers": _as_json(scope["headers"])} if self._untyped else scope
        await self._app(typed, replay, send)


def _as_json(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers, with JSON as the content type where none is named, or that of a form."""
    named = dict(headers).get(b"content-type", _FORM)
    others = [(name, value) for name, value in headers if name != b"content-type"]
    return [*others, (b"content-type", b"application/json" if named.startswith(_FORM) else named)]


def _no_text(body: bytearray) -> Poison | None:
    """Return why a body is refused that is not UTF-8. UTF-16 of plain text is: then each letter is beside a NUL."""
    fix = "send JSON as UTF-8"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return Poison(Reason.BAD_UTF8, f"the body: {error}", fix=fix)
    return Poison(Reason.BAD_UTF8, "the body holds NUL bytes, as UTF-16 does", fix=fix) if 0 in body else None
