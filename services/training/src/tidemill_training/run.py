"""`python -m tidemill_training.run PARENT_PID MEMORY_BYTES CPU_S [LIBRARY]`: one attempt of one run, isolated.

Limits come first, libraries second, the spec (stdin) third: a process may be started before its spec is known. Lines
of JSON on stdout say how far it is and how it ended; what libraries print goes to stderr.
"""

import ctypes
import os
import resource
import signal
import sys
from importlib import import_module

from tidemill_training.spec import Line, RunSpec, to_line

_PR_SET_PDEATHSIG = 1


def bound(parent_pid: int, memory_bytes: int, cpu_s: int) -> None:
    """Limit memory, CPU and core dumps, and end with the parent, however that ends (Linux)."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            # The parent died before the wish was known.
            sys.exit(1)


def main(arguments: list[str]) -> None:
    """Run one attempt; without a spec (the parent changed its mind) do nothing."""
    bound(*map(int, arguments[:3]))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work = import_module("tidemill_training.adapters.attempt")
    for library in arguments[3:]:
        work.preload(library)
    raw = sys.stdin.buffer.read()
    if not raw:
        return

    def emit(line: Line) -> None:
        answers.write(to_line(line))

    emit(work.attempt(RunSpec.from_json(raw), emit))


if __name__ == "__main__":
    main(sys.argv[1:])
