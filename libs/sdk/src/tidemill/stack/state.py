"""The stack's state file: who runs, where, how it goes."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tidemill.stack.endpoints import Endpoints

STARTING, READY, STOPPING, STOPPED, FAILED = "starting", "ready", "stopping", "stopped", "failed"
BACKING_OFF = "backing-off"
PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessState:
    """One process under the supervisor; `seconds_to_ready` is that of its latest start.

    `started` tells a reused pid from the same process.
    """

    name: str
    state: str
    pid: int | None = None
    started: int | None = None
    restarts: int = 0
    exit_code: int | None = None
    seconds_to_ready: float | None = None


@dataclass(frozen=True)
class StackState:
    """What the state file holds; `supervisor_started` tells a reused pid from the same process."""

    name: str
    status: str
    supervisor_pid: int
    supervisor_started: int
    control: str
    endpoints: Endpoints
    ports: Mapping[str, int] = field(default_factory=dict)
    processes: tuple[ProcessState, ...] = ()
    message: str = ""
    seconds_to_ready: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "endpoints": self.endpoints.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "StackState":
        processes = tuple(ProcessState(**process) for process in value["processes"])
        return cls(**{**value, "endpoints": Endpoints.from_json(value["endpoints"]), "processes": processes})

    def process(self, name: str) -> ProcessState | None:
        return next((process for process in self.processes if process.name == name), None)


def write_private(path: Path, text: str) -> None:
    """Replace the file in one step, readable by its owner alone (it holds passwords)."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    scratch.replace(path)


def write_state(path: Path, state: StackState) -> None:
    write_private(path, json.dumps(state.to_json(), indent=1))


def read_state(path: Path) -> StackState | None:
    """Return what the file says, or None where there is none that says it.

    A machine that lost its power leaves an empty one, another checkout one of another form: no supervisor runs by it.
    """
    try:
        return StackState.from_json(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None


def process_started(pid: int) -> int | None:
    """Return the process's start time in clock ticks since boot; None when it does not run.

    A zombie counts as dead: it holds no port and no file. Where there is no /proc, every live pid answers 0.
    """
    if not PROC.exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        return 0
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the name in parentheses, may hold anything; the rest is plain.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def processes_alive(state: StackState) -> list[ProcessState]:
    """Return those of the state's processes that still run."""
    return [
        one
        for one in state.processes
        if one.pid is not None and one.started is not None and process_started(one.pid) == one.started
    ]


def supervisor_alive(state: StackState | None) -> bool:
    """Say whether the supervisor that wrote this state still runs."""
    return state is not None and process_started(state.supervisor_pid) == state.supervisor_started
