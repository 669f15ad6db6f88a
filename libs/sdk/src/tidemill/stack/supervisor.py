"""The one process that owns a stack: starts tier after tier, keeps everything alive, stops in reverse."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import KafkaConnectionError
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.kafka_refusals import refusal
from tidemill_contracts.topics import fixed_topics

from tidemill.kafka_login import LoginError, login
from tidemill.stack import control
from tidemill.stack.endpoints import Endpoints
from tidemill.stack.keeper import Keeper
from tidemill.stack.logs import LogFile
from tidemill.stack.plan import Layout
from tidemill.stack.programs import Program
from tidemill.stack.spec import SERVERS, StackError, StackSpec
from tidemill.stack.state import FAILED, READY, STARTING, STOPPED, STOPPING, StackState, process_started, write_state

# A process that dies this often before it was ever ready has a cause that another start will not cure.
UNREADY_CRASHES_MAX = 3
CHECK_S = 0.1
RESUME_DEADLINE_S = 60.0
TAIL_LINES = 15


@dataclass(frozen=True)
class Prepared:
    """What was made ready on disk: the programs, tier by tier, and where they will be reached."""

    spec: StackSpec
    layout: Layout
    ports: Mapping[str, int]
    endpoints: Endpoints
    tiers: tuple[tuple[Program, ...], ...]
    control: str


class Supervisor:
    """Runs one prepared stack until it is asked to stop."""

    def __init__(self, prepared: Prepared, *, foreground: bool) -> None:
        self._prepared = prepared
        self._status = STARTING
        self._message = ""
        self._began = time.monotonic()
        self._seconds_to_ready: float | None = None
        self._stop = asyncio.Event()
        self._write_due = False
        layout = prepared.layout
        self._logs = {program.name: LogFile(layout.log(program.name)) for tier in prepared.tiers for program in tier}
        self._tiers = [
            [
                Keeper(
                    program,
                    self._logs[program.name],
                    changed=self._changed,
                    echo=_echo if foreground else None,
                )
                for program in tier
            ]
            for tier in prepared.tiers
        ]
        self._keepers = {keeper.program.name: keeper for tier in self._tiers for keeper in tier}

    async def run(self, *, lifeline: bool) -> int:
        """Return the exit code: 0 after an orderly stop, 1 when the stack did not become ready."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        server = await control.serve(control.socket_path(self._prepared.layout.home), self._handle)
        background = [asyncio.create_task(keeper.run()) for keeper in self._keepers.values()]
        if lifeline:
            background.append(asyncio.create_task(self._hold_lifeline()))
        self._write()
        try:
            failure = await self._until_stopped()
            await self._shut_down()
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            server.close()
        self._status, self._message = (FAILED, failure) if failure else (STOPPED, "")
        self._write()
        return 1 if failure else 0

    async def _until_stopped(self) -> str:
        """Start everything and wait for the request to stop; return why it failed, or nothing."""
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        try:
            if not starting.done():
                return ""
            starting.result()
            self._status = READY
            self._seconds_to_ready = round(time.monotonic() - self._began, 2)
            _say(f"ready after {self._seconds_to_ready:g} s")
            self._write()
            await stopping
        except StackError as error:
            _say(str(error))
            return str(error)
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
        return ""

    async def _start(self) -> None:
        spec = self._prepared.spec
        try:
            async with asyncio.timeout(spec.ready_deadline_s):
                servers, *others = self._tiers
                await self._bring_up(servers)
                await self._create_topics()
                for tier in others:
                    await self._bring_up(tier)
        except TimeoutError as error:
            unready = [name for name, keeper in self._keepers.items() if keeper.state.state != READY]
            raise StackError(
                f"not ready within {spec.ready_deadline_s:g} s: {', '.join(unready) or 'Kafka topics'}\n"
                + "".join(self._tail(name) for name in unready)
            ) from error

    async def _create_topics(self) -> None:
        spec = self._prepared.spec
        try:
            security = login(os.environ) if spec.external.kafka else {"security_protocol": "PLAINTEXT"}
        except LoginError as error:
            raise StackError(str(error)) from error
        client = {"bootstrap_servers": self._prepared.endpoints.kafka, **security}
        try:
            await create_topics(client, fixed_topics(), spec.topic_prefix)
        except KafkaConnectionError as error:
            why = await refusal(client) or f"Kafka is not reachable at {self._prepared.endpoints.kafka}"
            raise StackError(why) from error

    async def _bring_up(self, tier: Sequence[Keeper]) -> None:
        """Start a tier's processes together and wait until each is ready."""
        for keeper in tier:
            keeper.want()
        waiting = {asyncio.create_task(keeper.wait_ready()) for keeper in tier}
        try:
            while waiting:
                _, waiting = await asyncio.wait(waiting, timeout=CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                for keeper in tier:
                    if keeper.unready_crashes >= UNREADY_CRASHES_MAX:
                        name = keeper.program.name
                        raise StackError(f"{name} does not start; its last lines:\n{self._tail(name)}")
        finally:
            for task in waiting:
                task.cancel()

    async def _shut_down(self) -> None:
        self._status = STOPPING
        self._write()
        for tier in reversed(self._tiers):
            await asyncio.gather(*(keeper.stop() for keeper in tier))

    async def _hold_lifeline(self) -> None:
        """Stop when standard input ends: whoever started this stack for itself is gone, however it went."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while await reader.read(1024):
            continue
        self._stop.set()

    async def _handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one control request: status, stop, kill, halt or resume."""
        match request:
            case {"op": "status"}:
                return {"status": STOPPING if self._stop.is_set() else self._status}
            case {"op": "stop"}:
                self._stop.set()
                return {}
            case {"op": "kill", "name": str(name), "signal": int(number)}:
                return {"pid": self._keeper(name).send(number)}
            case {"op": "halt", "name": str(name)}:
                await self._keeper(name).stop()
                return {}
            case {"op": "resume", "name": str(name)}:
                keeper = self._keeper(name)
                keeper.want()
                try:
                    async with asyncio.timeout(RESUME_DEADLINE_S):
                        await keeper.wait_ready()
                except TimeoutError as error:
                    raise StackError(f"{name} was not ready within {RESUME_DEADLINE_S:g} s") from error
                return {}
            case _:
                raise StackError(f"unknown request: {request!r}")

    def _keeper(self, name: str) -> Keeper:
        keeper = self._keepers.get(name)
        if keeper is None:
            external = name in SERVERS and name in self._prepared.spec.external.given()
            reason = "is not run by this stack" if external else "is not part of this stack"
            raise StackError(f"{name} {reason}; it runs {', '.join(self._keepers)}")
        return keeper

    def _tail(self, name: str) -> str:
        return "".join(f"  {name} | {line}\n" for line in self._logs[name].tail(TAIL_LINES))

    def _changed(self) -> None:
        """Write the state file once per turn of the loop, however many changes there were."""
        if not self._write_due:
            self._write_due = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._write_due = False
        pid = os.getpid()
        state = StackState(
            name=self._prepared.spec.name,
            status=self._status,
            supervisor_pid=pid,
            supervisor_started=process_started(pid) or 0,
            control=self._prepared.control,
            endpoints=self._prepared.endpoints,
            ports=dict(self._prepared.ports),
            processes=tuple(keeper.state for keeper in self._keepers.values()),
            message=self._message,
            seconds_to_ready=self._seconds_to_ready,
        )
        write_state(self._prepared.layout.state_file, state)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _echo(name: str, data: bytes) -> None:
    for line in data.decode(errors="replace").splitlines():
        sys.stdout.write(f"{name:>10} | {line}\n")
    sys.stdout.flush()
