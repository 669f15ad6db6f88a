"""How a service ends: each way has its code, and closing goes in reverse with a deadline."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tidemill_runtime.errors import Fatal, Stalled
from tidemill_runtime.lifecycle import EXIT_FATAL, EXIT_STALLED, exit_code, running
from tidemill_testkit.eventually import eventually
from tidemill_testkit.orphans import dying_with_us


class Noting:
    """A component that notes what happens to it."""

    def __init__(self, name: str, notes: list[str], failure: Exception | None = None) -> None:
        self._name = name
        self._notes = notes
        self._failure = failure
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._notes.append(f"open {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notes.append(f"close {self._name}")

    async def run(self) -> None:
        if self._failure is not None:
            raise self._failure
        await self._stopping.wait()
        self._notes.append(f"drained {self._name}")

    def stop(self) -> None:
        self._stopping.set()


async def test_what_opened_last_is_drained_and_closed_first() -> None:
    notes: list[str] = []
    async with running(Noting("store", notes)), running(Noting("intake", notes)):
        notes.append("body")
    assert notes == [
        *("open store", "open intake", "body"),
        *("drained intake", "close intake", "drained store", "close store"),
    ]


async def test_a_component_that_fails_ends_the_body_and_closes_the_rest() -> None:
    notes: list[str] = []
    with pytest.raises(Fatal):
        async with running(Noting("store", notes)), running(Noting("intake", notes, Fatal("broken"))):
            await asyncio.Event().wait()
    # Nothing is drained in a crash: what was not committed comes again.
    assert notes == ["open store", "open intake", "close intake", "close store"]


def test_exit_codes_find_the_cause_in_nested_groups() -> None:
    assert exit_code(ExceptionGroup("g", [ExceptionGroup("g", [Stalled("s")])])) == EXIT_STALLED
    assert exit_code(ExceptionGroup("g", [ValueError()])) == EXIT_FATAL


SERVICE = """
import asyncio, sys, threading, time
from contextlib import asynccontextmanager
from pathlib import Path
from pydantic_settings import SettingsConfigDict
from tidemill_runtime.errors import Fatal, Stalled
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import main, running
from tidemill_runtime.settings import ServiceSettings

mode, ready = sys.argv[1:3]

class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TIDEMILL_SAMPLE_")

@asynccontextmanager
async def open_service(settings, health):
    if mode == "slow-open":
        Path(ready).touch()
        await asyncio.sleep(60)
    async with running(GrpcServer(settings.grpc, health)), running(HttpServer(settings.http, health)):
        asyncio.get_running_loop().call_later(0.05, Path(ready).touch)
        await asyncio.to_thread(int)
        if mode == "stuck-thread":
            threading.Thread(target=time.sleep, args=(60,)).start()
        if mode == "stuck-loop":
            left.append(asyncio.create_task(stand_still()))
        if mode == "fatal":
            raise Fatal("cannot open")
        if mode == "stalled":
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(stall())
        yield
        if mode == "hang":
            await asyncio.Event().wait()

left = []

async def stand_still():
    try:
        await asyncio.Event().wait()
    finally:
        time.sleep(600)

async def stall():
    raise Stalled("no progress")

main(open_service, Settings)
"""


def start(mode: str, ready: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        dying_with_us([sys.executable, "-c", SERVICE, mode, str(ready)]),
        env={f"TIDEMILL_SAMPLE_{name.upper()}": value for name, value in environment.items()},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("mode", "code"),
    [("serve", 0), ("slow-open", 0), ("stuck-thread", 0), ("stuck-loop", 0), ("hang", 72)],
)
def test_sigterm_ends_in_order_or_at_the_deadline(mode: str, code: int, tmp_path: Path) -> None:
    process = start(mode, tmp_path / "ready", drain_s="1")
    eventually((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, lines = process.communicate(timeout=60)
    assert process.returncode == code, lines
    if mode in ("serve", "stuck-thread"):
        assert ("left_behind" in lines) is (mode == "stuck-thread"), lines


def test_a_signal_after_everything_is_closed_changes_no_exit_code(tmp_path: Path) -> None:
    process = start("stuck-loop", tmp_path / "ready")
    eventually((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    for line in process.stderr:
        if '"event": "stopped"' in line:
            break
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize(("mode", "code"), [("fatal", 70), ("stalled", 71)])
def test_a_crash_has_a_code_of_its_own(mode: str, code: int, tmp_path: Path) -> None:
    process = start(mode, tmp_path / "ready")
    _, lines = process.communicate(timeout=60)
    assert process.returncode == code, lines


def test_wrong_settings_say_which_and_exit_at_once(tmp_path: Path) -> None:
    process = start("serve", tmp_path / "ready", drain_s="soon")
    _, lines = process.communicate(timeout=60)
    assert process.returncode == 78
    assert "drain_s" in lines


def test_the_core_of_a_service_stays_small() -> None:
    code = (
        "import tidemill_runtime.settings, tidemill_runtime.stream, tidemill_runtime.lifecycle\n"
        "import tidemill_runtime.grpc_server, tidemill_runtime.http_server, sys\n"
        "heavy = {'fastapi', 'faust', 'asyncpg', 'redis', 'numpy', 'pyarrow', 'river'} & set(sys.modules)\n"
        "rss_kb = int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])\n"
        "print(sorted(heavy), rss_kb)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy, _, rss_kb = output.strip().rpartition(" ")
    assert heavy == "[]"
    assert int(rss_kb) < 120_000
