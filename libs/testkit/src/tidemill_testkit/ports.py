"""Ports that nobody listens on, and that nobody takes before a test does."""

import random
import socket

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral range, of which any outgoing connection may take a port before the test's service has it, or
# while that service restarts; and below what the local stack chooses from.
FIRST, LAST = 10_000, 20_000
ATTEMPTS = 200
_CHANCE = random.SystemRandom()


def free_port(*, beside: int = 0) -> int:
    """Return a port that is free on loopback now, as is the one that lies `beside` above it."""
    for _ in range(ATTEMPTS):
        port = _CHANCE.randrange(FIRST, LAST)
        if is_free(port) and is_free(port + beside):
            return port
    raise OSError(f"no free port found between {FIRST} and {LAST} in {ATTEMPTS} attempts")


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
