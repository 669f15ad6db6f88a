"""Choose TCP ports that are free on loopback and stay free."""

import random
import socket
from collections.abc import Iterable, Mapping

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


def choose(names: Iterable[str], earlier: Mapping[str, int], rng: random.Random) -> dict[str, int]:
    """Return a free port for each name, the earlier one where it is still free."""
    chosen: dict[str, int] = {}
    for name in names:
        before = earlier.get(name)
        taken = set(chosen.values())
        if before is not None and before not in taken and is_free(before):
            chosen[name] = before
        else:
            chosen[name] = _fresh(taken | set(earlier.values()), rng)
    return chosen


def _fresh(taken: set[int], rng: random.Random) -> int:
    for _ in range(ATTEMPTS):
        port = rng.randrange(FIRST, LAST)
        if port not in taken and is_free(port):
            return port
    raise OSError(f"no free port found between {FIRST} and {LAST} in {ATTEMPTS} attempts")
