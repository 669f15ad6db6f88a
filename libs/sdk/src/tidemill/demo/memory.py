"""Peak resident memory of the stack's processes, sampled from outside."""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType

import psutil

SAMPLE_EVERY_S = 1.0


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
            for name, pid in self._processes().items():
                resident = resident_mb(pid)
                self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), resident)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process and its children; 0 once it is gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return float(sum(member.memory_info().rss for member in family)) / 1e6
    except psutil.NoSuchProcess:
        return 0.0
