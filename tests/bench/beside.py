"""What a benchmark runs beside itself: processes that end with it, and the settings of a feature service."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tidemill.stack.endpoints import Endpoints
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.ports import free_address

STOP_S = 30.0


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[int]:
    """Run a Python process for the length of the block; yields its id."""
    command = dying_with_us([sys.executable, *arguments])
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as running:
        try:
            yield running.pid
        finally:
            running.terminate()
            running.wait(STOP_S)


def online_feature(servers: Endpoints, prefix: str) -> dict[str, str]:
    """Return the environment of a feature service that folds and answers, on a corner of its own."""
    values = {
        "KAFKA__BOOTSTRAP": servers.kafka,
        "KAFKA__TOPIC_PREFIX": prefix,
        "REDIS__URL": servers.redis,
        "ROLES": "online",
        "PROJECT": prefix.rstrip("."),
        "GRPC__LISTEN": free_address(),
        "LOG_LEVEL": "warning",
    }
    return {f"TIDEMILL_FEATURE_{name}": value for name, value in values.items()}
