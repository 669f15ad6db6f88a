"""Processes that a run starts, and ends when it likes."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tidemill_testkit.orphans import dying_with_us


def begun(command: Sequence[str], output: Path) -> "subprocess.Popen[bytes]":
    """Start a server that does not outlive us, even if we are killed."""
    with output.open("ab") as written:
        return subprocess.Popen(
            dying_with_us(command),
            stdout=written,
            stderr=written,
        )


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process of ours, frozen or not, and wait until it is gone."""
    process.kill()
    process.wait()
