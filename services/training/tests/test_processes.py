"""A run's process: what it answers, how it dies, and what is left of it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_testkit.eventually import aeventually, eventually
from tidemill_training.adapters.processes import Bounds, Launch, RunCrashedError, open_process
from tidemill_training.spec import Done, Failed, Places, Progress, RunSpec

BOUNDS = Bounds(memory_bytes=4 * 1024**3, cpu_s=60, wall_s=30.0)
PREAMBLE = "import json, os, signal, subprocess, sys, time\nspec = json.loads(sys.stdin.read())\n"

Script = Callable[[str], str]


def spec() -> RunSpec:
    record = definition.DefinitionRecord(definition=definition.Definition(pipelines=[definition.Pipeline(name="p")]))
    return RunSpec("run-1", record, monitoring.RetrainRequest(), None, 0.15, False, Places("", ""), {})


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return the name of a module that runs the given code after it has read its spec."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(code: str) -> str:
        (tmp_path / "stand_in.py").write_text(PREAMBLE + code)
        return "stand_in"

    return write


async def ask(module: str, bounds: Bounds = BOUNDS) -> tuple[Done | Failed, list[Progress]]:
    seen: list[Progress] = []

    async def on_progress(line: Progress) -> None:
        seen.append(line)

    async with open_process(Launch("run-1", "xgboost", bounds), module) as process:
        return await process.ask(spec(), on_progress), seen


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_progress_and_answer_come_back_in_order(script: Script) -> None:
    answer, seen = await ask(
        script(
            "print(json.dumps({'kind': 'progress', 'phase': 'fit', 'progress': 0.5}))\n"
            "print(json.dumps({'kind': 'failed', 'reason': spec['run_id']}))"
        )
    )
    assert answer == Failed("run-1")
    assert seen == [Progress("fit", 0.5)]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("sys.exit(3)", "exit code 3"),
        ("pass", "exit code 0"),
        ("print('hello')", "no answer"),
        ("print('x' * 9_000_000)", "no answer"),
        ("raise MemoryError", "exit code 1"),
    ],
)
async def test_a_process_that_ends_without_an_answer_is_a_crash_with_its_reason(
    script: Script, code: str, reason: str
) -> None:
    with pytest.raises(RunCrashedError, match=reason):
        await ask(script(code))


async def test_a_process_that_dies_before_it_reads_its_spec_is_a_crash(script: Script, tmp_path: Path) -> None:
    script("")
    (tmp_path / "stand_in.py").write_text("raise SystemExit(4)")
    with pytest.raises(RunCrashedError, match="exit code 4"):
        await ask("stand_in")


async def test_a_process_past_its_time_is_killed_with_what_it_started(script: Script, tmp_path: Path) -> None:
    child = tmp_path / "child"
    module = script(
        f"child = subprocess.Popen(['sleep', '60'])\nopen({str(child)!r}, 'w').write(str(child.pid))\ntime.sleep(60)"
    )
    with pytest.raises(RunCrashedError, match="longer than 5 s"):
        await ask(module, Bounds(BOUNDS.memory_bytes, BOUNDS.cpu_s, 5.0))
    await aeventually(lambda: not alive(int(child.read_text())), claim="the grandchild is gone")


async def test_a_cancelled_call_leaves_no_process(script: Script, tmp_path: Path) -> None:
    place = tmp_path / "pid"
    module = script(f"open({str(place)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    task = asyncio.ensure_future(ask(module))
    await aeventually(lambda: place.exists() and place.read_text(), claim="the process has begun")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(int(place.read_text()))


RUN = "tidemill_training.run"
WAITING = (
    "import sys, tidemill_training.run as run\nrun.bound({parent}, {memory}, {cpu})\nprint('bounded', flush=True)\n"
)


def bounded(code: str, memory: int = 1024**3, cpu: int = 30) -> subprocess.CompletedProcess[str]:
    text = WAITING.format(parent=os.getpid(), memory=memory, cpu=cpu) + code
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=60)


def test_memory_and_cpu_are_bounded_before_anything_is_loaded() -> None:
    assert "MemoryError" in bounded("bytearray(2 * 1024**3)").stderr
    assert bounded("while True: pass", cpu=1).returncode == -signal.SIGXCPU


def test_a_process_whose_parent_is_gone_ends_by_itself() -> None:
    orphan = subprocess.run(
        [sys.executable, "-m", RUN, "1", str(4 * 1024**3), "30"], stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert orphan.returncode == 1


def test_a_run_loads_no_database_and_nothing_for_interfaces_that_nobody_uses() -> None:
    code = (
        "import sys, tidemill_training.run as run\n"
        f"run.main(['{os.getpid()}', str(8 * 1024**3), '60', 'xgboost'])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    told_nothing = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(told_nothing.stderr.split())
    assert {"xgboost", "pyiceberg", "onnxruntime"} <= loaded
    assert not {"sqlalchemy", "asyncpg", "psycopg2", "pandas", "sklearn", "aiokafka", "grpc"} & loaded


def test_a_run_dies_with_its_parent_even_by_kill_9(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    inner = (
        "import os, time, tidemill_training.run as run\n"
        "run.bound(os.getppid(), 2**32, 30)\n"
        f"open({str(place)!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    outer = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}])"
    parent = subprocess.Popen([sys.executable, "-c", outer])
    eventually(lambda: place.exists() and place.read_text(), claim="the run has begun")
    parent.kill()
    parent.wait()
    eventually(lambda: not alive(int(place.read_text())), claim="the run is gone")
