"""Ports that nobody listens on."""

import socket

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def free_address() -> str:
    """Return an address on loopback that a service may listen on."""
    return f"{LOOPBACK}:{free_port()}"
