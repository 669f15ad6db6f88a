"""Ports for tests that run in several processes at a time."""

import subprocess
import sys

from tidemill_testkit.ports import BLOCK, free_port

OTHER = "from tidemill_testkit.ports import free_port; print(*{free_port() for _ in range(50)}, flush=True); input()"


def test_no_process_is_given_what_another_may_take_before_it_listens() -> None:
    others = [
        subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ours = {free_port() for _ in range(BLOCK - 1)}
    assert len(ours) == BLOCK - 1, "each has its turn before one comes twice"
    taken = [ours]
    for other in others:
        assert other.stdout is not None
        taken.append(set(map(int, other.stdout.readline().split())))
        assert len(taken[-1]) == 50
    assert len(set.union(*taken)) == sum(map(len, taken))
    for other in others:
        other.communicate("\n", timeout=60)
