"""Lines of a body in pieces, in bounded memory."""

import json

from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_ingestion.ndjson import Line, Lines, event_of
from tidemill_ingestion.verdicts import Refusal

MAX = 8


def cut(pieces: list[bytes], *, ended: bool = True) -> list[Line]:
    lines = Lines(MAX)
    found = [line for piece in pieces for line in lines.feed(piece)]
    return found + (list(lines.end()) if ended else [])


def plain(body: bytes) -> list[Line]:
    """The same of a whole body."""
    *whole, rest = body.split(b"\n")
    numbered = list(enumerate([*whole, rest] if rest else whole, 1))
    stripped = [(number, line.removesuffix(b"\r")) for number, line in numbered]
    return [Line(number, line if len(line) <= MAX else None) for number, line in stripped if line.strip()]


@given(st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"\r", b" ", b"cccccccc", b"d" * 20]), max_size=30))
def test_lines_are_the_same_however_the_body_is_cut(parts: list[bytes]) -> None:
    body = b"".join(parts)
    # A line of blanks alone says nothing, however long: whether it was too long to keep may be known or not.
    expected = plain(body)
    assert [line for line in cut(parts) if line in expected] == expected
    assert cut(parts) == cut([body]) == cut([body[n : n + 1] for n in range(len(body))])


def test_a_body_that_broke_off_leaves_its_unfinished_line_unread() -> None:
    assert cut([b"one\ntw"], ended=False) == [Line(1, b"one")]
    assert cut([b"one\ntw"]) == [Line(1, b"one"), Line(2, b"tw")]


def test_a_line_without_end_takes_no_memory() -> None:
    lines = Lines(MAX)
    for _ in range(1_000):
        assert list(lines.feed(b"x" * 1_000)) == []
        assert len(lines._rest) <= MAX + 1
    assert list(lines.feed(b"\nok\n")) == [Line(1, None), Line(2, b"ok")]


def test_a_line_is_data_or_an_envelope_as_the_content_type_says() -> None:
    envelope = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {"a": 1}}
    line = Line(1, json.dumps(envelope).encode())
    data = event_of(line, MAX, envelope=False)
    assert isinstance(data, messages.Event)
    assert (data.id, data.data) == ("", line.content)
    event = event_of(line, MAX, envelope=True)
    assert isinstance(event, messages.Event)
    assert (event.id, event.source, event.data) == ("1", "s", b'{"a":1}')
    refused = event_of(Line(3, None), MAX, envelope=False)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.OVERSIZED
