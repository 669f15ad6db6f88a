"""Commands answer in text or JSON, and with one of four exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from tidemill.cli.main import _MODULES, app
from typer.testing import CliRunner, Result

FLIGHTS = Path(__file__).parents[3] / "docs/examples/flights/flights.py"
GOLDEN = Path(__file__).parent / "goldens/flights.json"
# Nobody listens on the first port, and nobody may without being root.
NOBODY = "127.0.0.1:1"
ADDRESSES = {
    f"TIDEMILL_{name}": NOBODY
    for name in ("INGESTION", "FEATURE", "TRAINING", "REGISTRY", "SERVING", "MONITORING", "KAFKA")
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.ndjson"
    path.write_text('{"flight_id": "UA1"}\n')
    return path


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env or {})


def answer(result: Result) -> Any:
    return json.loads(result.stdout)


def test_check_says_what_a_sound_file_declares() -> None:
    result = run("check", FLIGHTS)
    assert result.exit_code == 0
    assert "4 streams, 6 views, 1 pipeline, sound (sha256:" in result.stdout
    found = answer(run("check", FLIGHTS, "--json"))
    assert (found["ok"], found["pipelines"]) == (True, ["flight-delays"])


def test_check_prints_the_canonical_form() -> None:
    assert run("check", FLIGHTS, "--canonical").stdout == GOLDEN.read_text()


def test_check_names_every_fault_and_answers_no(tmp_path: Path) -> None:
    path = tmp_path / "flights.py"
    path.write_text(FLIGHTS.read_text().replace("dep_delay_minutes > 15", "dep_dealy > 15"))
    result = run("check", path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("did you mean 'dep_delay_minutes'?\n    dep_dealy > 15\n    ^") == 2
    assert result.stderr.endswith("2 faults\n")
    found = answer(run("check", path, "--json"))
    assert [problem["subject"] for problem in found["problems"]] == [
        "view 'origin': feature 'late_share_6h'",
        "view 'carrier': feature 'late_share_7d'",
    ]


def test_check_answers_a_mistake_of_any_kind_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "flights.py"
    path.write_text(FLIGHTS.read_text().replace("    monitors=[", "    monitors=None and [", 1))
    result = run("check", path, "--offline")
    assert (result.exit_code, result.stdout) == (1, "")
    assert ": monitors: a list is wanted, not None\n1 fault\n" in result.stderr


COMMANDS = [
    ("apply", FLIGHTS),
    ("diff", FLIGHTS),
    ("apply", FLIGHTS, "--retire", "old", "--allow-breaking", "--reason", "test"),
    ("views", "list"),
    ("views", "retire", "origin"),
    ("streams", "list"),
    ("streams", "resume", "rides", "--why", "test"),
    ("push", "flight-scheduled", "ROWS"),
    ("tail", "serving.predictions.v1"),
    ("features", "read", "origin", "JFK"),
    ("features", "rebuild", "origin"),
    ("features", "backfill"),
    ("predict", "flight-delays", "ROWS"),
    ("runs",),
    ("models", "list"),
    ("models", "show", "flight-delays", 1),
    ("models", "promote", "flight-delays", 1, "--why", "test"),
    ("models", "rollback", "flight-delays", "--why", "test"),
    ("incidents", "list"),
    ("incidents", "ack", "01J"),
    ("incidents", "resolve", "01J"),
    ("retrain", "flight-delays", "--why", "test"),
    ("dead-letters", "list"),
    ("dead-letters", "show", "events.rides.dlq/0/1"),
    ("dead-letters", "redrive", "rides"),
    ("dead-letters", "discard", "rides", "--why", "test"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(map(str, command[:2])))
def test_a_command_says_whom_it_cannot_reach(command: tuple[object, ...], rows: Path, tmp_path: Path) -> None:
    arguments = [rows if argument == "ROWS" else argument for argument in command]
    result = run(*arguments, "--json", env=ADDRESSES)
    assert result.exit_code == 3, result.output
    assert NOBODY in answer(result)["error"]
    # Without an address there must be a stack.
    result = run(*arguments, "--home", tmp_path / "none", env=dict.fromkeys(ADDRESSES, ""))
    assert result.exit_code == 3, result.output
    assert "start it with `tidemill up`, or give --" in result.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("nonsense",), "No such command"),
        (("check",), "Missing argument"),
        (("apply", str(FLIGHTS), "--allow-breaking"), "--allow-breaking needs --reason"),
        (("push", "s", "none.csv"), "there is no file none.csv"),
        (("push", "s", "none.csv", "--format", "xml"), "unknown format 'xml'; there are csv, ndjson, parquet"),
        (("push", "s", "-", "--batch", "0"), "Invalid value for '--batch'"),
        (("predict", "p", "-", "--log", "maybe"), "unknown log mode 'maybe'; there are async, durable"),
        (("predict", "p", "-", "--as-of", "noon"), "no instant"),
        (("features", "read", "origin"), "Missing argument"),
        (("features", "rebuild"), "name a view, or a stream with --stream"),
        (("incidents", "list", "--status", "new"), "unknown status 'new'; there are open, acknowledged, resolved"),
        (("models", "promote", "p", "1"), "Missing option '--why'"),
        (("retrain", "p", "--why", "x", "--at", "2013-06-04"), "has no UTC offset"),
        (
            ("retrain", "p", "--why", "x", "--at", "0001-01-01T00:00:00+01:00"),
            "lies outside the years 1 to 9999 of UTC",
        ),
        (("predict", "p", "-", "--as-of", "9999-12-31T23:59:59-01:00"), "lies outside the years 1 to 9999 of UTC"),
        (("predict", "p", "-", "--as-of", "1970-01-01T00:00:00Z"), "calls write now as this instant"),
        (("features", "read", "v", "k", "--as-of", "1970-01-01T00:00:00Z"), "calls write now as this instant"),
        (("up", "--only", "nosuch", "--deadline", "nan"), "Invalid value for '--deadline'"),
        (("up", "--only", "nosuch", "--deadline", "inf"), "give a finite number of seconds"),
        (("push", "s", "-", "--format", "parquet"), "Parquet is read from a file"),
        (("dead-letters", "list", "--state", "lost"), "unknown state 'lost'; there are open, redriving, redriven"),
        (("dead-letters", "list", "--since", "noon"), "no instant"),
        (("dead-letters", "show", "12"), "'12' is no letter's id; they look like events.rides.dlq/0/12"),
        (("dead-letters", "redrive", "--letter", "x/y/z"), "'x/y/z' is no letter's id"),
        (("dead-letters", "discard", "rides"), "Missing option '--why'"),
        (("dead-letters", "discard", "rides", "--why", " "), "--why is empty"),
        (("dead-letters", "discard", "--why", "x"), "say which: a stream, or --letter ID"),
        (("dead-letters", "redrive", "rides", "--reason", "undecodeable"), "did you mean 'undecodable'?"),
        (("runs", "--stack", "a/b"), "'a/b' cannot name a stack"),
        (("runs", "--stack", "a b"), "'a b' cannot name a stack"),
        (("models", "show", "p", str(2**31)), "Invalid value"),
        (("models", "promote", "p", str(2**63), "--why", "x"), "Invalid value"),
    ],
)
def test_wrong_usage_is_code_two(command: tuple[str, ...], message: str) -> None:
    result = run(*command, env=ADDRESSES)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_a_dataset_is_not_written_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").mkdir()
    result = run("dataset", "p", "-o", tmp_path / "rows.parquet", env=ADDRESSES)
    assert result.exit_code == 2
    assert "rows.parquet is a folder; name a file" in result.stderr


def test_a_file_of_an_unknown_kind_asks_for_its_format(tmp_path: Path) -> None:
    path = tmp_path / "rows.xls"
    path.touch()
    result = run("push", "s", path)
    assert result.exit_code == 2
    assert "unknown kind of file; say --format csv, ndjson, parquet" in result.stderr


@pytest.mark.parametrize("name", [name for name in _MODULES if name != "demo"])
def test_every_command_explains_itself_and_speaks_json(name: str) -> None:
    top = run(name, "--help")
    assert top.exit_code == 0
    groups = {
        "features": ["read", "rebuild", "backfill"],
        "models": ["list", "show", "promote", "rollback"],
        "incidents": ["list", "ack", "resolve"],
        "dead-letters": ["list", "show", "redrive", "discard"],
        "views": ["list", "retire"],
        "streams": ["list", "resume", "retire"],
        "pipelines": ["list", "retire"],
    }
    for arguments in [(name, sub) for sub in groups[name]] if name in groups else [(name,)]:
        assert "--json" in run(*arguments, "--help", env={"COLUMNS": "200"}).stdout
