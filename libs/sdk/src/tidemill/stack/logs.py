"""One log file per process, rotated by size."""

from pathlib import Path

BYTES_MAX = 10 * 1024 * 1024
KEPT = 3


class LogFile:
    """Appends bytes and starts a new file at a line's end once the size is reached; `.1` is the youngest old one."""

    def __init__(self, path: Path, *, bytes_max: int = BYTES_MAX, kept: int = KEPT) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._kept = kept
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._began = self._file.tell()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        if self._file.tell() >= self._bytes_max and data.endswith(b"\n"):
            self._rotate()

    def note(self, text: str) -> None:
        """Add a line of the supervisor's own."""
        self.write(f"--- {text}\n".encode())

    def tail(self, count: int) -> list[str]:
        """Return the last lines of what was written through this object, not before it."""
        return last_lines(self.path, count, since=self._began)

    def _rotate(self) -> None:
        self._file.close()
        for age in range(self._kept - 1, 0, -1):
            older = self._old(age)
            if older.exists():
                older.replace(self._old(age + 1))
        self.path.replace(self._old(1))
        self._file = self.path.open("ab", buffering=0)
        self._began = 0

    def _old(self, age: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{age}")

    def close(self) -> None:
        self._file.close()


def last_lines(path: Path, count: int, *, since: int = 0, bytes_max: int = 256 * 1024) -> list[str]:
    """Return the file's last lines, looking at no more than its last `bytes_max` bytes and none before `since`."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(since, size - bytes_max)
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    whole = lines if start == since else lines[1:]
    return whole[-count:] if count > 0 else []
