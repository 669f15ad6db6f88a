"""Keeps one process alive: starts it, restarts it when it dies, stops it when asked."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tidemill.stack.children import Child, signal_group, spawn
from tidemill.stack.logs import LogFile
from tidemill.stack.programs import Program
from tidemill.stack.restart import Backoff
from tidemill.stack.spec import StackError
from tidemill.stack.state import BACKING_OFF, READY, STARTING, STOPPED, STOPPING, ProcessState, process_started

PROBE_FIRST_S = 0.02
PROBE_LONGEST_S = 0.25
# A grandchild that left the group may hold the output open; it is not waited for longer than this.
DRAIN_DEADLINE_S = 0.5


class Keeper:
    """One program under supervision. `changed` is called after every change of `state`."""

    def __init__(
        self,
        program: Program,
        log: LogFile,
        *,
        changed: Callable[[], None],
        echo: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self.program = program
        self._log = log
        self._changed = changed
        self._echo = echo
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._unwanted.set()
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._child: Child | None = None
        self._backoff = Backoff()
        self._unready_crashes = 0
        self.state = ProcessState(name=program.name, state=STOPPED)

    @property
    def unready_crashes(self) -> int:
        """How often the process died since it was last ready."""
        return self._unready_crashes

    def _set(self, **changes: object) -> None:
        self.state = ProcessState(**{**vars(self.state), **changes})
        self._changed()

    def want(self) -> None:
        """Ask for the process to run; `run` does it."""
        self._backoff = Backoff()
        self._unready_crashes = 0
        self._unwanted.clear()
        self._wanted.set()
        self._idle.clear()

    async def wait_ready(self) -> None:
        await self._ready.wait()

    def send(self, number: int) -> int:
        """Signal the process alone, as a crash or an operator would; return its pid."""
        if self._child is None or self._child.exited.is_set():
            raise StackError(f"{self.program.name} does not run now")
        self._child.send(number)
        return self._child.pid

    async def stop(self) -> None:
        """Stop the process and keep it stopped; returns when it is gone."""
        self._wanted.clear()
        self._unwanted.set()
        child = self._child
        if child is not None and not child.exited.is_set():
            self._set(state=STOPPING)
            child.send(self.program.stop_signal)
            try:
                async with asyncio.timeout(self.program.stop_deadline_s):
                    await self._idle.wait()
            except TimeoutError:
                self._log.note(f"{self.program.name} did not stop in {self.program.stop_deadline_s:g} s: killed")
                signal_group(child.pid, signal.SIGKILL)
        await self._idle.wait()

    async def run(self) -> None:
        """Run, and run again, for ever; cancel it after `stop`."""
        while True:
            if not self._wanted.is_set():
                self._idle.set()
                self._set(state=STOPPED, pid=None)
            await self._wanted.wait()
            started = time.monotonic()
            await self._run_once(started)
            if not self._wanted.is_set():
                continue
            self._backoff = self._backoff.after_crash(uptime_s=time.monotonic() - started)
            self._set(state=BACKING_OFF, pid=None, restarts=self.state.restarts + 1)
            self._log.note(f"{self.program.name} exited ({self.state.exit_code}); again in {self._backoff.delay_s:g} s")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.delay_s):
                    await self._unwanted.wait()

    async def _run_once(self, started: float) -> None:
        child = await spawn(self.program, os.environ, self._sink)
        self._child = child
        born = process_started(child.pid)
        self._set(state=STARTING, pid=child.pid, started=born, exit_code=None, seconds_to_ready=None)
        if not self._wanted.is_set():  # asked to stop while it was being started
            child.send(self.program.stop_signal)
        probe = asyncio.create_task(self._watch(started))
        probe.add_done_callback(self._note_broken_probe)
        try:
            await child.exited.wait()
        finally:
            probe.cancel()
            signal_group(child.pid, signal.SIGKILL)  # what it started goes with it
            await asyncio.gather(probe, return_exceptions=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_DEADLINE_S):
                    await child.closed.wait()
            child.transport.close()
        self._unready_crashes += not self._ready.is_set()
        self._ready.clear()
        self._child = None
        self._set(exit_code=child.exit_code, pid=None)

    async def _watch(self, started: float) -> None:
        pause = PROBE_FIRST_S
        while not await self.program.ready():
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, PROBE_LONGEST_S)
        self._unready_crashes = 0
        self._ready.set()
        self._set(state=READY, seconds_to_ready=round(time.monotonic() - started, 3))

    def _note_broken_probe(self, probe: asyncio.Task[None]) -> None:
        error = None if probe.cancelled() else probe.exception()
        if error is not None:
            self._log.note(f"{self.program.name} cannot be asked whether it is ready: {error!r}")

    def _sink(self, data: bytes) -> None:
        self._log.write(data)
        if self._echo is not None:
            self._echo(self.program.name, data)
