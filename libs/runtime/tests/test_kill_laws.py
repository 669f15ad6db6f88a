"""What a killed or replaced worker leaves is taken up by the next, on the real Kafka."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from tidemill_runtime.lifecycle import EXIT_FATAL
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.eventually import aeventually, eventually
from tidemill_testkit.orphans import dying_with_us

pytestmark = pytest.mark.servers

MakeTopic = Callable[..., Awaitable[None]]
Committed = Callable[..., Awaitable[int]]

WORKER = """
import asyncio, sys
from pathlib import Path
from tidemill_runtime.batches import Pipeline, Restored, Step, StreamOptions
from tidemill_runtime.lifecycle import run, running
from tidemill_runtime.settings import KafkaSettings, ServiceSettings
from tidemill_runtime.stream import StreamRunner
from contextlib import asynccontextmanager

bootstrap, prefix, out, hang, instance, session_ms = sys.argv[1:7]

class Writing(Pipeline):
    async def restore(self, assignment):
        return Restored(None)

    def step(self, state, batch, now_us):
        return Step(state, [record.value for record in batch])

    async def apply(self, effects):
        with Path(out).open("ab") as file:
            file.writelines(value + b"\\n" for value in effects)
        if hang == "hang":
            await asyncio.Event().wait()

@asynccontextmanager
async def open_service(settings, health):
    kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=prefix, instance=instance or None)
    # A replica with a name must not need the session's end.
    options = StreamOptions("laws", stall_s=10, session_ms=6_000 if not instance else int(session_ms))
    async with running(StreamRunner(Writing(), kafka, options, topics=["t"])):
        yield

sys.exit(asyncio.run(run(open_service, ServiceSettings(drain_s=10))))
"""


@pytest.fixture(autouse=True)
def workers() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """What a test started; none of it outlives the test."""
    STARTED.clear()
    yield STARTED
    for process in STARTED:
        process.kill()
        process.wait()


STARTED: list["subprocess.Popen[bytes]"] = []


def worker(
    kafka: KafkaSettings, out: Path, hang: str, instance: str, session_ms: int = 120_000
) -> "subprocess.Popen[bytes]":
    arguments = [kafka.bootstrap, kafka.topic_prefix, str(out), hang, instance, str(session_ms)]
    process = subprocess.Popen(
        dying_with_us([sys.executable, "-c", WORKER, *arguments]),
        env=dict(os.environ),
    )
    STARTED.append(process)
    return process


@pytest.mark.parametrize("instance", ["", "one"])
async def test_kill_between_effect_and_commit_redelivers(
    kafka: KafkaSettings, make_topic: MakeTopic, committed: Committed, tmp_path: Path, instance: str
) -> None:
    await make_topic("t")
    out = tmp_path / "effects"
    out.touch()
    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("t", value, key=b"k") for value in (b"a", b"b")])
    hanging = worker(kafka, out, "hang", instance)
    await asyncio.to_thread(eventually, lambda: out.read_bytes() == b"a\nb\n")
    hanging.kill()
    hanging.wait()
    # At most the beginning, where a replica with a name lays its claim.
    assert await committed("t") <= 0
    again = worker(kafka, out, "", instance)
    await asyncio.to_thread(eventually, lambda: out.read_bytes() == b"a\nb\na\nb\n")
    again.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(again.wait, 60) == 0
    assert await committed("t") == 2


async def test_of_two_processes_of_one_name_the_later_keeps_it_and_notices_partitions_that_are_added(
    kafka: KafkaSettings, make_topic: MakeTopic, committed: Committed, tmp_path: Path
) -> None:
    await make_topic("t")
    out = tmp_path / "effects"
    out.touch()
    async with Producer(kafka) as producer:
        await producer.send(Outgoing("t", b"a", key=b"k"))
        frozen = worker(kafka, out, "", "one", session_ms=6_000)
        await asyncio.to_thread(eventually, lambda: out.read_bytes() == b"a\n")
        frozen.send_signal(signal.SIGSTOP)
        later = worker(kafka, out, "", "one", session_ms=6_000)
        await producer.send(Outgoing("t", b"b", key=b"k"))
        await asyncio.to_thread(eventually, lambda: out.read_bytes().endswith(b"b\n"))
        frozen.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(frozen.wait, 60) == EXIT_FATAL
        await producer.send(Outgoing("t", b"c", key=b"k"))
        await asyncio.to_thread(eventually, lambda: out.read_bytes().endswith(b"c\n"))
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    await admin.start()
    await admin.create_partitions({kafka.physical("t"): NewPartitions(2)})
    await admin.close()
    async with Producer(kafka) as producer:
        await producer.send(Outgoing("t", b"d", key=b"k", partition=1))
        await asyncio.to_thread(eventually, lambda: out.read_bytes().endswith(b"d\n"))

    async def all_committed() -> bool:
        return await committed("t") == 3

    await aeventually(all_committed)
    later.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(later.wait, 60) == 0
