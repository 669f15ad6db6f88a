"""How a service lives: open in order, run, and on SIGTERM close in reverse with a deadline.

A service is one async context manager. What it opens last closes first, so that intake (servers, consumers) stops
before what it writes to (producers, pools). Everything that works in the background is a `Component` under `running`.
"""

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypeVar

import structlog
import uvloop
from pydantic import ValidationError

from tidemill_runtime.errors import Stalled
from tidemill_runtime.health import Health
from tidemill_runtime.logs import configure_logs
from tidemill_runtime.refusals import advice
from tidemill_runtime.settings import ServiceSettings, redacted, unknown_variables

# Each way to end has its own code, so that a supervisor's log tells them apart.
EXIT_CLEAN = 0
EXIT_FATAL = 70
EXIT_STALLED = 71
EXIT_DRAIN_OVERDUE = 72
EXIT_SETTINGS = 78

# A batch allocates thousands of small objects that die together: Python's default of 700 took a seventh of the time.
_GC_THRESHOLDS = (50_000, 20, 20)

_STUCK_S = 2.0
# Ends the process where the loop itself stands still.
_LEAVE_S = 2 * _STUCK_S

log = structlog.get_logger(__name__)


class Component(Protocol):
    """Something that works in the background between being opened and closed; one that inherits opens nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def run(self) -> None:
        """Work until `stop` was called and what was taken in is finished; raise to end the service."""

    def stop(self) -> None:
        """Take in nothing more; idempotent, safe before `run`."""


C = TypeVar("C", bound=Component)
S = TypeVar("S", bound=ServiceSettings)
OpenService = Callable[[S, Health], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def running(component: C) -> AsyncIterator[C]:
    """Open the component, run it beside the body, stop and drain it on the way out.

    A failure of `run` cancels the body and is raised from here; several failures come as an exception group.
    """
    try:
        async with component, asyncio.TaskGroup() as tasks:
            tasks.create_task(component.run(), name=type(component).__name__)
            try:
                yield component
            finally:
                component.stop()
    except BaseExceptionGroup as group:
        # One error is that error: a body that raises should not find its own wrapped once per component.
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None


class _Stop:
    """The first SIGTERM or SIGINT asks for an orderly stop; later ones change nothing, until the process has ended."""

    def __init__(self, task: asyncio.Task[Any], drain_s: float) -> None:
        self._task = task
        self._drain_s = drain_s
        self._timer: asyncio.TimerHandle | None = None
        self.opened = False
        self.asked = asyncio.Event()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask)

    def ask(self) -> None:
        """Stop; before the service is open this cancels the opening."""
        if self.asked.is_set():
            return
        self.asked.set()
        log.info("stopping", deadline_s=self._drain_s)
        self.bound()
        if not self.opened:
            self._task.cancel()

    def bound(self) -> None:
        """From now on the process ends within the deadline, whatever hangs."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._drain_s, self._overdue)

    def release(self) -> None:
        """Everything is closed: take the deadline away.

        The handlers stay as long as the loop: one more signal would end the process by the signal's own code.
        """
        self.asked.set()
        if self._timer is not None:
            self._timer.cancel()

    def _overdue(self) -> None:
        # Uncommitted work is redelivered, so leaving now loses nothing; waiting on would hang a rollout.
        log.critical("drain_overdue", deadline_s=self._drain_s)
        sys.stderr.flush()
        os._exit(EXIT_DRAIN_OVERDUE)


async def run(open_service: OpenService[S], settings: S) -> int:
    """Run one service until SIGTERM, SIGINT or a fatal error, and return the process's exit code."""
    health = Health()
    task = asyncio.current_task()
    assert task is not None
    stop = _Stop(task, settings.drain_s)
    stop.install()
    try:
        async with open_service(settings, health):
            stop.opened = True
            _settle_garbage_collection()
            health.opened = True
            log.info("ready")
            try:
                await stop.asked.wait()
            finally:
                health.opened = False
                stop.bound()
    except asyncio.CancelledError:
        if not stop.asked.is_set():
            raise
    except Exception as error:
        health.opened = False
        code = exit_code(error)
        log.critical("crashed", exit_code=code, error=f"{error}{advice(error)}", exc_info=error)
        return code
    finally:
        stop.release()
    log.info("stopped")
    return EXIT_CLEAN


def _settle_garbage_collection() -> None:
    """Stop the collector from walking over what stays for ever, and over each request's records several times."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def exit_code(error: BaseException) -> int:
    """Return the code that says how the service died."""
    leaves = list(_leaves(error))
    return EXIT_STALLED if any(isinstance(leaf, Stalled) for leaf in leaves) else EXIT_FATAL


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def main(open_service: OpenService[S], settings_class: type[S]) -> None:
    """Read the settings, run the service and exit: the whole of a service's `__main__`."""
    try:
        settings = settings_class()
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_SETTINGS)
    configure_logs(settings.log_level, settings.log_format)
    service = settings.model_config.get("env_prefix", "").removeprefix("TIDEMILL_").strip("_").lower()
    structlog.contextvars.bind_contextvars(service=service)
    for sentence in unknown_variables(settings_class, os.environ):
        log.warning("unknown_variable", detail=sentence)
    log.info("settings", settings=redacted(settings))
    uvloop.run(_to_the_end(open_service, settings))


async def _to_the_end(open_service: OpenService[S], settings: S) -> NoReturn:
    """Run, then leave: all that is ours is closed, and what libraries do at the end has hung a process.

    A task of theirs may swallow cancellation, or a thread keep the interpreter; gRPC, dropped by a service that was
    stopped while it opened, has waited on the loop's own thread for one of its own, for ever.
    """
    code = await run(open_service, settings)
    overdue = threading.Timer(_LEAVE_S, os._exit, [code])
    overdue.daemon = True
    overdue.start()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    # Its idle threads wait for work for ever.
    tasks.add(asyncio.create_task(asyncio.get_running_loop().shutdown_default_executor(), name="default executor"))
    stuck = (await asyncio.wait(tasks, timeout=_STUCK_S))[1]
    threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
    if stuck or threads != [threading.main_thread().name]:
        log.warning("left_behind", tasks=[str(task.get_name()) for task in stuck], threads=threads)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
