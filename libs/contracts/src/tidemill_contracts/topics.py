"""The topic catalogue: `proto/topics/*.yaml` as values."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import yaml

DEFAULT_PREFIX = "tidemill."
STREAM = "<stream>"
# Messages that hold a whole record of another topic: why it was refused, what it came to.
_AROUND_ANOTHER = ("original", "tidemill.monitoring.v1.OutcomeRecord")


@dataclass(frozen=True, slots=True)
class Topic:
    """One entry of the catalogue; `name` is logical (no prefix), `<stream>` stands for a user's stream."""

    name: str
    owner: str
    description: str
    # Fully qualified protobuf message, "cloudevents.json" or "original".
    message: str
    # "json", "protobuf" or "bytes".
    encoding: str
    key: str
    partitions: int
    # "compact" or "delete".
    cleanup: str
    # -1 keeps for ever.
    retention_hours: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    example: str

    @property
    def per_stream(self) -> bool:
        return STREAM in self.name

    def config(self) -> dict[str, str]:
        """Return the topic's Kafka configuration."""
        retention_ms = -1 if self.retention_hours < 0 else self.retention_hours * 3_600_000
        config = {"cleanup.policy": self.cleanup, "retention.ms": str(retention_ms)}
        if self.message in _AROUND_ANOTHER:
            # The largest record that its source took must fit here with what is said of it.
            config["max.message.bytes"] = str(2 * 1024 * 1024)
        return config


def _topic(raw: dict[str, Any]) -> Topic:
    return Topic(**{**raw, "producers": tuple(raw["producers"]), "consumers": tuple(raw["consumers"])})


def load_topics() -> tuple[Topic, ...]:
    """Return the catalogue, sorted by name."""
    folder = resources.files("tidemill_contracts") / "topics_data"
    entries = [yaml.safe_load(item.read_text()) for item in folder.iterdir() if item.name.endswith(".yaml")]
    return tuple(sorted((_topic(entry) for entry in entries), key=lambda topic: topic.name))


def fixed_topics() -> tuple[Topic, ...]:
    """Return the topics that exist once, not once per stream."""
    return tuple(topic for topic in load_topics() if not topic.per_stream)


def events_topic(stream: str) -> str:
    """Return the logical name of a user stream's topic."""
    return f"events.{stream}"


def dead_letter_topic(source: str) -> str:
    """Return where refused records of a (logical) topic go."""
    return f"{source}.dlq" if source.startswith("events.") else "ingestion.dead-letters.v1"


def stream_topics(streams: Iterable[tuple[str, int]]) -> tuple[Topic, ...]:
    """Return the concrete topics of user streams, given as (name, partitions)."""
    templates = [topic for topic in load_topics() if topic.per_stream]
    return tuple(
        replace(
            template,
            name=template.name.replace(STREAM, stream),
            partitions=1 if template.name.endswith(".dlq") else partitions,
        )
        for stream, partitions in streams
        for template in templates
    )
