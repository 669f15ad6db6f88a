"""What a chaos run may kill besides Redis: one Kafka for all runs, and the workers, from a nursery."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from processes import begun, end
from tidemill.stack import kafka, kafka_classes
from tidemill.stack.health import kafka_answers
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.nursery import Nursery
from tidemill_testkit.ports import LOOPBACK, free_port


class Kafka:
    """One Kafka; its groups may forget a silent member after half a second."""

    def __init__(self, folder: Path) -> None:
        port, controller = free_port(), free_port()
        runtime = kafka_classes.installed()
        self.bootstrap = f"{LOOPBACK}:{port}"
        config = kafka.prepare(folder, port, controller, runtime=runtime)
        with config.open("a") as lines:
            lines.write("group.min.session.timeout.ms=500\nbroker.session.timeout.ms=1000\n")
        self._program = kafka.program(config, port, runtime=runtime)
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
    """One process of the feature service; `environment` beside the variables of this process."""

    def __init__(self, nursery: Nursery, environment: Mapping[str, str], output: Path) -> None:
        self._output = output
        self._process = nursery.start({**os.environ, **environment}, output)
        self.ended = asyncio.wrap_future(self._process.ended)

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
        self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        self.send(signal.SIGKILL)
        async with asyncio.timeout(20):
            await asyncio.shield(self.ended)
