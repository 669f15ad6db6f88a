"""One small process kept alive: crashes, refusals to stop, leftovers."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tidemill.stack.keeper import Keeper
from tidemill.stack.logs import LogFile
from tidemill.stack.programs import Program
from tidemill.stack.spec import StackError
from tidemill.stack.state import READY, STOPPED, process_started
from tidemill_testkit.eventually import aeventually

SLEEP = "import time; print('hello', flush=True); time.sleep(600)"


async def at_once() -> bool:
    return True


def python(code: str, *, ready: Callable[[], Awaitable[bool]] = at_once, stop_deadline_s: float = 5.0) -> Program:
    return Program(name="toy", command=(sys.executable, "-c", code), ready=ready, stop_deadline_s=stop_deadline_s)


@asynccontextmanager
async def kept(program: Program, folder: Path) -> AsyncIterator[Keeper]:
    log = LogFile(folder / "toy.log")
    keeper = Keeper(program, log, changed=lambda: None)
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        await keeper.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        log.close()


async def test_a_killed_process_comes_back_under_another_pid(tmp_path: Path) -> None:
    async with kept(python(SLEEP), tmp_path) as keeper:
        keeper.want()
        await keeper.wait_ready()
        killed = keeper.send(signal.SIGKILL)
        await aeventually(lambda: keeper.state.state == READY and keeper.state.pid != killed)
        assert keeper.state.restarts == 1


async def test_a_stopped_process_stays_stopped_until_wanted(tmp_path: Path) -> None:
    async with kept(python(SLEEP), tmp_path) as keeper:
        keeper.want()
        await keeper.wait_ready()
        pid = keeper.state.pid
        assert pid is not None
        await keeper.stop()
        assert keeper.state.state == STOPPED
        assert process_started(pid) is None
        with pytest.raises(StackError, match="does not run"):
            keeper.send(signal.SIGTERM)
        keeper.want()
        await keeper.wait_ready()
        assert keeper.state.restarts == 0


async def test_a_process_that_ignores_its_stop_is_killed_at_the_deadline(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    log = tmp_path / "toy.log"

    async def printed() -> bool:
        return b"up" in log.read_bytes()

    async with kept(python(stubborn, ready=printed, stop_deadline_s=0.2), tmp_path) as keeper:
        keeper.want()
        await keeper.wait_ready()
        await keeper.stop()
        assert keeper.state.exit_code == -signal.SIGKILL
        assert b"did not stop in 0.2 s: killed" in log.read_bytes()


async def test_what_a_dead_process_started_dies_with_it(tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "toy.log"

    async def printed() -> bool:
        return log.read_bytes().endswith(b"\n")

    async with kept(python(parent, ready=printed), tmp_path) as keeper:
        keeper.want()
        await keeper.wait_ready()
        grandchild = int(log.read_text().split()[0])
        keeper.send(signal.SIGKILL)
        await aeventually(lambda: process_started(grandchild) is None)


async def test_deaths_before_readiness_are_counted(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    async with kept(python("raise SystemExit(3)", ready=never), tmp_path) as keeper:
        keeper.want()
        await aeventually(lambda: keeper.unready_crashes >= 2)
        assert keeper.state.restarts >= 2


async def test_the_output_lands_in_the_log(tmp_path: Path) -> None:
    async with kept(python(SLEEP), tmp_path) as keeper:
        keeper.want()
        await aeventually(lambda: (tmp_path / "toy.log").read_bytes() == b"hello\n")


async def test_a_child_runs_in_a_group_of_its_own(tmp_path: Path) -> None:
    async with kept(python(SLEEP), tmp_path) as keeper:
        keeper.want()
        await keeper.wait_ready()
        assert keeper.state.pid is not None
        assert os.getpgid(keeper.state.pid) == keeper.state.pid != os.getpgid(os.getpid())
