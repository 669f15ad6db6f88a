"""A stream of clicks and its records as a consumer hands them over."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill_contracts.cloudevents import Attributes, to_headers
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us

NOW_MS = 1_900_000_000_000


@dataclass(frozen=True)
class Row:
    """A Kafka record."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: int = NOW_MS


def stream(name: str = "clicks") -> definition.Stream:
    return definition.Stream(
        name=name,
        fields=[
            definition.Field(name="user", type=definition.FIELD_TYPE_STRING),
            definition.Field(name="amount", type=definition.FIELD_TYPE_FLOAT64, nullable=True),
            definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
        ],
        key_field="user",
        time_field="at",
        partitions=2,
        lateness_ms=60_000,
        dedup_window_ms=60_000,
        late_policy=definition.LATE_POLICY_DROP,
        max_event_bytes=1_000,
    )


def event(
    topic: str,
    offset: int,
    *,
    amount: float | None = 1.0,
    name: str | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Row:
    at_us = 1_000_000_000_000_000 + offset * 1_000_000
    body = json.dumps({"user": "u", "amount": amount, "at": format_us(at_us), **(fields or {})}).encode()
    attributes = Attributes(id=name or str(offset), source="s", type="tidemill.event.v1", time_us=at_us)
    return Row(topic, 0, offset, b"u", body, to_headers(attributes))
