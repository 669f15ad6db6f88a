"""Starts processes of one service in milliseconds: its code is loaded once, and a process is forked for each.

This file is both sides. As a script, with a package and what it loads late, it reads orders from its standard input,
one JSON object a line: {"environment": {…}, "output": path}; it answers {"started": pid}, and {"ended": pid, "code": …}
when one is gone. Each does what `python -m PACKAGE` would, and dies with the nursery.
"""

import gc
import importlib
import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import FrameType

from tidemill_testkit.orphans import dying_with_us, tie

_START_S = 60


class Forked:
    """One process of a nursery, with what `subprocess.Popen` offers of it."""

    def __init__(self, pid: int, ended: "Future[int]") -> None:
        self.pid = pid
        # Its exit code, negative for a signal.
        self.ended = ended

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self.ended.result() if self.ended.done() else None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once there is one. Raises `TimeoutError`."""
        return self.ended.result(timeout)

    def send_signal(self, number: int) -> None:
        """Signal it; one that has ended needs nothing."""
        if not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Nursery:
    """Starts processes of a package that runs by `python -m`; `late`: modules that it would load after its start."""

    def __init__(self, package: str, *late: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 -- the test's own command
            dying_with_us([sys.executable, "-m", "tidemill_testkit.nursery", package, *late]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Threads do not survive a fork.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self._started: queue.SimpleQueue[Forked] = queue.SimpleQueue()
        self._running: dict[int, Forked] = {}
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def start(self, environment: Mapping[str, str], output: Path) -> Forked:
        """Start one with these variables, and no others; what it writes is appended to `output`."""
        assert self._process.stdin is not None
        order = {"environment": dict(environment), "output": str(output)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self._started.get(timeout=_START_S)

    def close(self) -> None:
        """End it, and with it every process."""
        self._process.kill()
        self._process.wait()
        self._reading.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said: dict[str, int] = json.loads(line)
            if "started" in said:
                forked = self._running[said["started"]] = Forked(said["started"], Future())
                self._started.put(forked)
            else:
                self._running.pop(said["ended"]).ended.set_result(said["code"])


def _answer(**what: int) -> None:
    """Write one line; in one call, since a signal handler writes too."""
    os.write(1, json.dumps(what).encode() + b"\n")


def _reap(_number: int, _frame: FrameType | None) -> None:
    """Say which processes have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _answer(ended=pid, code=os.waitstatus_to_exitcode(status))


def _become(package: str, environment: Mapping[str, str], output: str) -> None:
    """Be `python -m package`."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [package]
    runpy.run_module(package, run_name="__main__", alter_sys=True)
    sys.exit()


def _serve(package: str, *late: str) -> None:
    """Fork a process for each order, until the orders end."""
    for module in (package, f"{package}.app", f"{package}.settings", *late):
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, _reap)
    gc.freeze()
    nursery = os.getpid()
    for line in sys.stdin:
        order = json.loads(line)
        # Nobody is said to have ended who was not said to have started.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            tie(nursery)
            _become(package, order["environment"], order["output"])
        _answer(started=pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


if __name__ == "__main__":
    _serve(*sys.argv[1:])
