"""The service in the README is real: it is taken from there, started, used over gRPC and HTTP, and stopped."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from redis.asyncio import Redis
from tidemill_contracts.progress.v1 import progress_pb2_grpc
from tidemill_contracts.progress.v1.progress_pb2 import WaitProgressRequest
from tidemill_runtime.grpc_client import channel
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.progress import to_wire
from tidemill_runtime.settings import GrpcSettings, KafkaSettings
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.ports import free_port

pytestmark = pytest.mark.servers

README = Path(__file__).parents[1] / "README.md"
MakeTopic = Callable[..., Awaitable[None]]


def written_out(folder: Path, totals: str) -> None:
    """Write the README's modules as a package; each block follows the name of its file."""
    package = folder / "tidemill_counting"
    (package / "adapters").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "adapters" / "__init__.py").touch()
    blocks = re.findall(r"^`([\w/]+\.py)`.*?\n```python\n(.*?)```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for name, code in blocks:
        (package / name).write_text(code.replace('"totals"', f'"{totals}"'))


def started(folder: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        dying_with_us([sys.executable, "-m", "tidemill_counting"]),
        env={**os.environ, **{f"TIDEMILL_COUNTING_{name}": value for name, value in environment.items()}},
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_the_service_in_the_readme_counts_answers_and_stops(
    kafka: KafkaSettings,
    make_topic: MakeTopic,
    servers: Any,
    redis_namespace: str,
    tmp_path: Path,
) -> None:
    await make_topic("events.clicks", partitions=2)
    await make_topic("events.clicks.dlq")
    written_out(tmp_path, redis_namespace)
    grpc_port, http_port = free_port(), free_port()
    environment = {
        "KAFKA__BOOTSTRAP": kafka.bootstrap,
        "KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
        "REDIS__URL": servers.redis,
        "GRPC__LISTEN": f"127.0.0.1:{grpc_port}",
        "HTTP__LISTEN": f"127.0.0.1:{http_port}",
        "LOG_FORMAT": "json",
    }
    process = started(tmp_path, environment)
    redis = Redis.from_url(servers.redis)
    try:
        events = [b'{"user": "a"}', b'{"user": "b"}', b"{", b'{"user": "a"}']
        async with Producer(kafka) as producer:
            await producer.send_all([Outgoing("events.clicks", event) for event in events])
            address = f"127.0.0.1:{grpc_port}"
            await aeventually(lambda: ready(http_port), tolerate=(OSError,))
            async with channel(address, GrpcSettings()) as opened:
                request = WaitProgressRequest(stage="count", offsets=to_wire(producer.written))
                answer = await progress_pb2_grpc.ProgressServiceStub(opened).WaitProgress(request, timeout=60)
        assert [one.topic for one in answer.written] == ["events.clicks.dlq"]
        assert await redis.hgetall(redis_namespace) == {b"a": b"2", b"b": b"1"}
        process.send_signal(signal.SIGTERM)
        _, lines = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
        await redis.delete(redis_namespace)
        await redis.aclose()
    assert process.returncode == 0, lines
    logged = [json.loads(line) for line in lines.splitlines()]
    assert [one["event"] for one in logged if one["event"] in ("ready", "stopping", "stopped")] == [
        *("ready", "stopping", "stopped")
    ]
    # Of a broker that has just begun its client complains that there is no coordinator yet, and asks again.
    ours = [one for one in logged if not one["logger"].startswith("aiokafka.")]
    assert {(one["level"], one["service"]) for one in ours} == {("info", "counting")}, lines
    # The address of Redis carries its password.
    assert servers.redis.partition("@")[0] not in lines


def ready(port: int) -> bool:
    with urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer:
        return bool(answer.status == 200)
