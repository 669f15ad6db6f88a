"""Records on their way to Kafka, as plain values: pure modules make them, the producer sends them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to write; `topic` is the logical name; without a partition the key decides."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None
    timestamp_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an acknowledged record lies."""

    topic: str
    partition: int
    offset: int
