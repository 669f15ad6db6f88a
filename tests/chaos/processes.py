"""Processes that a run starts, and ends when it likes."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tidemill_testkit.orphans import dying_with_us


def begun(command: Sequence[str], output: Path) -> "subprocess.Popen[bytes]":
    """Start a server that does not outlive us, even if we are killed."""
    with output.open("ab") as written:
        return subprocess.Popen(
            command,
            stdout=written,
            stderr=written,
            preexec_fn=dying_with_us(),  # noqa: PLW1509 -- one system call, and no other thread of ours holds a lock
        )


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process of ours, frozen or not, and wait until it is gone."""
    process.kill()
    process.wait()
