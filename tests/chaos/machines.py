"""The real servers of a chaos run, which it may kill: one Kafka for all, a Redis for each run, a nursery of workers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from redis.asyncio import Redis as Client
from tidemill.stack import java, kafka, wheels
from tidemill.stack.children import die_with_parent
from tidemill.stack.health import kafka_answers
from tidemill.stack.ports import LOOPBACK, choose
from tidemill_testkit.eventually import aeventually

SAMPLE_S = 0.02
NURSERY = Path(__file__).with_name("nursery.py")


def begun(command: Sequence[str], output: Path) -> "subprocess.Popen[bytes]":
    """Start a server that does not outlive us, even if we are killed."""
    dying_with_us = die_with_parent(os.getpid(), signal.SIGKILL)
    with output.open("ab") as written:
        return subprocess.Popen(
            command,
            stdout=written,
            stderr=written,
            preexec_fn=dying_with_us,  # noqa: PLW1509 -- one system call, and no other thread of ours holds a lock
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of ours, frozen or not, and wait until it is gone."""
    process.kill()
    process.wait()


class Kafka:
    """One Kafka; its groups may forget a silent member after half a second."""

    def __init__(self, folder: Path) -> None:
        ports = choose(["kafka", "controller"], {}, Random())
        runtime, jars = java.find(), wheels.kafka_class_path()
        self.bootstrap = f"{LOOPBACK}:{ports['kafka']}"
        config = kafka.prepare(folder, ports["kafka"], ports["controller"], java=runtime, class_path=jars)
        with config.open("a") as lines:
            lines.write("group.min.session.timeout.ms=500\nbroker.session.timeout.ms=1000\n")
        version = java.version(runtime)
        self._program = kafka.program(config, ports["kafka"], java=runtime, java_version=version, class_path=jars)
        self._output = folder / "output.log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it; returns when it answers."""
        self._process = begun(self._program.command, self._output)
        await aeventually(lambda: kafka_answers(self.bootstrap), 60, claim="Kafka answers")

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            end(self._process)
            self._process = None


class Redis:
    """One Redis with an append-only file, of which a crash may lose the last moments."""

    def __init__(self, folder: Path) -> None:
        # Short: the path of a Unix socket has at most 107 characters.
        self._folder = folder
        self._socket = folder / "s"
        self.url = f"unix://{self._socket}"
        self._file = folder / "appendonly.aof"
        self.client: Any = Client.from_url(self.url, protocol=2)
        self._process: subprocess.Popen[bytes] | None = None
        self._sizes: list[tuple[float, int]] = []
        self._sampling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it; returns when it has read its file."""
        options = {"port": "0", "unixsocket": str(self._socket), "dir": str(self._folder), "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "everysec", "auto-aof-rewrite-percentage": "0"}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = begun([str(wheels.redis_server()), *words], self._folder / "redis.log")
        await aeventually(self._answers, 20, claim="Redis answers")
        self._sampling = asyncio.create_task(self._sample())

    def kill(self) -> None:
        """Kill -9."""
        if self._sampling is not None:
            self._sampling.cancel()
        if self._process is not None:
            end(self._process)
            self._process = None

    def lose(self, milliseconds: int) -> int:
        """Cut what was written within the last moments off the file, as a machine that loses power does."""
        since = time.monotonic() - milliseconds / 1000
        size = self._file.stat().st_size
        kept = max((held for at, held in self._sizes if at <= since), default=0) if milliseconds else size
        os.truncate(self._file, kept)
        self._sizes = [(at, held) for at, held in self._sizes if held <= kept]
        return size - kept

    async def _sample(self) -> None:
        while True:
            with suppress(FileNotFoundError):
                self._sizes.append((time.monotonic(), self._file.stat().st_size))
            await asyncio.sleep(SAMPLE_S)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
        except OSError:
            return False
        finally:
            writer.close()


class Worker:
    """One process of the feature service."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid = pid
        self._output = output
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def address(self) -> str:
        """Return where it answers gRPC, once it says so."""

        def said() -> str | None:
            found = [json.loads(line)["address"] for line in self.written().splitlines() if '"grpc_listening"' in line]
            return found[0] if found else None

        return str(await aeventually(said, 30, claim=f"{self._output.name} names an address"))

    def written(self) -> str:
        """Return what it wrote."""
        return self._output.read_text() if self._output.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Signal it; one that has ended needs nothing."""
        if not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        self.send(signal.SIGKILL)
        async with asyncio.timeout(20):
            await asyncio.shield(self.ended)


class Nursery:
    """Starts workers."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._started: asyncio.Queue[int] = asyncio.Queue()
        self._workers: dict[int, Worker] = {}
        self._codes: dict[int, int] = {}

    async def start(self) -> None:
        """Load the service."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(NURSERY),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self._reading = asyncio.create_task(self._read())

    async def worker(self, environment: Mapping[str, str], output: Path) -> Worker:
        """Start one worker; orders are given one at a time."""
        assert self._process is not None
        assert self._process.stdin is not None
        order = {"environment": dict(environment), "output": str(output)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(30):
            pid = await self._started.get()
        worker = self._workers[pid] = Worker(pid, output)
        if pid in self._codes:
            worker.ended.set_result(self._codes.pop(pid))
        return worker

    async def close(self) -> None:
        """End it, and with it every worker."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said: dict[str, Any] = json.loads(line)
            if "started" in said:
                self._started.put_nowait(said["started"])
            elif (worker := self._workers.pop(said["ended"], None)) is not None:
                worker.ended.set_result(said["code"])
            else:
                self._codes[said["ended"]] = said["code"]
