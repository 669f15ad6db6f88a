"""Processes of a nursery are what `python -m` would be, and end when they are told to, or with it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidemill_testkit.eventually import eventually
from tidemill_testkit.nursery import Nursery

MAIN = """
import os, sys, time
from sample import app
if __name__ == "__main__":
    print(app.LOADED_BY, os.environ["WORD"], sys.argv, "LEFT" in os.environ, flush=True)
    if os.environ["WORD"] == "stay":
        time.sleep(600)
    if os.environ["WORD"] == "fail":
        raise ValueError("as asked")
    sys.exit(int(os.environ["WORD"]))
"""


@pytest.fixture
def nursery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    package = tmp_path / "sample"
    package.mkdir()
    for name, text in (
        ("__init__", ""),
        ("__main__", MAIN),
        ("app", "import os\nLOADED_BY = os.getpid()"),
        ("settings", ""),
        ("late", "import os\nos.environ['LEFT'] = 'by the nursery'"),
    ):
        (package / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    nursery = Nursery("sample", "sample.late")
    yield nursery
    nursery.close()


def test_each_runs_the_package_with_its_own_variables_and_code(nursery: Nursery, tmp_path: Path) -> None:
    loaded = set()
    for word in ("0", "3"):
        process = nursery.start({"WORD": word}, tmp_path / word)
        assert process.wait(20) == int(word) == process.poll()
        by, rest = (tmp_path / word).read_text().split(maxsplit=1)
        loaded.add(by)
        assert rest.startswith(f"{word} [")
        assert rest.endswith("False\n")
    assert len(loaded) == 1


def test_what_fails_says_why_and_a_nursery_goes_on(nursery: Nursery, tmp_path: Path) -> None:
    assert nursery.start({"WORD": "fail"}, tmp_path / "fail").wait(20) == 1
    assert "ValueError: as asked" in (tmp_path / "fail").read_text()
    assert nursery.start({"WORD": "0"}, tmp_path / "again").wait(20) == 0


def test_a_signal_is_a_negative_code_and_one_more_is_none(nursery: Nursery, tmp_path: Path) -> None:
    process = nursery.start({"WORD": "stay"}, tmp_path / "out")
    eventually((tmp_path / "out").exists)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    process.send_signal(signal.SIGKILL)


def test_all_end_with_the_nursery(nursery: Nursery, tmp_path: Path) -> None:
    processes = [nursery.start({"WORD": "stay"}, tmp_path / name) for name in ("a", "b")]
    nursery.close()

    def gone() -> bool:
        states = [Path(f"/proc/{one.pid}/status") for one in processes]
        return all(not state.exists() or "State:\tZ" in state.read_text() for state in states)

    eventually(gone)
