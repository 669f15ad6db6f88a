"""Dead letters on the wire: the names of their headers, and what a record that is sent again carries; pure.

Header names of the original's place follow Kafka Connect's error reporter, so that its tools read them.
"""

from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[str, bytes]]

TOPIC = "__connect.errors.topic"
PARTITION = "__connect.errors.partition"
OFFSET = "__connect.errors.offset"
MESSAGE = "__connect.errors.exception.message"
REASON = "x-dlq-reason"
FIELD = "x-dlq-field"
GROUP = "x-dlq-consumer-group"
ATTEMPT = "x-dlq-attempt"
FIRST_FAILED_AT = "x-dlq-first-failed-at"
# The last headers of a letter without its value, which did not fit: the value's length, and its SHA-256 in hexadecimal
# digits. Where the record's key and headers are large too, it has none of them. Only the record's own topic has it all.
VALUE_BYTES = "x-dlq-value-bytes"
VALUE_SHA256 = "x-dlq-value-sha256"
# Of a record that was sent again: the dead letter that it was, and the consumer groups (with commas) it is meant for.
LETTER = "x-dlq-letter"
REDRIVEN_FOR = "x-dlq-redriven-for"
# With the name of a producer's own topic, the group that copies it into a stream.
BRIDGE_GROUP = "ingestion-bridge."

# What a topic of letters takes: `max.message.bytes` of the catalogue.
MAX_LETTER_BYTES = 2 * 1024 * 1024

OURS = frozenset(
    {
        *(TOPIC, PARTITION, OFFSET, MESSAGE, REASON, FIELD, GROUP, ATTEMPT, FIRST_FAILED_AT),
        *(VALUE_BYTES, VALUE_SHA256, LETTER, REDRIVEN_FOR),
    }
)


def addressed_to(headers: Headers, group: str) -> bool:
    """Say whether a record is meant for a group: every record is, but one that was sent again for others.

    Only the last header is looked at, which is where a redrive puts it: every consumer asks this of every record.

    >>> addressed_to([("ce_id", b"1")], "join"), addressed_to([(REDRIVEN_FOR, b"online,join")], "join")
    (True, True)
    >>> addressed_to([(REDRIVEN_FOR, b"online")], "join")
    False
    """
    if not headers or headers[-1][0] != REDRIVEN_FOR:
        return True
    return group.encode() in (headers[-1][1] or b"").split(b",")


def left_out(headers: Headers) -> bytes | None:
    """Return the SHA-256 of the value that a dead letter was written without; None where it has the record's own.

    >>> left_out([("h", b"1"), (VALUE_BYTES, b"3000000"), (VALUE_SHA256, b"9f86d0")])
    b'9f86d0'
    >>> left_out([(VALUE_SHA256, b"9f86d0"), (FIRST_FAILED_AT, b"2026-11-21T10:00:00Z")]) is None
    True
    """
    return headers[-1][1] if headers and headers[-1][0] == VALUE_SHA256 else None


def original_headers(headers: Headers) -> list[tuple[str, bytes]]:
    """Return the headers that the original record had."""
    return [(name, value) for name, value in headers if name not in OURS]


def identity_of(headers: Headers, place: tuple[str, int, int]) -> tuple[str, str]:
    """Return (source, id) of a refused record; where it has none, one that its place gives it for good.

    `place`: logical topic, partition and offset at which it was refused first.
    """
    found = dict(headers)
    source, event_id = found.get("ce_source"), found.get("ce_id")
    if source and event_id:
        return source.decode("utf-8", "replace"), event_id.decode("utf-8", "replace")
    topic, partition, offset = place
    return f"kafka/{topic}", f"{topic}/{partition}/{offset}"


def redriven_headers(
    headers: Headers, *, place: tuple[str, int, int], letter: str, groups: Iterable[str], attempt: int
) -> list[tuple[str, bytes]]:
    """Return the headers with which a dead letter is sent again: the original ones first, and its identity made plain.

    `letter`: where the dead letter lies; `groups`: who refused it, everybody else passes over it.
    """
    kept = original_headers(headers)
    found = dict(kept)
    if not (found.get("ce_source") and found.get("ce_id")):
        source, event_id = identity_of(kept, place)
        kept += [("ce_source", source.encode()), ("ce_id", event_id.encode())]
    first = dict(headers).get(FIRST_FAILED_AT)
    kept.append((ATTEMPT, str(attempt).encode()))
    if first is not None:
        kept.append((FIRST_FAILED_AT, first))
    return [*kept, (LETTER, letter.encode()), (REDRIVEN_FOR, ",".join(sorted(groups)).encode())]
