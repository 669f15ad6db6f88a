"""Reads dead letters with their fates, and records what is done about them."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.cloudevents import Attributes, to_headers
from tidemill_contracts.ingestion.v1 import dead_letters_pb2 as messages
from tidemill_contracts.instants import from_timestamp, to_timestamp

from tidemill.clients.letters import ACTIONS_TOPIC, Fates, Letter, Newest, Place, letter_of
from tidemill.clients.topics import KafkaTarget, TopicError, kafka_fault, list_topics, read_topic

OTHERS_TOPIC = "ingestion.dead-letters.v1"
# How much one run holds in memory; what is beyond waits for the next.
MAX_LETTERS = 50_000
MAX_BYTES = 256 * 1024 * 1024
# Shorter than a claim holds, so that nothing is sent after it is void.
SEND_TIMEOUT_MS = 20_000
# A letter's value may be as large where it went compressed.
MAX_RECORD_BYTES = 5 * 1024 * 1024


@dataclass(frozen=True)
class Found:
    """Letters that a selection holds; `more` says that not all of them fit."""

    letters: list[Letter]
    more: bool


async def letter_topics(target: KafkaTarget, stream: str | None) -> list[str]:
    """Return the dead-letter topics of a stream, or all. Raises `TopicError` where the stream has none."""
    topics = [name for name in await list_topics(target) if name.endswith(".dlq") or name == OTHERS_TOPIC]
    if stream is None:
        return topics
    wanted = [name for name in topics if name == f"events.{stream}.dlq"]
    if not wanted:
        raise TopicError(f"stream {stream!r} has no dead-letter topic; is it registered?", reached=True)
    return wanted


async def read_fates(target: KafkaTarget) -> Fates:
    """Return what became of every letter so far."""
    fates = Fates()
    if ACTIONS_TOPIC in await list_topics(target):
        async with aclosing(read_topic(target, ACTIONS_TOPIC, last=None, follow=False)) as records:
            async for record in records:
                action = from_json(record.value or b"", messages.DeadLetterAction())
                fates.fold(action, record.timestamp * 1000)
    return fates


async def read_letters(target: KafkaTarget, topics: Sequence[str], wanted: Callable[[Letter], bool]) -> Found:
    """Return the letters that are wanted, oldest of each topic first."""
    found: list[Letter] = []
    size = 0
    for topic in topics:
        async with aclosing(read_topic(target, topic, last=None, follow=False)) as records:
            async for record in records:
                letter = letter_of(topic, record)
                if not wanted(letter):
                    continue
                found.append(letter)
                size += letter.size
                if len(found) >= MAX_LETTERS or size >= MAX_BYTES:
                    return Found(found, more=True)
    return Found(found, more=False)


async def newest_letters(
    target: KafkaTarget, topics: Sequence[str], wanted: Callable[[Letter], bool] | None, *, last: int
) -> list[Letter]:
    """Return the newest `last` of the letters that are wanted (None: of all) of each topic, oldest first.

    What is wanted may lie anywhere, so a topic is then read whole; held of it are `last` letters, and fewer where they
    are larger than the topic's share of `MAX_BYTES`.
    """
    found: list[Letter] = []
    for topic in topics:
        newest = Newest(last, MAX_BYTES // len(topics))
        reading = read_topic(target, topic, last=last if wanted is None else None, follow=False)
        async with aclosing(reading) as records:
            async for record in records:
                letter = letter_of(topic, record)
                if wanted is None or wanted(letter):
                    newest.add(letter)
        found += newest.letters
    return found


@dataclass(frozen=True)
class Deed:
    """Who does something about letters, and why."""

    actor: str
    reason: str
    run_id: str

    def action(self, kind: str, topic: str, places: Sequence[Place], said: str) -> messages.DeadLetterAction:
        """Return the record of it."""
        count = f"{len(places)} dead {'letter' if len(places) == 1 else 'letters'} of {topic.removesuffix('.dlq')}"
        why = f": {self.reason}" if self.reason else ""
        return messages.DeadLetterAction(
            action=kind,
            topic=topic,
            letters=[messages.LetterFate(partition=partition, offset=offset) for _, partition, offset in places],
            actor=self.actor,
            reason=self.reason,
            at=to_timestamp(time.time_ns() // 1000),
            run_id=self.run_id,
            summary=f"{count} {said} by {self.actor}{why}",
        )


class ActionLog:
    """Writes records of deeds and returns once Kafka has acknowledged them."""

    def __init__(self, target: KafkaTarget, producer: AIOKafkaProducer) -> None:
        self._topic = target.prefix + ACTIONS_TOPIC
        self._producer = producer

    async def write(self, action: messages.DeadLetterAction) -> None:
        """Write one record."""
        first = action.letters[0]
        attributes = Attributes(
            id=f"{action.run_id}/{action.action}/{first.partition}/{first.offset}",
            source="tidemill/sdk",
            type="tidemill.dead-letter-action.v1",
            time_us=from_timestamp(action.at),
            subject=action.topic,
        )
        headers = to_headers(attributes)
        await self._producer.send_and_wait(self._topic, to_json(action), key=action.topic.encode(), headers=headers)


@asynccontextmanager
async def producing(target: KafkaTarget) -> AsyncIterator[AIOKafkaProducer]:
    """Lend a producer whose acknowledged records are durable. Raises `TopicError`."""
    producer = AIOKafkaProducer(
        enable_idempotence=True,
        acks="all",
        request_timeout_ms=SEND_TIMEOUT_MS,
        max_request_size=MAX_RECORD_BYTES,
        linger_ms=0,
        **target.client_kwargs(),
    )
    try:
        await producer.start()
        yield producer
    except KafkaError as error:
        raise await kafka_fault(target, error) from error
    finally:
        await producer.stop()
