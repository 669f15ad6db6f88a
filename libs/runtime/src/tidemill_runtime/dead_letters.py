"""Dead letters: the original record, bytes untouched, with headers that say who refused it and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time_ns

from tidemill_contracts.dead_letters import (
    ATTEMPT,
    FIELD,
    FIRST_FAILED_AT,
    GROUP,
    MESSAGE,
    OFFSET,
    PARTITION,
    REASON,
    TOPIC,
)
from tidemill_contracts.instants import format_us
from tidemill_contracts.topics import dead_letter_topic

from tidemill_runtime import metrics
from tidemill_runtime.batches import Record, Refused
from tidemill_runtime.errors import Fatal
from tidemill_runtime.outgoing import Outgoing
from tidemill_runtime.producer import Producer
from tidemill_runtime.settings import KafkaSettings

_MAX_MESSAGE_CHARS = 1_000


@dataclass(frozen=True, slots=True)
class DeadLetterLimit:
    """How much may be refused before it is our fault and not the input's.

    `share` of the last `window` records (or more, after the first `window`), or `run` records refused one after
    another, stop the service rather than drain its topic into the dead letters.
    """

    share: float = 0.5
    window: int = 10_000
    run: int = 1_000


@dataclass(frozen=True, slots=True)
class Tally:
    """What was seen and refused in the current window, and the refusals in a row."""

    seen: int = 0
    refused: int = 0
    run: int = 0

    def add(self, count: int, refused: int, window: int) -> "Tally":
        """Return the tally after a batch; the past is halved once a window is full."""
        # Only batches refused whole go on with a row; where a record passed, the row starts anew.
        run = self.run + refused if refused == count else refused
        seen, total = self.seen + count, self.refused + refused
        return Tally(seen // 2, total // 2, run) if seen >= 2 * window else Tally(seen, total, run)

    def exceeds(self, limit: DeadLetterLimit) -> bool:
        """Whether the service should stop."""
        return self.run >= limit.run or (self.seen >= limit.window and self.refused > limit.share * self.seen)


def letter_headers(record: Record, refused: Refused, *, topic: str, group: str, now_us: int) -> list[tuple[str, bytes]]:
    """Return the original headers, untouched and first, followed by ours; a redriven record counts up."""
    earlier: Mapping[str, bytes] = dict(record.headers)
    before = earlier.get(ATTEMPT, b"0")
    attempt = int(before) + 1 if before.isdigit() else 1
    first = earlier.get(FIRST_FAILED_AT, format_us(now_us).encode())
    ours = {
        TOPIC: topic.encode(),
        PARTITION: str(record.partition).encode(),
        OFFSET: str(record.offset).encode(),
        MESSAGE: str(refused.poison)[:_MAX_MESSAGE_CHARS].encode(),
        REASON: refused.poison.reason.encode(),
        FIELD: refused.poison.field.encode(),
        GROUP: group.encode(),
        ATTEMPT: str(attempt).encode(),
        FIRST_FAILED_AT: first,
    }
    return [*record.headers, *ours.items()]


class DeadLetters:
    """Writes refused records and returns once Kafka has acknowledged them; given to the stream runner."""

    def __init__(
        self, producer: Producer, kafka: KafkaSettings, group: str, *, limit: DeadLetterLimit | None = None
    ) -> None:
        self._producer = producer
        self._kafka = kafka
        self._group = group
        self._limit = limit or DeadLetterLimit()
        self._tally = Tally()

    async def send(self, refused: Sequence[Refused], count: int) -> None:
        """Write the refused records of a batch of `count`, none of them too.

        Raises `Fatal` past the limit, `Retryable` from Kafka.
        """
        tally = self._tally.add(count, len(refused), self._limit.window)
        if not refused:
            self._tally = tally
            return
        if tally.exceeds(self._limit):
            raise Fatal(
                f"{tally.refused} of the last {tally.seen} records refused, {tally.run} in a row: "
                f"the last for {refused[-1].poison.reason} ({refused[-1].poison})"
            )
        letters = [self._letter(one) for one in refused]
        await self._producer.send_all(letters)
        self._tally = tally
        for one, letter in zip(refused, letters, strict=True):
            metrics.dead_letters.labels(self._group, letter.topic, one.poison.reason).inc()

    def _letter(self, refused: Refused) -> Outgoing:
        record = refused.record
        topic = self._kafka.logical(record.topic)
        now_us = time_ns() // 1000
        return Outgoing(
            topic=dead_letter_topic(topic),
            value=record.value,
            key=record.key,
            headers=letter_headers(record, refused, topic=topic, group=self._group, now_us=now_us),
        )
