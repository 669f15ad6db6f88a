"""Starts workers of the feature service in milliseconds: loads the service once, and forks a process for each.

Reads orders from its standard input, one JSON object a line: {"environment": {…}, "output": path}; answers
{"started": pid}, and {"ended": pid, "code": …} when one is gone. Its workers die with it.
"""

import gc
import json
import os
import signal
import sys
from types import FrameType

import tidemill_feature.adapters.archive  # noqa: F401 -- what the offline role loads late takes a second
from tidemill_feature.app import open_service
from tidemill_feature.settings import Settings
from tidemill_runtime.lifecycle import main
from tidemill_testkit.orphans import tie


def answer(**what: int) -> None:
    """Write one line; in one call, since a signal handler writes too."""
    os.write(1, json.dumps(what).encode() + b"\n")


def reap(number: int, frame: FrameType | None) -> None:
    """Say which workers have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        answer(ended=pid, code=os.waitstatus_to_exitcode(status))


def work(order: dict[str, object], nursery: int) -> None:
    """Be a worker: as `python -m tidemill_feature` would."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    tie(nursery)
    output = os.open(str(order["output"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    environment = order["environment"]
    assert isinstance(environment, dict)
    os.environ.update(environment)
    main(open_service, Settings)


def serve() -> None:
    """Fork a worker for each order, until the orders end."""
    signal.signal(signal.SIGCHLD, reap)
    gc.freeze()
    nursery = os.getpid()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            work(order, nursery)
        answer(started=pid)


if __name__ == "__main__":
    serve()
