"""Quix Streams in a virtual environment of its own: the baseline of `feature.vs_quix`.

`python quix_app.py KAFKA TOPIC REDIS EVENTS STATE` is run inside that environment: tumbling windows of five minutes
with a count and a mean of every key, kept in Redis as they stand. It prints the seconds, on the clock and of the
processor, from the first event until everything is in Redis. The rest of this module runs outside of it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSION = "3.28.1"
ENVIRONMENT = Path("build/quix")
INSTALL_S, RUN_S = 600, 240


class MissingError(Exception):
    """Quix Streams cannot be had here; the message says why."""


def install() -> Path:
    """Return the environment's Python; made once. Raises `MissingError`."""
    python = ENVIRONMENT / "bin" / "python"
    if (ENVIRONMENT / f"quixstreams-{VERSION}").exists():
        return python.absolute()
    # uv names itself to what it runs; the Makefile's own is on no PATH.
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise MissingError("there is no uv to install it with: run `make bench`, or put uv on the PATH")
    steps = (
        [uv, "venv", "--quiet", "--clear", "--python", "3.11", str(ENVIRONMENT)],
        [uv, "pip", "install", "--quiet", "--python", str(python), f"quixstreams[redis]=={VERSION}"],
    )
    for step in steps:
        try:
            subprocess.run(step, check=True, timeout=INSTALL_S, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            raise MissingError(f"it does not install: {error}") from error
    (ENVIRONMENT / f"quixstreams-{VERSION}").touch()
    return python.absolute()


def command(kafka: str, topic: str, redis_url: str, events: int, state: Path) -> list[str]:
    """Return what begins it. Raises `MissingError`."""
    return [str(install()), str(Path(__file__).absolute()), kafka, topic, redis_url, str(events), str(state)]


def taken(begun: list[str]) -> tuple[float, float]:
    """Return the seconds of what was begun by a command, on the clock and of the processor."""
    finished = subprocess.run(begun, check=True, timeout=RUN_S, capture_output=True, text=True)
    wall_s, cpu_s = json.loads(finished.stdout.splitlines()[-1])
    return wall_s, cpu_s


def fold(kafka: str, topic: str, redis_url: str, events: str, state: str) -> None:
    """Count and average; runs inside Quix's environment."""
    from datetime import datetime, timedelta
    from time import perf_counter, process_time
    from urllib.parse import urlsplit

    from quixstreams import Application
    from quixstreams.dataframe.windows import Count, Mean
    from quixstreams.sinks.community.redis import RedisSink

    where = urlsplit(redis_url)
    began: list[float] = []

    def at_ms(value: Any, headers: Any, timestamp: Any, timestamp_type: Any) -> int:
        if not began:
            began.extend((perf_counter(), process_time()))
        return int(datetime.fromisoformat(value["at"]).timestamp() * 1000)

    application = Application(
        broker_address=kafka,
        consumer_group=f"quix-{Path(state).name}",
        auto_offset_reset="earliest",
        state_dir=state,
        loglevel="WARNING",
    )
    sink = RedisSink(
        host=where.hostname,
        port=where.port,
        db=1,
        password=where.password,
        key_serializer=lambda key, value: f"quix:{key}:{value['start']}",
    )
    stream = application.dataframe(application.topic(topic, timestamp_extractor=at_ms))
    window = stream.tumbling_window(timedelta(minutes=5), grace_ms=timedelta(minutes=1))
    window.agg(count=Count(), mean=Mean("amount")).current().sink(sink)
    application.run(count=int(events), timeout=60)
    sys.stdout.write(json.dumps([perf_counter() - began[0], process_time() - began[1]]) + "\n")


if __name__ == "__main__":
    fold(*sys.argv[1:])
