"""The one way a service writes to Kafka: idempotent, acknowledged by all, bounded, aware of what it wrote."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch
from tidemill_contracts.kafka_refusals import refusal
from tidemill_contracts.reasons import Reason

from tidemill_runtime import metrics
from tidemill_runtime.errors import Fatal, Overloaded, Poison, Retryable, TidemillError
from tidemill_runtime.outgoing import Outgoing, Placed
from tidemill_runtime.packing import pack, packable, partition_of
from tidemill_runtime.positions import Partition
from tidemill_runtime.retries import delays
from tidemill_runtime.sequences import reuse_refused
from tidemill_runtime.settings import KafkaSettings

__all__ = ["Handed", "Outgoing", "Placed", "Producer", "translate"]

log = structlog.get_logger(__name__)

# After these the producer's sequence is broken: only a new producer, hence a new process, is right again.
_BROKEN = (
    kafka_errors.OutOfOrderSequenceNumber,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.ProducerFenced,
    kafka_errors.UnsupportedVersionError,
)
_FORBIDDEN = (kafka_errors.TopicAuthorizationFailedError, kafka_errors.ClusterAuthorizationFailedError)


class Acknowledgement(NamedTuple):
    """A record given to the client: what tells of its batch, and how far behind the batch's first record it lies."""

    future: asyncio.Future[Any]
    behind: int = 0


# What became of a record at the client: to be acknowledged, or why it was not taken.
Handed = Acknowledgement | TidemillError


def translate(error: Exception) -> TidemillError:
    """Return a Kafka client error as an instruction to the runtime."""
    if isinstance(error, TidemillError):
        return error
    if isinstance(error, kafka_errors.MessageSizeTooLargeError):
        fix = "send smaller records, or raise max_request_bytes and the topic's max.message.bytes"
        return Poison(Reason.OVERSIZED, str(error), fix=fix)
    if isinstance(error, _BROKEN + _FORBIDDEN):
        return Fatal(f"Kafka refuses this producer: {error!r}")
    return Retryable(f"Kafka did not acknowledge: {error!r}")


class Producer:
    """An aiokafka producer that connects in the background, so that a service opens while Kafka is away.

    `max_in_flight` bounds the records not yet acknowledged: one more raises `Overloaded`. `ack_timeout_s` bounds the
    wait for an acknowledgement; a record given up on may still arrive, so consumers must be idempotent by identity.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        max_in_flight: int = 100_000,
        ack_timeout_s: float = 30.0,
        max_request_bytes: int = 4 * 1024 * 1024,
        linger_ms: int = 0,
    ) -> None:
        self._kafka = kafka
        self._options: dict[str, Any] = {
            "enable_idempotence": True,
            "acks": "all",
            "linger_ms": linger_ms,
            "max_request_size": max_request_bytes,
            # The client's 16 KiB would cut a request's records into many round trips.
            "max_batch_size": min(256 * 1024, max_request_bytes),
            "metadata_max_age_ms": 30_000,
            "partitioner": partition_of,
        }
        self._max_in_flight = max_in_flight
        self._ack_timeout_s = ack_timeout_s
        self._in_flight = 0
        self._written: dict[Partition, int] = {}
        self._client: Any = None
        self._connected = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._fault: str | None = "Kafka: not connected yet"

    @property
    def written(self) -> dict[Partition, int]:
        """The end offsets of everything acknowledged since the start."""
        return dict(self._written)

    def fault(self) -> str | None:
        """Return what is wrong, for readiness."""
        return self._fault

    async def __aenter__(self) -> Self:
        self._connecting = asyncio.create_task(self._connect(), name="producer-connect")
        try:
            # A broker that is there answers in milliseconds: then nobody sees an unconnected producer.
            await asyncio.wait({self._connecting}, timeout=5)
            if self._connecting.done():
                await self._connecting
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        background = {task for task in (self._connecting, self._probing) if task is not None}
        for task in background:
            task.cancel()
        await asyncio.wait(background)
        if self._client is None:
            return
        # With Kafka away, stop() would wait for acknowledgements without end.
        stopping = asyncio.create_task(self._client.stop())
        done, _ = await asyncio.wait({stopping}, timeout=self._ack_timeout_s / 3)
        if not done:
            log.error("producer_abandoned", in_flight=self._in_flight)
            stopping.cancel()

    async def _connect(self) -> None:
        for delay_s in delays(0.2):
            client = AIOKafkaProducer(**self._kafka.client_kwargs(), **self._options)
            reuse_refused(client)
            try:
                await client.start()
            except (kafka_errors.KafkaError, OSError) as error:
                with suppress(kafka_errors.KafkaError):
                    await client.stop()
                self._fault = await refusal(self._kafka.client_kwargs()) or f"Kafka: {error!r}"
                log.warning("producer_waits_for_kafka", error=self._fault)
                await asyncio.sleep(delay_s)
                continue
            except asyncio.CancelledError:
                await client.stop()
                raise
            self._client, self._fault = client, None
            self._connected.set()
            return

    def _suspect(self, fault: str) -> None:
        self._fault = fault
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe(), name="producer-probe")

    async def _probe(self) -> None:
        """Clear the fault once Kafka answers: who is not ready gets no traffic, and no acknowledgement would ever."""
        await self._connected.wait()
        for delay_s in delays(0.2):
            try:
                await self._client.client.fetch_all_metadata()
            except (kafka_errors.KafkaError, OSError):
                await asyncio.sleep(delay_s)
            else:
                self._fault = None
                return

    async def send(self, record: Outgoing) -> Placed:
        """Write one record and return where it lies. Raises `Retryable`, `Overloaded`, `Poison` or `Fatal`."""
        return (await self.send_all([record]))[0]

    async def send_all(self, records: Sequence[Outgoing]) -> list[Placed]:
        """Write records in order, all at once in flight; raises the first failure after all have ended."""
        outcomes = await self.send_each(records)
        placed = [outcome for outcome in outcomes if isinstance(outcome, Placed)]
        for outcome in outcomes:
            if isinstance(outcome, TidemillError):
                raise outcome
        return placed

    async def send_each(self, records: Sequence[Outgoing]) -> list[Placed | TidemillError]:
        """Write records in order and return, for each, where it lies or why it was not acknowledged.

        Raises `Overloaded`, with nothing taken in, where they would pass the bound of records in flight.
        """
        if self._in_flight + len(records) > self._max_in_flight and self._in_flight:
            raise Overloaded(f"{self._in_flight} records wait for Kafka", retry_after_s=0.5)
        self._in_flight += len(records)
        try:
            handed: list[Handed | None] = [None] * len(records)
            try:
                async with asyncio.timeout(self._ack_timeout_s):
                    await self._connected.wait()
                    await self._hand_over(records, handed)
                    for one in handed:
                        # One acknowledgement ends a whole batch of them: waiting for the first is enough, where a
                        # callback on each would cost a turn of the loop per record.
                        if isinstance(one, Acknowledgement) and not one.future.done():
                            await asyncio.wait({one.future})
            except TimeoutError:
                self._suspect(f"Kafka: no acknowledgement for {self._ack_timeout_s:.0f} s")
            outcomes = [self._outcome(record, one) for record, one in zip(records, handed, strict=True)]
            for topic, count in Counter(placed.topic for placed in outcomes if isinstance(placed, Placed)).items():
                metrics.produced.labels(topic).inc(count)
            return outcomes
        finally:
            self._in_flight -= len(records)

    async def _hand_over(self, records: Sequence[Outgoing], handed: list[Handed | None]) -> None:
        """Give records to the client, in order by partition, and note in `handed` what became of each."""
        if packable(records, self._options["max_batch_size"]):
            await self._pack(records, handed)
            return
        for number, record in enumerate(records):
            if record.compress or record.key is record.value is None:
                # The client's `send` has no compression of one record, and refuses one without key and value.
                alone: list[Handed | None] = [None]
                await self._pack([record], alone)
                handed[number] = alone[0]
            else:
                handed[number] = await self._hand_over_one(record)

    def _new_batch(self, compress: bool) -> Callable[[], Any]:
        if not compress:
            create: Callable[[], Any] = self._client.create_batch
            return create
        return partial(BatchBuilder, self._options["max_batch_size"], DefaultRecordBatch.CODEC_GZIP)

    async def _pack(self, records: Sequence[Outgoing], handed: list[Handed | None]) -> None:
        try:
            partitions = {
                topic: sorted(await self._client.partitions_for(self._kafka.physical(topic)))
                for topic in {record.topic for record in records}
            }
        except kafka_errors.KafkaError as error:
            handed[:] = [translate(error)] * len(records)
            return
        for packed in pack(records, partitions, self._new_batch(records[0].compress)):
            future: asyncio.Future[Any] | TidemillError
            try:
                future = self._lacking(packed.topic, packed.partition)
                if await self._has(packed.topic, packed.partition):
                    future = await self._client.send_batch(
                        packed.builder, self._kafka.physical(packed.topic), partition=packed.partition
                    )
            except kafka_errors.KafkaError as error:
                future = translate(error)
            for behind, number in enumerate(packed.numbers):
                handed[number] = future if isinstance(future, TidemillError) else Acknowledgement(future, behind)

    async def _hand_over_one(self, record: Outgoing) -> Handed:
        try:
            if record.partition is not None and not await self._has(record.topic, record.partition):
                return self._lacking(record.topic, record.partition)
            future: asyncio.Future[Any] = await self._client.send(
                self._kafka.physical(record.topic),
                value=record.value,
                key=record.key,
                headers=record.headers or None,
                partition=record.partition,
                timestamp_ms=record.timestamp_ms,
            )
        except kafka_errors.KafkaError as error:
            return translate(error)
        return Acknowledgement(future)

    @staticmethod
    def _lacking(topic: str, partition: int) -> Retryable:
        return Retryable(f"Kafka: {topic} has no partition {partition}")

    async def _has(self, topic: str, partition: int) -> bool:
        """Say whether a topic has a partition; one that was added a moment ago is asked for."""
        physical = self._kafka.physical(topic)
        if partition in await self._client.partitions_for(physical):
            return True
        await self._client.client.force_metadata_update()
        return partition in await self._client.partitions_for(physical)

    def _outcome(self, record: Outgoing, handed: Handed | None) -> Placed | TidemillError:
        if isinstance(handed, TidemillError):
            failure: TidemillError = handed
        elif handed is None or not handed.future.done():
            failure = Retryable(f"Kafka did not acknowledge within {self._ack_timeout_s:.0f} s; it may still arrive")
        elif (error := handed.future.exception()) is not None:
            failure = translate(error) if isinstance(error, Exception) else Retryable(repr(error))
        else:
            return self._placed(record.topic, handed.future.result(), handed.behind)
        metrics.produce_failures.labels(record.topic).inc()
        return failure

    def _placed(self, topic: str, metadata: Any, behind: int) -> Placed:
        partition, offset = Partition(topic, metadata.partition), metadata.offset + behind
        self._written[partition] = max(self._written.get(partition, 0), offset + 1)
        self._fault = None
        return Placed(topic, metadata.partition, offset)
