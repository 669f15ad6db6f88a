"""Event streams, declared as classes whose annotations are the fields."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tidemill.declarations.origin import Origin, here


@dataclass(frozen=True)
class StreamOptions:
    """The keywords of an event class; durations as text, such as "6h"."""

    stream: str | None
    key: str | None
    time: str | None
    lateness: str
    partitions: int
    late: str
    dedup: str
    max_future: str
    max_event_bytes: int
    unknown: tuple[str, ...]
    origin: Origin = field(default_factory=here, repr=False)


class Event:
    """One stream's events: subclass it, annotate the fields, and name stream, key and time.

    `key` is the field that keys the Kafka record, `time` the field that holds the event time. A class without `stream`
    holds fields that other event classes inherit. Types: str, int, float, bool, datetime, each `| None` if nullable.
    """

    __tidemill__: ClassVar[StreamOptions | None] = None

    def __init_subclass__(
        cls,
        *,
        stream: str | None = None,
        key: str | None = None,
        time: str | None = None,
        lateness: str = "1h",
        partitions: int = 4,
        late: str = "drop",
        dedup: str = "1h",
        max_future: str = "10m",
        max_event_bytes: int = 65_536,
        **unknown: Any,
    ) -> None:
        super().__init_subclass__()
        cls.__tidemill__ = StreamOptions(
            stream, key, time, lateness, partitions, late, dedup, max_future, max_event_bytes, tuple(unknown)
        )
