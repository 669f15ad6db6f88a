"""A bound on what an HTTP request may carry."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tidemill_contracts.reasons import Reason

from tidemill_runtime.errors import Poison
from tidemill_runtime.problems import problem


class BoundedBodies:
    """Reads a request's body up to a bound before the application sees it; a larger one is refused as oversized."""

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
                refusal = Poison(Reason.OVERSIZED, f"the body is larger than {self._max_bytes} bytes")
                await problem(refusal)(scope, receive, send)
                return
        parts: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return parts.pop() if parts else await receive()

        await self._app(scope, replay, send)
