"""Ingestion's settings: environment prefix `TIDEMILL_INGESTION_`."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict
from tidemill_contracts.topics import dead_letter_topic, events_topic
from tidemill_runtime.settings import MEBIBYTE, ServiceSettings

from tidemill_ingestion.brake import Limit
from tidemill_ingestion.quality import DEFAULT_MAX_FIELDS

Role = Literal["door", "bridge"]

_SECOND_US = 1_000_000


class Settings(ServiceSettings):
    """What ingestion needs to know, read once at start."""

    model_config = SettingsConfigDict(env_prefix="TIDEMILL_INGESTION_")

    roles: Annotated[tuple[Role, ...], NoDecode] = Field(
        default=("door",),
        description="comma separated: door takes events by gRPC and HTTP, bridge copies producers' own topics",
    )
    bridges: Annotated[Mapping[str, str], NoDecode] = Field(
        default={},
        description="topics of the bridge role and the streams that they feed: `raw.orders=orders,raw.rides=rides`; "
        "names on the broker, without the prefix",
    )
    bridge_batch_records: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1_000, description="records that a bridge validates and writes at once"
    )
    max_in_flight_bytes: Annotated[int, Field(gt=0)] = Field(
        default=64 * MEBIBYTE,
        description="HTTP bodies being read and event data not yet acknowledged; more is refused as overloaded",
    )
    max_batch_events: Annotated[int, Field(gt=0)] = Field(
        default=20_000, description="events of one request, and of one message of a streaming request"
    )
    max_http_bytes: Annotated[int, Field(gt=0)] = Field(default=16 * MEBIBYTE, description="body of one HTTP request")
    max_streams: Annotated[int, Field(gt=0)] = Field(
        default=64, description="streaming requests at once (PublishStream and NDJSON); more are refused as overloaded"
    )
    max_stream_events: Annotated[int, Field(gt=0)] = Field(
        default=2_000, description="events of one streaming request without a verdict; then its sender is held back"
    )
    max_stream_bytes: Annotated[int, Field(gt=0)] = Field(
        default=4 * MEBIBYTE, description="data of one streaming request without a verdict, likewise"
    )
    max_line_bytes: Annotated[int, Field(gt=0)] = Field(
        default=MEBIBYTE, description="one line of NDJSON; a longer one is refused as oversized without being kept"
    )
    stream_idle_s: Annotated[float, Field(gt=0)] = Field(
        default=300.0,
        description="a streaming request on which nothing moves for so long ends, and a body of which nothing comes",
    )
    publish_timeout_s: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0, description="longest wait for Kafka's acknowledgement; then the verdict is: send it again"
    )
    remembered_ids: Annotated[int, Field(ge=0)] = Field(
        default=50_000, description="(source, id) remembered per stream to recognise repeats"
    )
    bad_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="share of refused records beyond which a stream pauses; 1: never"
    )
    bad_shares: Annotated[Mapping[str, float], NoDecode] = Field(
        default={}, description="the same for single streams: `orders=0.05,rides=1`"
    )
    bad_window_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="time over which the share of refused records is taken"
    )
    bad_min_events: Annotated[int, Field(ge=1)] = Field(
        default=1_000, description="records in that time below which no stream pauses; after a pause a tenth of them"
    )
    pause_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="after which a paused stream resumes by itself"
    )
    quality_hop_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="wall-clock time over which a stream's events are profiled"
    )
    quality_fields: Annotated[int, Field(ge=0)] = Field(
        default=DEFAULT_MAX_FIELDS, description="fields of a stream that are profiled, the first ones declared"
    )

    @field_validator("roles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("bridges", "bad_shares", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if wrong := ["".join(pair) for pair in pairs if not all(map(str.strip, pair))]:
            raise ValueError(f"{wrong[0].strip()!r}: write name=value, comma separated")
        found = {name.strip(): given.strip() for name, _, given in pairs}
        if len(found) < len(pairs):
            raise ValueError(f"name each once: {value!r}")
        return found

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if "bridge" in self.roles and not self.bridges:
            raise ValueError("the role bridge needs bridges: which topic feeds which stream")
        if circles := [topic for topic in self.bridges if self._feeds_itself(topic)]:
            # Every record would be copied again and again: what came before is told for the stream's window alone.
            raise ValueError(f"bridges: {circles[0]!r} would feed itself; name a topic that producers write themselves")
        if wrong := [name for name, share in self.bad_shares.items() if not 0 <= share <= 1]:
            raise ValueError(f"bad_shares: the share of {wrong[0]!r} lies between 0 and 1")
        return self

    def _feeds_itself(self, topic: str) -> bool:
        """Return whether what a bridge writes of a topic, events and dead letters, comes back to it."""
        reached, ahead = set[str](), [topic]
        while ahead and topic not in reached:
            if stream := self.bridges.get(ahead.pop()):
                events = events_topic(stream)
                written = {self.kafka.physical(name) for name in (events, dead_letter_topic(events))} - reached
                reached |= written
                ahead += written
        return topic in reached

    def limit_of(self, stream: str) -> Limit:
        """Return how bad a stream may be before it pauses."""
        return Limit(
            share=self.bad_shares.get(stream, self.bad_share),
            window_us=int(self.bad_window_s * _SECOND_US),
            min_events=self.bad_min_events,
            pause_us=int(self.pause_s * _SECOND_US),
        )
