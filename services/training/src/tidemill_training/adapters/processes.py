"""A run's process: its own group, a spec on stdin, lines on stdout, a wall-clock limit, no settings of the service."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import structlog
from tidemill_runtime.errors import Retryable

from tidemill_training.spec import MAX_LINE_BYTES, Done, Failed, Progress, RunSpec, from_line

OnProgress = Callable[[Progress], Awaitable[None]]

MODULE = "tidemill_training.run"
_REAP_S = 10.0
_OURS = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # XGBoost's two; on busy processors one that spins while it waits for the other takes several times the work.
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",
    # Arrow's own allocator, and a heap for each thread, keep what was freed to themselves: a third of the memory.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
}

log = structlog.get_logger(__name__)


class RunCrashedError(Retryable):
    """The process ended without an answer: killed, out of a limit, or broken; another attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a run's process may use: address space, CPU, and time from its spec to its answer."""

    memory_bytes: int
    cpu_s: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Launch:
    """What a process needs before its spec: whose it is, which learner's library it will load, and its bounds."""

    run_id: str
    library: str
    bounds: Bounds


def environment(parent: Mapping[str, str]) -> dict[str, str]:
    """Return the process's environment: the parent's without the services' settings, few threads, one heap.

    >>> sorted(environment({"TIDEMILL_TRAINING_KAFKA__SASL_PASSWORD": "x", "PATH": "/bin"}).items() - _OURS.items())
    [('PATH', '/bin')]
    """
    return {**{name: value for name, value in parent.items() if not name.startswith("TIDEMILL_")}, **_OURS}


class RunProcess:
    """One started process, which waits for its spec."""

    def __init__(self, process: asyncio.subprocess.Process, wall_s: float) -> None:
        self._process = process
        self._wall_s = wall_s

    async def ask(self, spec: RunSpec, on_progress: OnProgress) -> Done | Failed:
        """Hand over the spec and return the answer. Raises `RunCrashedError` where the process ends without one."""
        try:
            async with asyncio.timeout(self._wall_s):
                answer = await self._converse(spec, on_progress)
        except TimeoutError:
            raise RunCrashedError(f"the run took longer than {self._wall_s:g} s") from None
        if answer is None:
            raise RunCrashedError(f"the run's process ended without an answer ({_ending(self._process.returncode)})")
        return answer

    async def _converse(self, spec: RunSpec, on_progress: OnProgress) -> Done | Failed | None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        answer: Done | Failed | None = None
        try:
            stdin.write(spec.to_json())
            await stdin.drain()
            stdin.close()
            while raw := await stdout.readline():
                line = from_line(raw)
                if isinstance(line, Progress):
                    await on_progress(line)
                else:
                    answer = line
        except ConnectionError as error:
            log.warning("run_process_closed", pid=self._process.pid, error=repr(error))
        except (ValueError, KeyError, TypeError) as error:
            raise RunCrashedError(f"the run's process wrote what is no answer: {error!r}") from error
        await self._process.wait()
        return answer

    async def end(self) -> None:
        """Kill the whole group, what the process left behind too, and reap it."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("run_process_gone", pid=self._process.pid)
        async with asyncio.timeout(_REAP_S):
            await self._process.wait()


@asynccontextmanager
async def open_process(launch: Launch, module: str = MODULE) -> AsyncIterator[RunProcess]:
    """Start a process that loads its libraries and waits; whatever happens, it and its group are gone at the end."""
    bounds = launch.bounds
    limits = (str(os.getpid()), str(bounds.memory_bytes), str(bounds.cpu_s))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *limits, launch.library),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(os.environ),
        start_new_session=True,
        limit=MAX_LINE_BYTES,
    )
    log.info("run_process_started", run_id=launch.run_id, pid=process.pid)
    opened = RunProcess(process, bounds.wall_s)
    try:
        yield opened
    finally:
        await asyncio.shield(opened.end())


StartProcess = Callable[[Launch], AbstractAsyncContextManager[RunProcess]]


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
