"""Creates Kafka topics: the catalogue's at start, a stream's, and its partitions, before its definition is known."""

import asyncio
from collections.abc import Sequence

import structlog
from aiokafka.errors import InvalidPartitionsError, KafkaError
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.kafka_admin import add_partitions, create_topics
from tidemill_contracts.reasons import Reason
from tidemill_contracts.topics import Topic, fixed_topics, stream_topics
from tidemill_runtime.consumer import sleep_unless
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.health import Health
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.retries import delays
from tidemill_runtime.settings import KafkaSettings

log = structlog.get_logger(__name__)


class Topics(Component):
    """Makes sure that topics exist before anybody is told to use them; a `Component` for `running`."""

    def __init__(self, kafka: KafkaSettings, replicas: int, health: Health) -> None:
        self._kafka = kafka
        self._replicas = replicas
        self._stopping = asyncio.Event()
        self._fault: str | None = "the catalogue's topics are not created yet"
        health.require_ready("topics", lambda: self._fault)

    async def run(self) -> None:
        """Create what is missing of the topics that exist once; while Kafka is away, reads are answered already."""
        for delay_s in delays(0.5):
            if self._stopping.is_set():
                return
            try:
                await self._create(fixed_topics())
            except Retryable as error:
                self._fault = str(error)
                log.warning("topics_wait_for_kafka", error=str(error))
                await sleep_unless(self._stopping, delay_s)
            else:
                self._fault = None
                return

    def stop(self) -> None:
        """Try no more."""
        self._stopping.set()

    async def ensure_streams(self, streams: Sequence[definition.Stream]) -> None:
        """Create what is missing of the streams' topics, and partitions of theirs.

        Raises `Retryable`, and `Poison` where a topic has more partitions, as one may that a retired stream left.
        """
        if streams:
            topics = stream_topics((stream.name, stream.partitions) for stream in streams)
            await self._create(topics)
            await self._grow(topics)

    async def _create(self, topics: Sequence[Topic]) -> None:
        try:
            await create_topics(self._kafka.client_kwargs(), topics, self._kafka.topic_prefix, self._replicas)
        except (KafkaError, OSError) as error:
            raise Retryable(f"Kafka does not create topics: {error!r}", retry_after_s=1.0) from error

    async def _grow(self, topics: Sequence[Topic]) -> None:
        try:
            grown = await add_partitions(self._kafka.client_kwargs(), topics, self._kafka.topic_prefix)
        except InvalidPartitionsError as error:
            fix = "declare as many as it has, or delete the topic first"
            raise Poison(Reason.BREAKING_CHANGE, error.args[0], field="partitions", fix=fix) from error
        except (KafkaError, OSError) as error:
            raise Retryable(f"Kafka does not add partitions: {error!r}", retry_after_s=1.0) from error
        if grown:
            log.info("partitions_added", topics=grown)
