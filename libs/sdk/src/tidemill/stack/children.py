"""Start one child process that cannot outlive the supervisor."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tidemill.stack.programs import Program

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent: int, orphan_signal: int) -> Callable[[], None]:
    """Return what the child runs before exec: the kernel signals it when the supervisor's main thread ends.

    It runs after the change of user, which would clear the setting. Start children from the main thread only.
    """

    def arrange() -> None:
        if _LIBC is None:
            return
        _LIBC.prctl(PR_SET_PDEATHSIG, orphan_signal, 0, 0, 0)
        if os.getppid() != parent:  # the supervisor died between fork and here
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange


class Child(asyncio.SubprocessProtocol):
    """One running child. `exited` is set at its death, `closed` once nobody can write to its output any more.

    asyncio's own `Process.wait` returns only when both are true, so a child whose own child lives on would look alive.
    """

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink
        self._transport: asyncio.SubprocessTransport | None = None
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._sink(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.closed.set()

    def process_exited(self) -> None:
        self.exited.set()

    @property
    def transport(self) -> asyncio.SubprocessTransport:
        assert self._transport is not None
        return self._transport

    @property
    def pid(self) -> int:
        return self.transport.get_pid()

    @property
    def exit_code(self) -> int | None:
        return self.transport.get_returncode()

    def send(self, number: int) -> None:
        """Signal the child; one that has just died needs nothing."""
        with suppress(ProcessLookupError):
            self.transport.send_signal(number)


async def spawn(program: Program, inherited: Mapping[str, str], sink: Callable[[bytes], None]) -> Child:
    """Start the program in a process group of its own; `sink` gets everything it writes."""
    account: dict[str, Any] = {}
    if program.account is not None:
        account = {"user": program.account.uid, "group": program.account.gid, "extra_groups": []}
    _, child = await asyncio.get_running_loop().subprocess_exec(
        lambda: Child(sink),
        *program.command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**inherited, **program.environment},
        cwd=program.folder,
        start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor alone, which stops its children in order
        preexec_fn=die_with_parent(os.getpid(), program.orphan_signal),
        **account,
    )
    return child


def signal_group(pid: int, number: int) -> None:
    """Signal the child and whatever it started in its group; a group that is gone needs nothing."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
