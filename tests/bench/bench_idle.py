"""`idle.rss`: resident memory of the six services with nothing to do, beside the imports of a bare gRPC server."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tidemill.demo.memory import resident_mb
from tidemill.stack import Stack
from tidemill.stack.endpoints import Endpoints
from tidemill.stack.spec import SERVICES, External
from tidemill_testkit.orphans import dying_with_us

SETTLE_S = 10.0
BARE = "import asyncio, grpc.aio; s = grpc.aio.server(); input()"


def bare_server_mb() -> float:
    """Return the resident memory of a process that has only imported grpc.aio and made a server."""
    with subprocess.Popen(dying_with_us([sys.executable, "-c", BARE]), stdin=subprocess.PIPE) as process:
        time.sleep(2.0)
        size = resident_mb({"bare": process.pid})["bare"]
        process.communicate(b"\n")
    return size


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Start the six services beside existing servers, let them settle, and measure each."""
    external = External(kafka=servers.kafka, redis=servers.redis, postgres=servers.postgres_dsn)
    with tempfile.TemporaryDirectory(prefix="tm-idle-") as home:
        stack = Stack("idle", Path(home), external=external, topic_prefix="idle.")
        with stack.running_with():
            time.sleep(SETTLE_S)
            state = stack.state
            assert state is not None
            sizes = resident_mb({process.name: process.pid for process in state.processes if process.pid})
    baseline = bare_server_mb()
    services = {name: size for name, size in sizes.items() if name in SERVICES}
    values = sorted(services.values())

    def entry(name: str, value: float) -> dict[str, Any]:
        return {
            "name": name,
            "value": value,
            "unit": "MB",
            "baseline": "bare grpc.aio server",
            "baseline_value": baseline,
            "ratio": value / baseline,
            "min": values[0],
            "median": median(values),
            "max": values[-1],
            "runs": 1,
        }

    return [
        entry("idle.rss", sum(values)),
        *(entry(f"idle.rss.{name}", size) for name, size in sorted(services.items())),
    ]
