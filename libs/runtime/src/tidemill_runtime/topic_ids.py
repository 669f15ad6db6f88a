"""The id that Kafka gave each topic when it was created: a re-created topic of the same name has another."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from tidemill_runtime.errors import Retryable
from tidemill_runtime.settings import KafkaSettings

_METADATA = 3
_VERSION = 12


class _Uuid:
    """Sixteen bytes, which aiokafka has no type for."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: Any) -> bytes:
        return bytes(data.read(16))

    @classmethod
    def repr(cls, value: bytes) -> str:
        return value.hex()


_TEXT = CompactString("utf-8")


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = _METADATA
    API_VERSION = _VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields)),
        ),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = _METADATA
    API_VERSION = _VERSION
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataStruct]):  # type: ignore[misc]
    API_KEY = _METADATA

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        return request_struct_class([(bytes(16), name, {}) for name in self._names], False, False, {})


class Topic(NamedTuple):
    """What Kafka says of a topic: its id, and how many partitions it has."""

    id: bytes
    partitions: int


class TopicLook:
    """Asks Kafka about topics over a connection of its own, kept open."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._client: Any = None

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """Return what there is to know of each topic, by logical name.

        Raises `Retryable` while Kafka does not know one or is away.
        """
        wanted = list(names)
        found = await self.known(wanted)
        if missing := sorted(set(wanted) - found.keys()):
            raise Retryable(f"Kafka does not know the topic {', '.join(missing)}")
        return found

    async def known(self, names: Iterable[str]) -> dict[str, Topic]:
        """Return what there is to know of the topics that Kafka knows. Raises `Retryable` while it is away."""
        wanted = list(map(self._kafka.physical, names))
        if not wanted:
            return {}
        try:
            if self._client is None:
                self._client = AIOKafkaClient(**self._kafka.client_kwargs())
                await self._client.bootstrap()
            response = await self._client.send(self._client.get_random_node(), _MetadataRequest(wanted))
        except BaseException as error:
            await self.close()
            if isinstance(error, KafkaError | OSError):
                raise Retryable(f"Kafka: {error!r}") from error
            raise
        found = {}
        for error_code, name, topic_id, _, partitions, *_ in response.topics:
            if error_code == UnknownTopicOrPartitionError.errno:
                continue
            if error_code:
                raise Retryable(f"Kafka: topic {name}: {for_code(error_code)!r}")
            found[self._kafka.logical(name)] = Topic(topic_id, len(partitions))
        return found

    async def close(self) -> None:
        """Close the connection; the next question opens another."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
