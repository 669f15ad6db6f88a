"""What a killed test leaves behind: nothing."""

import os
import subprocess
import sys

import pytest
from tidemill_testkit.eventually import eventually

PARENT = """
import subprocess, sys
from tidemill_testkit.orphans import dying_with_us

child = subprocess.Popen(dying_with_us([sys.executable, "-c", "import time; time.sleep(60)"]))
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_process_ends_with_the_killed_one_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.kill()
    eventually(lambda: gone(child), 10, claim="the child is gone")


def gone(pid: int) -> bool:
    """Say whether no such process runs; one that nobody has waited for yet does not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True
