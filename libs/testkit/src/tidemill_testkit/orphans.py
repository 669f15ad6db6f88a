"""No process that a test starts outlives the test's own, even where that one is killed -9."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def dying_with_us() -> Callable[[], None]:
    """Return the `preexec_fn` of a child that the kernel kills when the thread that starts it ends."""
    parent = os.getpid()

    def arrange() -> None:
        if _LIBC is None:
            return
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # we died between fork and here
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange
