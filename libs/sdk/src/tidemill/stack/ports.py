"""Choose TCP ports that are free on loopback and stay free."""

import fcntl
import os
import random
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral range (32768 and up), where an outgoing connection may take the port of a restarting server.
FIRST, LAST = 20_000, 32_000
ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Say whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


class Claims:
    """Ports that this process keeps from others that ask the same file, until it ends: a locked byte is a port.

    Stacks that start at one time would else choose what the other has not bound yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, port: int) -> bool:
        """Claim a port; False where another has it, or something listens there."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except BlockingIOError:
            return False
        return is_free(port)


def choose(
    names: Iterable[str], earlier: Mapping[str, int], rng: random.Random, take: Callable[[int], bool]
) -> dict[str, int]:
    """Return a port for each name that could be taken, the earlier one where it still can."""
    chosen: dict[str, int] = {}
    for name in names:
        before = earlier.get(name)
        taken = set(chosen.values())
        if before is not None and before not in taken and take(before):
            chosen[name] = before
        else:
            chosen[name] = _fresh(taken | set(earlier.values()), rng, take)
    return chosen


def _fresh(taken: set[int], rng: random.Random, take: Callable[[int], bool]) -> int:
    for _ in range(ATTEMPTS):
        port = rng.randrange(FIRST, LAST)
        if port not in taken and take(port):
            return port
    raise OSError(f"no free port found between {FIRST} and {LAST} in {ATTEMPTS} attempts")
