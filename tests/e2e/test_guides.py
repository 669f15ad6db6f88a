"""The guides of docs/ do what they say: every command is run as it is written, in order, on a stack.

What starts and stops the stack, and enters its folder, is left out: a stack of the tests takes its place.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tidemill.stack import Stack
from tidemill_testkit.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
# Some commands, and what the guide says they print, if it says so right below.
BLOCK = re.compile(r"^```sh\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
NOT_HERE = re.compile(r"^(make |source |cd |mkdir |tidemill (up|down)\b).*\n", re.MULTILINE)
# What a command shows once what was asked for before it has happened; the guide says "after a few seconds".
SHOWS = {
    "tidemill features read deliveries": r"bistro +mean_minutes_1h +[0-9.]+ +PRESENT",
    "tidemill models list": "champion",
    "tidemill predict": '"version": 1',
    "tidemill tail monitoring.outcomes.v1": '"join_key": "new',
}
# Lines of a table of features. The tutorial's data are fixed, so are these: each is printed as it is shown.
FIXED = re.compile(r"^(?:(?:JFK|N14228|N00000) +\w+_|tidemill_feature_records).*$", re.MULTILINE)


class Terminal:
    """A reader's shell, in a folder beside docs/, with the tests' stack as the one that runs."""

    def __init__(self, folder: Path, stack_home: Path) -> None:
        (folder / "docs").symlink_to(ROOT / "docs")
        self._folder = folder / "guide"
        (self._folder / ".tidemill").mkdir(parents=True)
        (self._folder / ".tidemill/local").symlink_to(stack_home)

    def run(self, commands: str) -> str:
        """Return what a block of commands prints; fail where one fails."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        script = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(
            script,
            cwd=self._folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        return done.stdout


def blocks(guide: str) -> list[tuple[str, str]]:
    """Return the commands of a guide, block by block, each with what it is said to print."""
    found = BLOCK.findall((ROOT / "docs" / guide).read_text())
    return [(kept, said) for block, said in found if (kept := NOT_HERE.sub("", block)).strip()]


def followed(terminal: Terminal, commands: str, fixed: Sequence[str] = ()) -> str:
    """Run a block; where it shows what takes a moment, until it does."""
    awaited = [pattern for command, pattern in SHOWS.items() if command in commands]
    awaited += [r" +".join(map(re.escape, line.split())) for line in fixed]
    if not awaited:
        return terminal.run(commands)

    def shown() -> str:
        printed = terminal.run(commands)
        assert [pattern for pattern in awaited if not re.search(pattern, printed)] == [], printed
        return printed

    return eventually(shown, claim=f"{commands} shows what it should")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A fresh stack, as a reader has it."""
    fresh = Stack("guides", tmp_path_factory.mktemp("guides") / "stack")
    try:
        fresh.start(attached=True)
        yield fresh
    finally:
        fresh.stop()


@pytest.fixture
def terminal(stack: Stack, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, stack.layout.home)


def test_a_new_user_gets_from_nothing_to_a_prediction_by_the_start_guide(terminal: Terminal) -> None:
    everything = "\n".join(followed(terminal, commands) for commands, _ in blocks("start.md"))
    assert "6,720 of 6,720 rows sent are kept" in everything
    assert re.search(r"kebab +mean_minutes_1h +NOT_FOUND", everything)
    assert '"orders.orders_1h"' in everything


def test_the_tutorial_shows_what_it_says(terminal: Terminal) -> None:
    tables = [(commands, FIXED.findall(said)) for commands, said in blocks("tutorial.md")]
    assert sum(len(lines) for _, lines in tables) > 20
    printed = "\n".join(followed(terminal, commands, lines) for commands, lines in tables)
    assert '"origin.worst_delay_2h": 300.0' in printed
