"""`python -m tidemill_training.run PARENT_PID MEMORY_BYTES CPU_S [LIBRARY]`: one attempt of one run, isolated.

Limits come first, libraries second, the spec (stdin) third: a process may be started before its spec is known. Lines
of JSON on stdout say how far it is and how it ended; what libraries print goes to stderr.
"""

import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

_PR_SET_PDEATHSIG = 1
# What pyarrow and a learner's library load where they find it, for interfaces that nobody uses here: a second, 130 MB.
_LEFT_OUT = {"xgboost": frozenset({"pandas", "sklearn"})}


class LeftOut:
    """A finder that says of some modules that they are not installed."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Raise `ModuleNotFoundError` for a module that is left out; leave the others to the next finder."""
        if name in self._names:
            raise ModuleNotFoundError(f"{name} is left out here", name=name)


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
    for library in arguments[3:]:
        sys.meta_path.insert(0, LeftOut(_LEFT_OUT.get(library, frozenset())))
    # A run makes few cycles and ends soon: the collector would look through modules and rows for nothing.
    gc.disable()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work = import_module("tidemill_training.adapters.attempt")
    for library in arguments[3:]:
        work.preload(library)
    raw = sys.stdin.buffer.read()
    if not raw:
        return
    work.answer(raw, answers.write)
    # All is said: freeing a gigabyte object by object would only keep the answer waiting.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
