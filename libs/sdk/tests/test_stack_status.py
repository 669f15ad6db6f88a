"""What `tidemill status` says above its table, and which stack the commands of one take."""

import json
import os
from pathlib import Path

import pytest
from tidemill.cli import stack_commands
from tidemill.cli.main import app
from tidemill.stack.endpoints import Endpoints
from tidemill.stack.plan import Layout
from tidemill.stack.state import BACKING_OFF, READY, STARTING, ProcessState, StackState, process_started, write_state
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("whole", "feature", "answers", "said"),
    [
        (READY, READY, True, "stack 'local': ready"),
        (READY, BACKING_OFF, False, "stack 'local': feature is backing-off"),
        (READY, STARTING, True, "stack 'local': feature is starting"),
        (READY, READY, False, "stack 'local': feature does not answer"),
        (STARTING, STARTING, False, "stack 'local': starting"),
    ],
)
def test_the_header_agrees_with_the_table_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str, feature: str, answers: bool, said: str
) -> None:
    pid = os.getpid()
    state = StackState(
        name="local",
        status=whole,
        supervisor_pid=pid,
        supervisor_started=process_started(pid) or 0,
        control="",
        endpoints=Endpoints(kafka="k:1", redis="redis://r", postgres_dsn="postgresql://p"),
        processes=(ProcessState("kafka", READY), ProcessState("feature", feature)),
    )
    write_state(Layout(tmp_path).state_file, state)

    async def probe(_state: StackState) -> dict[str, bool]:
        return {"kafka": True, "feature": answers}

    monkeypatch.setattr(stack_commands, "probe", probe)
    result = CliRunner().invoke(app, ["status", "--home", str(tmp_path)])
    assert result.stdout.splitlines()[0] == said
    assert result.exit_code == (0 if said.endswith("ready") else 1)


@pytest.mark.parametrize("command", [("up",), ("down",), ("status",), ("logs", "kafka"), ("doctor",)])
def test_the_environment_names_the_stack_for_its_own_commands_too(command: tuple[str, ...]) -> None:
    run, environment = CliRunner(), {"TIDEMILL_STACK": "No Name", "COLUMNS": "120"}
    result = run.invoke(app, [*command, "--json"], env=environment)
    assert result.exit_code == 2
    assert "No Name" in json.loads(result.stdout)["error"]
    assert "TIDEMILL_STACK" in run.invoke(app, [command[0], "--help"], env=environment).stdout
