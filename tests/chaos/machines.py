"""What a chaos run may kill besides Redis: one Kafka for all runs, and the workers, from a nursery."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from processes import begun, end
from tidemill.stack import java, kafka, wheels
from tidemill.stack.health import kafka_answers
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.ports import LOOPBACK, free_port

NURSERY = Path(__file__).with_name("nursery.py")


class Kafka:
    """One Kafka; its groups may forget a silent member after half a second."""

    def __init__(self, folder: Path) -> None:
        port, controller = free_port(), free_port()
        runtime, jars = java.find(), wheels.kafka_class_path()
        self.bootstrap = f"{LOOPBACK}:{port}"
        config = kafka.prepare(folder, port, controller, java=runtime, class_path=jars)
        with config.open("a") as lines:
            lines.write("group.min.session.timeout.ms=500\nbroker.session.timeout.ms=1000\n")
        version = java.version(runtime)
        self._program = kafka.program(config, port, java=runtime, java_version=version, class_path=jars)
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
            *dying_with_us([sys.executable, str(NURSERY)]),
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
