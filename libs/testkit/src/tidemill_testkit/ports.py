"""Ports that nobody listens on, and that nobody takes before a test does."""

import random
import socket
from functools import cache
from itertools import count

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral range, of which any outgoing connection may take a port before the test's service has it, or
# while that service restarts; and below what the local stack chooses from.
FIRST, LAST = 10_000, 20_000
BLOCK = 100


def free_port(*, beside: int = 0) -> int:
    """Return a port of this process's own that is free on loopback now, as is the one that lies `beside` above it.

    Every port of the block has its turn before one is given twice.
    """
    _, first, turns = _block()
    for _ in range(BLOCK - 1):
        port = first + 1 + next(turns) % (BLOCK - 1)
        if is_free(port) and is_free(port + beside):
            return port
    raise OSError(f"no port from {first + 1} to {first + BLOCK - 1} is free")


@cache
def _block() -> tuple[socket.socket, int, "count[int]"]:
    """Take a block of ports for as long as this process lives: whoever listens on its first one has them all.

    Tests run in several processes at a time, and a port is looked for seconds before its service listens on it.
    """
    blocks = list(range(FIRST, LAST, BLOCK))
    random.SystemRandom().shuffle(blocks)
    for first in blocks:
        held = socket.socket()
        try:
            held.bind((LOOPBACK, first))
            held.listen()
        except OSError:
            held.close()
            continue
        return held, first, count()
    raise OSError(f"every block of ports between {FIRST} and {LAST} is taken")


def is_free(port: int) -> bool:
    """Say whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_address() -> str:
    """Return an address on loopback that a service may listen on."""
    return f"{LOOPBACK}:{free_port()}"
