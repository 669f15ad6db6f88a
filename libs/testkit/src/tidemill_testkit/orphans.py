"""No process that a test starts outlives the test's own, even where that one is killed -9.

Begun by this file as a script, which ties itself to its parent and becomes the command: a function run between fork and
exec (`preexec_fn`) hangs now and then in a process that has gRPC's threads.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def dying_with_us(command: Sequence[str]) -> list[str]:
    """Return the command of a child that the kernel kills when the thread that starts it ends (Linux)."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def tie(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the wish was known
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 -- the test's own command
