"""Lines of an NDJSON body that comes in pieces, in bounded memory; pure."""

from collections.abc import Iterator
from typing import NamedTuple

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason

from tidemill_ingestion.http_events import Parsed, structured
from tidemill_ingestion.verdicts import Refusal

# One event per line, being its data; or one CloudEvents envelope per line.
NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
CLOUDEVENTS_NDJSON = "application/cloudevents+ndjson"


class Line(NamedTuple):
    """One line that is not blank; `number` counts from 1, blank ones too; `content` is None of one too long to keep."""

    number: int
    content: bytes | None


class Lines:
    """Cuts pieces of a body into lines, keeping at most `max_bytes` of an unfinished one.

    >>> lines = Lines(10)
    >>> [list(lines.feed(piece)) for piece in (b"a\\n\\nb", b"c\\r\\n", b"d")], list(lines.end())
    ([[Line(number=1, content=b'a')], [Line(number=3, content=b'bc')], []], [Line(number=4, content=b'd')])
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._too_long = False
        self._number = 0

    def feed(self, piece: bytes) -> Iterator[Line]:
        """Yield the lines that end in this piece."""
        begin = 0
        while (end := piece.find(b"\n", begin)) >= 0:
            self._keep(piece[begin:end])
            yield from self._line()
            begin = end + 1
        self._keep(piece[begin:])

    def end(self) -> Iterator[Line]:
        """Yield the last line, where the body ended in order without a line break."""
        if self._rest or self._too_long:
            yield from self._line()

    def _keep(self, content: bytes) -> None:
        # The carriage return that may end a line is not the line's.
        if len(self._rest) + len(content) > self._max_bytes + 1:
            self._too_long = True
            self._rest.clear()
        if not self._too_long:
            self._rest += content

    def _line(self) -> Iterator[Line]:
        self._number += 1
        content, too_long = bytes(self._rest.removesuffix(b"\r")), self._too_long
        self._rest.clear()
        self._too_long = False
        if too_long or len(content) > self._max_bytes:
            yield Line(self._number, None)
        elif content.strip():
            yield Line(self._number, content)


def event_of(line: Line, max_bytes: int, *, envelope: bool) -> Parsed:
    """Return the event of a line: its data, or what its CloudEvents envelope says."""
    if line.content is None:
        return Refusal(Reason.OVERSIZED, "", f"the line has more than {max_bytes:,} bytes: send a smaller event")
    return structured(line.content) if envelope else messages.Event(data=line.content)
