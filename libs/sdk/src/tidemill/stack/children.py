"""Start one child process that cannot outlive the supervisor."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tidemill.stack.programs import Program

PR_SET_PDEATHSIG = 1
CHUNK_BYTES = 64 * 1024
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


async def spawn(program: Program, inherited: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start the program in a process group of its own, its output in one pipe."""
    account: dict[str, Any] = {}
    if program.account is not None:
        account = {"user": program.account.uid, "group": program.account.gid, "extra_groups": []}
    return await asyncio.create_subprocess_exec(
        *program.command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**inherited, **program.environment},
        cwd="/" if program.account is not None else None,
        start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor alone, which stops its children in order
        preexec_fn=die_with_parent(os.getpid(), program.orphan_signal),
        **account,
    )


async def pump(process: asyncio.subprocess.Process, sink: Callable[[bytes], None]) -> None:
    """Hand on everything the process writes until it closes its output."""
    assert process.stdout is not None
    while chunk := await process.stdout.read(CHUNK_BYTES):
        sink(chunk)


def signal_group(pid: int, number: int) -> None:
    """Signal the child and whatever it started in its group; a group that is gone needs nothing."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
