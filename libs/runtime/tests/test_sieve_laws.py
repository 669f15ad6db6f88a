"""Laws of dead letters that are sent again, on the real Kafka: final until then, and for those who refused them."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tidemill_contracts import dead_letters as dlq
from tidemill_contracts.reasons import Reason
from tidemill_runtime.batches import Assignment, Batch, Pipeline, Restored, Step, StreamOptions
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.errors import Poison
from tidemill_runtime.lifecycle import running
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.stream import StreamRunner

pytestmark = pytest.mark.servers

MakeTopic = Callable[..., Awaitable[None]]
ReadTopic = Callable[[str], Awaitable[list[Any]]]
PLACE = Partition("events.s", 0)


class Rereading(Pipeline[None, list[bytes]]):
    """Collects values from the log's beginning at every start; refuses `bad…` and `late…` while strict."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.applied: list[bytes] = []
        self.read: list[int] = []

    async def restore(self, assignment: Assignment) -> Restored[None]:
        return Restored(None, dict(assignment.begin))

    def step(self, state: None, batch: Batch, now_us: int) -> Step[None, list[bytes]]:
        self.read.append(batch.next_offsets[PLACE])

        def decoder(record: Any) -> bytes:
            if self.strict and record.value.startswith(b"bad"):
                raise Poison(Reason.UNDECODABLE, "it is bad")
            if self.strict and record.value.startswith(b"late"):
                raise Poison(Reason.TOO_LATE, "it is late")
            return bytes(record.value)

        decoded, refused = batch.decode(decoder)
        return Step(None, [value for values in decoded.values() for value in values], refused)

    async def apply(self, effects: list[bytes]) -> None:
        self.applied += effects


async def consume(kafka: KafkaSettings, group: str, end: int, *, strict: bool, letters_of: str = "") -> Rereading:
    """Read the whole topic under a group, and stop."""
    pipeline = Rereading(strict=strict)
    options = StreamOptions(group, fetch_wait_ms=20, letters_of=letters_of)
    async with Producer(kafka) as producer:
        letters = None if letters_of else DeadLetters(producer, kafka, group)
        runner = StreamRunner(pipeline, kafka, options, topics=["events.s"], dead_letters=letters)
        async with running(runner):
            await runner.reached({PLACE: end})
    return pipeline


@pytest.fixture
async def topics(make_topic: MakeTopic) -> None:
    await make_topic("events.s")
    await make_topic("events.s.dlq")


@pytest.mark.usefixtures("topics")
async def test_what_was_refused_once_stays_refused_when_the_log_is_read_again(
    kafka: KafkaSettings, read_topic: ReadTopic
) -> None:
    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("events.s", value, key=b"k") for value in (b"a", b"bad", b"b", b"bad too")])
    assert (await consume(kafka, "g", 4, strict=True)).applied == [b"a", b"b"]
    again = await consume(kafka, "g", 4, strict=False)
    assert (again.applied, again.read[-1]) == ([b"a", b"b"], 4)
    # Another group decides for itself; one that shares the letters does not.
    assert (await consume(kafka, "other", 4, strict=False)).applied == [b"a", b"bad", b"b", b"bad too"]
    assert (await consume(kafka, "twin", 4, strict=False, letters_of="g")).applied == [b"a", b"b"]
    assert len(await read_topic("events.s.dlq")) == 2


async def test_what_was_refused_stays_so_where_its_letter_has_no_value(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    limit = 8 * 1024 * 1024
    for topic in ("events.s", "events.s.dlq"):
        await make_topic(topic, **{"max.message.bytes": str(limit)})
    async with Producer(kafka, max_request_bytes=limit) as producer:
        # With a key that its letter keeps, and with one that it does not.
        for key in (b"k", b"k" * 1_000_000):
            await producer.send(Outgoing("events.s", b"bad" + b"x" * 5_000_000, key=key))
        await producer.send(Outgoing("events.s", b"a", key=b"k"))
    assert (await consume(kafka, "g", 3, strict=True)).applied == [b"a"]
    assert (await consume(kafka, "g", 3, strict=False)).applied == [b"a"]
    letters = await read_topic("events.s.dlq")
    assert [(letter.key, letter.value) for letter in letters] == [(b"k", None), (None, None)]


@pytest.mark.usefixtures("topics")
async def test_what_was_late_counts_where_it_lies_once_the_rules_allow_it(kafka: KafkaSettings) -> None:
    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("events.s", value, key=b"k") for value in (b"a", b"late", b"bad")])
    assert (await consume(kafka, "g", 3, strict=True)).applied == [b"a"]
    assert (await consume(kafka, "g", 3, strict=False)).applied == [b"a", b"late"]


@pytest.mark.usefixtures("topics")
async def test_a_topic_that_was_made_anew_owes_nothing_to_the_letters_of_the_old_one(
    kafka: KafkaSettings, read_topic: ReadTopic
) -> None:
    async with Producer(kafka) as producer:
        await producer.send(Outgoing("events.s", b"bad", key=b"k"))
        await consume(kafka, "g", 1, strict=True)
        (letter,) = await read_topic("events.s.dlq")
        # The same place as if it lay in another log: other bytes.
        await producer.send(Outgoing("events.s.dlq", b"bad, once", key=b"k", headers=list(letter.headers)))
    assert (await consume(kafka, "g", 1, strict=False)).applied == [b"bad"]


@pytest.mark.usefixtures("topics")
async def test_a_record_that_is_sent_again_is_for_those_who_refused_it_alone(
    kafka: KafkaSettings, read_topic: ReadTopic
) -> None:
    async with Producer(kafka) as producer:
        await producer.send(Outgoing("events.s", b"bad", key=b"k", headers=[("h", b"\xff")]))
        await consume(kafka, "g", 1, strict=True)
        (letter,) = await read_topic("events.s.dlq")
        headers = dlq.redriven_headers(
            letter.headers, place=("events.s", 0, 0), letter="events.s.dlq/0/0", groups=["g"], attempt=1
        )
        await producer.send(Outgoing("events.s", letter.value, key=letter.key, headers=headers))
    assert (await consume(kafka, "g", 2, strict=False)).applied == [b"bad"]
    # It took the original, and passes over the copy, up to the end of the log.
    other = await consume(kafka, "other", 2, strict=False)
    assert (other.applied, other.read[-1]) == ([b"bad"], 2)
    assert (await consume(kafka, "g", 2, strict=True)).applied == []
    (first, second) = await read_topic("events.s.dlq")
    assert (first.value, second.value) == (b"bad", b"bad")
    said = dict(second.headers)
    assert (said[dlq.ATTEMPT], said[dlq.OFFSET], said["h"]) == (b"2", b"1", b"\xff")
    assert (said["ce_source"], said["ce_id"]) == (b"kafka/events.s", b"events.s/0/0")
