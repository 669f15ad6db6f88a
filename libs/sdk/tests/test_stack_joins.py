"""`tidemill up` beside a stack that already runs: taken where it is the one asked for, refused where it is another."""

import json
import os
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest
from tidemill.cli.main import app
from tidemill.stack import control
from tidemill.stack.claim import claim
from tidemill.stack.endpoints import Endpoints, ServiceAddress
from tidemill.stack.plan import Layout
from tidemill.stack.spec import SERVICES
from tidemill.stack.state import READY, STARTING, StackState, process_started, write_state
from typer.testing import CliRunner, Result

REDIS = "redis://:secret@127.0.0.1:2/0"
POSTGRES = "postgresql://tidemill:secret@127.0.0.1:3/tidemill"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stack whose supervisor, this very process, answers that it is ready."""
    state = StackState(
        name="local",
        status=READY,
        supervisor_pid=os.getpid(),
        supervisor_started=process_started(os.getpid()) or 0,
        control=str(tmp_path / "door"),
        endpoints=Endpoints(
            kafka="127.0.0.1:1",
            redis=REDIS,
            postgres_dsn=POSTGRES,
            topic_prefix="mine.",
            services={name: ServiceAddress("127.0.0.1:4", "127.0.0.1:5") for name in SERVICES},
        ),
        seconds_to_ready=1.0,
    )
    write_state(Layout(tmp_path).state_file, state)
    monkeypatch.setattr(control, "ask", lambda *_arguments, **_options: {"status": READY})
    return tmp_path


def up(home: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["up", "--home", str(home), "--json", *options])


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--kafka", "127.0.0.1:1", "--redis", REDIS, "--postgres", POSTGRES),
        ("--topic-prefix", "mine.", "--only", ",".join(reversed(SERVICES))),
    ],
)
def test_what_runs_as_asked_is_left_as_it_is(home: Path, options: tuple[str, ...]) -> None:
    before = Layout(home).state_file.read_bytes()
    result = up(home, *options)
    assert (result.exit_code, json.loads(result.stdout)["status"]) == (0, READY)
    assert Layout(home).state_file.read_bytes() == before


def test_what_is_about_to_start_is_awaited(home: Path) -> None:
    file = Layout(home).state_file
    said = file.with_name("said")
    file.rename(said)
    lock = claim(Layout(home))
    assert lock is not None
    try:
        Timer(0.3, said.rename, (file,)).start()
        result = up(home)
    finally:
        os.close(lock)
    assert (result.exit_code, json.loads(result.stdout)["status"]) == (0, READY)
    assert not Layout(home).spec_file.exists()


def test_what_ends_while_it_is_awaited_is_not_awaited_any_longer(home: Path) -> None:
    file = Layout(home).state_file
    state = StackState.from_json({**json.loads(file.read_text()), "status": STARTING})
    write_state(file, state)
    Timer(0.3, write_state, (file, replace(state, supervisor_started=1))).start()
    result = up(home)
    assert (result.exit_code, "ended before it was ready" in result.stdout) == (1, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--kafka", "k:9"), "its Kafka is 127.0.0.1:1, not k:9)"),
        (("--redis", "redis://:hidden@r"), "its Redis is redis://:***@127.0.0.1:2/0, not redis://:***@r)"),
        (("--postgres", "postgresql://p"), "not postgresql://p)"),
        (("--topic-prefix", "tidemill."), "its topics begin with mine., not tidemill.)"),
        (
            ("--only", "servers"),
            "its services are registry, ingestion, feature, training, serving, monitoring, not none)",
        ),
        (("--only", "serving", "--kafka", "k:9"), "not k:9; its services are registry"),
    ],
)
def test_what_runs_otherwise_is_named_and_refused(home: Path, options: tuple[str, ...], said: str) -> None:
    result = up(home, *options)
    error = json.loads(result.stdout)["error"]
    assert result.exit_code == 1
    assert error.startswith("stack 'local' already runs otherwise than asked (its ")
    assert said in error
    assert error.endswith(
        "stop it first with `tidemill down` and the same --name or --home, or start another stack with --name"
    )
    assert "secret" not in error
    assert "hidden" not in error


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = up(tmp_path / "file" / "stack")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"].startswith(f"the stack cannot be started in {tmp_path}/file/stack: ")
