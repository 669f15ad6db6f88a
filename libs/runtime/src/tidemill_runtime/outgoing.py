"""Records on their way to Kafka, as plain values: pure modules make them, the producer sends them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to write; `topic` is the logical name; without a partition the key decides.

    `compress`: it goes alone, in gzip; only what is left of it counts against the topic's `max.message.bytes`, and the
    producer's own bound does not hold. Compressing holds up the loop, by up to a second for 4 MiB.
    """

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None
    timestamp_ms: int | None = None
    compress: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an acknowledged record lies."""

    topic: str
    partition: int
    offset: int
