"""Why does it not work: each thing the stack needs, whether it is there, and what to do when it is not."""

import asyncio
import os
import platform
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from tidemill.stack import java, ports
from tidemill.stack.client import EXTRA, Stack
from tidemill.stack.control import socket_path
from tidemill.stack.health import http_ready, kafka_answers, postgres_answers, redis_answers
from tidemill.stack.logs import last_lines
from tidemill.stack.spec import INSTALL, SERVICES, StackError
from tidemill.stack.state import READY, STOPPED, StackState, supervisor_alive

FREE_DISK_BYTES_MIN = 2 * 1024**3
MEMORY_BYTES_MIN = 3 * 1024**3
LEARNERS = {"xgboost": "xgboost", "river": "river", "scikit-learn": "sklearn", "lightgbm": "lightgbm"}
IMPORT_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `ok` is None where nothing depends on it."""

    name: str
    ok: bool | None
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def examine(stack: Stack) -> Iterator[Finding]:
    """Look at the machine first, then at the stack as it runs."""
    yield _python()
    yield _packages("stack extra", EXTRA, INSTALL)
    yield _packages("services", tuple(f"tidemill_{name}" for name in SERVICES), "run `make install` in the checkout")
    yield _attempt("java", lambda: str(java.find()))
    yield _attempt("control socket", lambda: str(socket_path(stack.layout.home)))
    yield _attempt("free ports", _free_ports)
    yield _unprivileged_user()
    yield _disk(stack.layout.home)
    yield _memory()
    for label, module in LEARNERS.items():
        yield _learner(label, module)
    yield from _stack(stack)


def _python() -> Finding:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding("python", good, version, "" if good else "use Python 3.11 or 3.12: Redis's wheel has no later one")


def _packages(name: str, wanted: tuple[str, ...], fix: str) -> Finding:
    missing = [package for package in wanted if find_spec(package) is None]
    if missing:
        return Finding(name, False, f"missing: {', '.join(missing)}", fix)
    return Finding(name, True, "installed")


def _attempt(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, look())
    except (StackError, OSError) as error:
        return Finding(name, False, str(error), "see the message")


def _free_ports() -> str:
    free = sum(ports.is_free(port) for port in range(ports.FIRST, ports.FIRST + 100))
    if free == 0:
        raise OSError(f"no free port at {ports.LOOPBACK}:{ports.FIRST} and above; is loopback up?")
    return f"{free} of 100 tried on {ports.LOOPBACK}"


def _unprivileged_user() -> Finding:
    if os.geteuid() != 0:
        return Finding("user", True, "ordinary user")
    try:
        pwd.getpwnam("nobody")
    except KeyError:
        return Finding("user", False, "root, and there is no user `nobody`", "PostgreSQL refuses root: start as a user")
    return Finding("user", True, "root; PostgreSQL runs as nobody")


def _disk(home: Path) -> Finding:
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    good = free >= FREE_DISK_BYTES_MIN
    return Finding("disk", good, f"{free / 1024**3:.1f} GB free at {existing}", "" if good else "free at least 2 GB")


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    good = total >= MEMORY_BYTES_MIN
    return Finding("memory", good, f"{total / 1024**3:.1f} GB", "" if good else "the whole stack wants 3 GB")


def _learner(label: str, module: str) -> Finding:
    """Import in another process: a learner that cannot load its shared library must not take this one along."""
    if find_spec(module) is None:
        return Finding(f"learner {label}", None, "not installed", "")
    command = [sys.executable, "-c", f"import {module}; print({module}.__version__)"]
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            command, capture_output=True, text=True, check=False, timeout=IMPORT_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        return Finding(f"learner {label}", None, f"did not load in {IMPORT_DEADLINE_S:g} s", "")
    if done.returncode == 0:
        return Finding(f"learner {label}", True, done.stdout.strip())
    reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    fix = "install libgomp1" if "libgomp" in reason[0] else ""
    return Finding(f"learner {label}", None, reason[0], fix)


def _stack(stack: Stack) -> Iterator[Finding]:
    state = stack.state
    if state is None:
        yield Finding("stack", None, f"{stack.name!r} was never started here", "start it with `tidemill up`")
        return
    if not supervisor_alive(state):
        ended = state.status == STOPPED
        found = "stopped" if ended else f"the supervisor is gone (last seen {state.status}) {state.message}".rstrip()
        yield Finding("stack", None if ended else False, found, "start it with `tidemill up`")
        return
    yield Finding("stack", state.status == READY, f"{state.status}, supervisor {state.supervisor_pid}")
    answers = asyncio.run(probe(state))
    for process in state.processes:
        answering = answers.get(process.name, False)
        restarts = f", {process.restarts} restarts" if process.restarts else ""
        if process.state == READY and answering:
            yield Finding(process.name, True, f"ready{restarts}")
            continue
        tail = " / ".join(last_lines(stack.layout.log(process.name), 3))
        found = f"{process.state}, {'answers' if answering else 'does not answer'}{restarts}; {tail}"
        yield Finding(process.name, False, found, f"read `tidemill logs {process.name}`")


async def probe(state: StackState) -> dict[str, bool]:
    """Ask every server and service now whether it is ready."""
    endpoints = state.endpoints
    probes = {
        "kafka": kafka_answers(endpoints.kafka),
        "redis": redis_answers(endpoints.redis),
        "postgres": postgres_answers(endpoints.postgres_dsn),
        **{name: http_ready(address.http) for name, address in endpoints.services.items()},
    }
    return dict(zip(probes, await asyncio.gather(*probes.values()), strict=True))
