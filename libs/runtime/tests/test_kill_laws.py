"""What a killed worker leaves is taken up by the next, on the real Kafka."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.eventually import eventually

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

bootstrap, prefix, out, hang, instance = sys.argv[1:6]

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
    options = StreamOptions("laws", session_ms=120_000 if instance else 6_000)
    async with running(StreamRunner(Writing(), kafka, options, topics=["t"])):
        yield

sys.exit(asyncio.run(run(open_service, ServiceSettings(drain_s=10))))
"""


def worker(kafka: KafkaSettings, out: Path, hang: str, instance: str) -> "subprocess.Popen[bytes]":
    arguments = [kafka.bootstrap, kafka.topic_prefix, str(out), hang, instance]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments], env=dict(os.environ))


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
    await asyncio.to_thread(eventually, lambda: out.read_bytes() == b"a\nb\n", 30)
    hanging.kill()
    hanging.wait()
    assert await committed("t") == -1
    again = worker(kafka, out, "", instance)
    await asyncio.to_thread(eventually, lambda: out.read_bytes() == b"a\nb\na\nb\n", 30)
    again.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(again.wait, 20) == 0
    assert await committed("t") == 2
