"""What one process under the supervisor is: its command, its user, how it is known to be ready and how it stops."""

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Account:
    """The unprivileged user a process drops to; only root can."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Program:
    """One process to keep alive. `ready` answers now and never waits."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict)
    # Where it runs; the supervisor's own folder unless told.
    folder: Path | None = None
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_deadline_s: float = 20.0
    # Sent by the kernel when the supervisor itself dies.
    orphan_signal: signal.Signals = signal.SIGKILL
