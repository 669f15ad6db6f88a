"""Peak resident memory of the stack's processes, sampled from outside."""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType

import psutil

SAMPLE_EVERY_S = 2.0


class PeakMemory:
    """Samples `{name: pid}` from `processes` in a thread; children count with their parent."""

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        self._processes = processes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        # Largest resident set seen, in megabytes (10^6 bytes).
        self.peak_mb: dict[str, float] = {}

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            for name, resident in resident_mb(self._processes()).items():
                self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), resident)


def resident_mb(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the resident memory of processes with all that they started; one look at the machine for all of them."""
    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter(["ppid", "memory_info"]):
        children.setdefault(process.info["ppid"], []).append(process)
    resident = {process.pid: _resident(process) for found in children.values() for process in found}

    def family(pid: int) -> float:
        return resident.get(pid, 0.0) + sum(family(child.pid) for child in children.get(pid, ()))

    return {name: family(pid) for name, pid in pids.items()}


def _resident(process: psutil.Process) -> float:
    memory = process.info["memory_info"]
    return 0.0 if memory is None else float(memory.rss) / 1e6
