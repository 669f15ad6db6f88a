"""One Redis as a child process: append-only, bounded, full means an error and never a silent loss."""

import functools
from pathlib import Path

from tidemill.stack.health import redis_answers
from tidemill.stack.ports import LOOPBACK
from tidemill.stack.programs import Program
from tidemill.stack.state import write_private

MAX_MEMORY = "2gb"
DATABASES = 64


def configuration(data: Path, port: int, password: str) -> str:
    """Return the text of redis.conf."""
    settings = {
        "bind": LOOPBACK,
        "port": port,
        "requirepass": password,
        "dir": quoted(str(data)),
        "databases": DATABASES,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',  # the append-only file is the copy on disk; a second one would fork for nothing
        "maxmemory": MAX_MEMORY,
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "always-show-logo": "no",
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def quoted(text: str) -> str:
    r"""Return a text as one word of redis.conf.

    >>> print(quoted("/home/ann o'hara"))
    "/home/ann o'hara"
    """
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def url(port: int, password: str) -> str:
    return f"redis://:{password}@{LOOPBACK}:{port}/0"


def prepare(data: Path, port: int, password: str) -> Path:
    """Write the configuration (private: it holds the password) and return its path."""
    data.mkdir(parents=True, exist_ok=True)
    config = data / "redis.conf"
    write_private(config, configuration(data, port, password))
    return config


def program(server: Path, config: Path, port: int, password: str) -> Program:
    return Program(
        name="redis",
        command=(str(server), str(config)),
        ready=functools.partial(redis_answers, url(port, password)),
    )
