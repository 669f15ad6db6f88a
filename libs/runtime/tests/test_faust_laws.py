"""Laws of the embedded Faust app, on the real Kafka."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from tidemill_contracts.reasons import Reason
from tidemill_runtime.batches import Record
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.lifecycle import EXIT_FATAL, running
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.topic_deletion import delete_topics

faust_app = pytest.importorskip("tidemill_runtime.faust_app", reason="the extra `faust` is not installed")
pytestmark = [
    pytest.mark.servers,
    # Faust's own coroutines are left unawaited when its app stops.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

MakeTopic = Callable[..., Awaitable[None]]
ReadTopic = Callable[[str], Awaitable[list[Any]]]
Committed = Callable[..., Awaitable[int]]


class Deciding:
    """Records decisions; raises as told, by offset."""

    def __init__(self, errors: dict[int, list[Exception]] | None = None) -> None:
        self.decided: list[int] = []
        self.errors = errors or {}
        self.ticks = 0

    async def decide(self, record: Record) -> None:
        if self.errors.get(record.offset):
            raise self.errors[record.offset].pop(0)
        self.decided.append(record.offset)

    async def fire(self) -> None:
        self.ticks += 1


def app(kafka: KafkaSettings, folder: Path, deciding: Deciding, letters: DeadLetters | None = None) -> Any:
    return faust_app.FaustApp(
        kafka,
        faust_app.FaustOptions("agents", folder),
        [faust_app.Agent("one", ["t"], deciding.decide)],
        timers=[faust_app.Timer("tick", 0.2, deciding.fire)],
        dead_letters=letters,
    )


async def test_each_record_is_decided_once_poison_goes_aside_and_timers_fire(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic, tmp_path: Path
) -> None:
    await make_topic("t", partitions=1)
    await make_topic("ingestion.dead-letters.v1")
    deciding = Deciding({1: [Retryable("not yet")], 2: [Poison(Reason.WRONG_TYPE, "no")]})
    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("t", b"%d" % n) for n in range(4)])
        written = producer.written
        async with running(app(kafka, tmp_path, deciding, DeadLetters(producer, kafka, "agents"))) as agents:
            await agents.reached(written)
            await aeventually(lambda: deciding.ticks > 1)
        after = Deciding()
        async with running(app(kafka, tmp_path, after)) as agents:
            await agents.reached(written)
    assert (deciding.decided, after.decided) == ([0, 1, 3], [])
    (letter,) = await read_topic("ingestion.dead-letters.v1")
    assert letter.value == b"2"


async def test_an_exception_ends_the_service_and_the_record_comes_again(
    kafka: KafkaSettings, make_topic: MakeTopic, tmp_path: Path
) -> None:
    await make_topic("t", partitions=1)
    deciding = Deciding({1: [ConnectionRefusedError("a library error that nobody translated")]})
    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("t", b"%d" % n) for n in range(3)])
        with pytest.raises(ConnectionRefusedError):
            async with running(app(kafka, tmp_path, deciding)):
                await asyncio.Event().wait()
        async with running(app(kafka, tmp_path, deciding)) as agents:
            await agents.reached(producer.written)
    assert deciding.decided == [0, 1, 2]


@pytest.mark.parametrize("noticed", [False, True], ids=["at once", "after the group has noticed"])
async def test_a_topic_that_is_made_anew_is_decided_from_its_beginning(
    kafka: KafkaSettings, make_topic: MakeTopic, tmp_path: Path, noticed: bool
) -> None:
    await make_topic("t", partitions=1)
    deciding = Deciding()
    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("t", b"%d" % n) for n in range(4)])
        before = producer.written
        async with running(app(kafka, tmp_path, deciding)) as agents:
            await agents.reached(before)
            await delete_topics(kafka.client_kwargs(), [kafka.physical("t")])
            if noticed:
                await asyncio.sleep(7)
            await make_topic("t", partitions=1)
            await producer.send(Outgoing("t", b"new"))
            await aeventually(lambda: len(deciding.decided) == 5, 60, claim="the new topic's record is decided")
            async with asyncio.timeout(60):
                # What the former topic held is waited for no longer.
                await agents.reached(before)
    assert deciding.decided == [0, 1, 2, 3, 0]


async def test_a_topic_that_ends_before_what_was_read_of_it_is_decided_from_its_beginning(
    kafka: KafkaSettings, make_topic: MakeTopic, tmp_path: Path
) -> None:
    await make_topic("t", partitions=1)
    deciding, there = Deciding(), TopicPartition(kafka.physical("t"), 0)
    async with AIOKafkaConsumer(**kafka.client_kwargs(), **kafka.group("agents")) as consumer:
        consumer.assign([there])
        await consumer.commit({there: 50})
    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("t", b"%d" % n) for n in range(4)])
        async with running(app(kafka, tmp_path, deciding)) as agents:
            await aeventually(lambda: deciding.decided == [0, 1, 2, 3], claim="all is decided")
            await agents.reached(producer.written)


AGENTS = """
import asyncio, sys
from contextlib import asynccontextmanager
from pathlib import Path
from tidemill_runtime.faust_app import Agent, FaustApp, FaustOptions
from tidemill_runtime.lifecycle import run, running
from tidemill_runtime.settings import KafkaSettings, ServiceSettings

bootstrap, prefix, out = sys.argv[1:]

async def decide(record):
    with Path(out).open("ab") as file:
        file.write(record.value)

@asynccontextmanager
async def open_service(settings, health):
    kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=prefix, instance="one")
    async with running(FaustApp(kafka, FaustOptions("agents", Path(out).parent), [Agent("one", ["t"], decide)])):
        yield

sys.exit(asyncio.run(run(open_service, ServiceSettings(drain_s=10))))
"""


async def test_of_two_processes_of_one_name_the_later_keeps_it(
    kafka: KafkaSettings, make_topic: MakeTopic, committed: Committed, tmp_path: Path
) -> None:
    await make_topic("t", partitions=1)
    out = tmp_path / "decided"
    out.touch()
    arguments = [sys.executable, "-c", AGENTS, kafka.bootstrap, kafka.topic_prefix, str(out)]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            dying_with_us(arguments),
            env=dict(os.environ),
        )
        started.append(process)
        return process

    async with Producer(kafka) as producer:

        async def decided(value: bytes) -> None:
            await producer.send(Outgoing("t", value))
            await aeventually(lambda: out.read_bytes().endswith(value), claim=f"{value!r} is decided")

        async def claimed() -> bool:
            return await committed("t", "agents.one") == 0

        try:
            frozen = start()
            await decided(b"a")
            # One that freezes before it has laid its claim wakes up as the later of the two.
            await aeventually(claimed, claim="the first has the name")
            frozen.send_signal(signal.SIGSTOP)
            later = start()
            await decided(b"b")
            frozen.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(frozen.wait, 60) == EXIT_FATAL
            await decided(b"c")
            later.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(later.wait, 60) == 0
        finally:
            for process in started:
                process.kill()
                process.wait()
