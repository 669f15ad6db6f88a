"""The command line as people and scripts use it: a process each time, JSON on request, four exit codes."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any

import pytest
from tidemill_testkit.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(300)]

DONE, NO, USAGE, NOT_REACHABLE = 0, 1, 2, 3
PIPELINE = "flight-delays"
NOWHERE = "127.0.0.1:1"
COMMAND = [sys.executable, "-m", "tidemill.cli.main"]
FLIGHTS = Path(__file__).parents[2] / "docs/examples/flights/flights.py"
PROBE = Path(__file__).with_name("probe.py")
DEFINITION = '''
"""Rides of a park."""
from datetime import datetime
import tidemill as tm

class Ride(tm.Event, stream="{stream}", key="ride_id", time="ended_at", partitions=1, dedup="2h"):
    ride_id: str
    gate: str
    minutes: float
    ended_at: datetime

features = {{"rides_1h": tm.count("1h"), "longest_1h": tm.max("minutes", "{window}")}}
gates = tm.View("{view}", Ride, by="gate", features=features)
'''


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of a command that was asked for JSON."""
        return json.loads(self.out.strip().splitlines()[-1])

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.strip().splitlines()]


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def tidemill(shared: Any) -> Run:
    """Return a function that runs one command against the stack."""
    home = str(shared.stack.layout.home)
    environment = {**os.environ, "TIDEMILL_ACTOR": "ada"}

    def run(*arguments: object, stack: bool = True, stdin: str | None = None) -> Done:
        command = [*COMMAND, *map(str, arguments), *(["--home", home] if stack else [])]
        done = subprocess.run(
            command, capture_output=True, text=True, input=stdin, env=environment, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@dataclass(frozen=True)
class Park:
    """A stream and a view of this session's own."""

    stream: str
    view: str
    file: Path

    def write(self, window: str = "1h") -> Path:
        self.file.write_text(DEFINITION.format(stream=self.stream, view=self.view, window=window))
        return self.file


@pytest.fixture(scope="module")
def park(tidemill: Run, tmp_path_factory: pytest.TempPathFactory) -> Park:
    name = f"rides-{time_ns()}"
    found = Park(name, f"gates-{time_ns()}", tmp_path_factory.mktemp("park") / "park.py")
    registered = tidemill("apply", found.write(), "--json")
    assert registered.code == DONE, registered
    assert {(one["kind"], one["change"]) for one in registered.json["changes"]} == {
        ("stream", "created"),
        ("view", "created"),
    }
    return found


def test_check_says_yes_or_names_file_line_and_fix(tidemill: Run, tmp_path: Path) -> None:
    sound = tidemill("check", FLIGHTS, "--json", stack=False)
    assert (sound.code, sound.json["pipelines"]) == (DONE, [PIPELINE])
    faulty = tmp_path / "faulty.py"
    faulty.write_text(DEFINITION.format(stream="a", view="b", window="1h").replace('"minutes"', '"minuets"'))
    answer = tidemill("check", faulty, "--json", stack=False)
    assert answer.code == NO
    (fault,) = answer.json["problems"]
    assert (Path(fault["file"]).name, fault["line"]) == ("faulty.py", 12)
    assert "did you mean 'minutes'?" in tidemill("check", faulty, stack=False).err


def test_apply_is_idempotent_and_diff_says_what_would_change_and_what_would_break(tidemill: Run, park: Park) -> None:
    again = tidemill("apply", park.file, "--json")
    assert {one["change"] for one in again.json["changes"]} == {"unchanged"}
    changed = tidemill("diff", park.write(window="30m"), "--json")
    park.write()
    assert changed.code == DONE
    by_kind = {one["kind"]: one for one in changed.json["changes"]}
    assert (by_kind["stream"]["change"], by_kind["view"]["change"]) == ("unchanged", "changed")
    assert any("1800000" in line for line in by_kind["view"]["differences"])
    breaking = park.file.with_name("breaking.py")
    # The probe's stream alone, with another type: the pipeline that uses it stays behind.
    breaking.write_text(PROBE.read_text().split("class Verdict")[0].replace("tries: int", "tries: str"))
    for command in ("diff", "apply"):
        refused = tidemill(command, breaking, "--json")
        assert (refused.code, refused.json["reason"]) == (NO, "conflict")
        assert "'probing'" in refused.json["error"]


def test_push_counts_every_refusal_and_a_second_push_adds_nothing(tidemill: Run, park: Park, tmp_path: Path) -> None:
    rows = [[f"r-{n}", "north", n, f"2013-06-04T10:{n:02}:00Z"] for n in range(20)]
    rows[7][2], rows[9][3] = "long", "2013-06-04T10:09:00"
    file = tmp_path / "rides.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([["ride_id", "gate", "minutes", "ended_at"], *rows])
    first = tidemill("push", park.stream, file, "--json")
    assert first.code == NO, "two rows were refused"
    assert (first.json["accepted"], first.json["refused"]) == (18, {"wrong_type": 1, "naive_timestamp": 1})
    assert {(one["row"], one["field"]) for one in first.json["examples"]} == {(8, "minutes"), (10, "ended_at")}
    second = tidemill("push", park.stream, file, "--json")
    assert (second.json["accepted"], second.json["duplicates"]) == (0, 18)
    newest = tidemill("tail", f"events.{park.stream}", "--last", 3, "--json")
    assert [one["value"]["ride_id"] for one in newest.lines] == ["r-17", "r-18", "r-19"]
    assert {one["headers"]["ce_source"] for one in newest.lines} == {"tidemill/push"}
    assert len(tidemill("tail", f"events.{park.stream}", "--all", "--json").lines) == 18


def test_features_read_shows_value_status_and_age(tidemill: Run, park: Park) -> None:
    row = {"ride_id": "s-1", "gate": "south", "minutes": 12.5, "ended_at": "2013-06-04T12:00:00Z"}
    pushed = tidemill("push", park.stream, "-", "--format", "ndjson", "--json", stdin=json.dumps(row))
    assert (pushed.code, pushed.json["accepted"]) == (DONE, 1)

    def values() -> dict[tuple[str, str], Any]:
        found = tidemill("features", "read", park.view, "south", "west", "--as-of", "2013-06-04T12:05:00Z", "--json")
        assert found.code == DONE
        return {(one["entity"], one["feature"]): one for one in found.json["values"]}

    read = eventually(
        lambda: (found := values())["south", "rides_1h"]["value"] == 1 and found, 20, claim="it is folded"
    )
    assert isinstance(read, dict)
    longest = read["south", "longest_1h"]
    assert (longest["value"], longest["status"], longest["age_s"]) == (12.5, "PRESENT", 300)
    assert (read["west", "longest_1h"]["value"], read["west", "longest_1h"]["status"]) == (None, "NOT_FOUND")
    unknown = tidemill("features", "read", "no-such-view", "x", "--json")
    assert (unknown.code, unknown.json["reason"]) == (NO, "unknown_view")
    assert tidemill("features", "read", park.view, '["a", "b"]').code == USAGE


def test_ctrl_c_stops_a_push_cleanly_and_says_what_was_kept(shared: Any, park: Park) -> None:
    home = str(shared.stack.layout.home)
    command = [*COMMAND, "push", park.stream, "-", "--format", "ndjson", "--batch", "1", "--json", "--home", home]
    before = shared.counts("ingestion", "ingestion_events", "stream", "outcome")[park.stream, "accepted"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pushing:
        assert pushing.stdin is not None
        for n in range(3):
            row = {"ride_id": f"c-{n}", "gate": "east", "minutes": 1.0, "ended_at": f"2013-06-04T13:0{n}:00Z"}
            pushing.stdin.write(json.dumps(row) + "\n")
        pushing.stdin.flush()
        eventually(
            lambda: (
                shared.counts("ingestion", "ingestion_events", "stream", "outcome")[park.stream, "accepted"]
                == before + 3
            ),
            30,
            claim="three rows are in",
        )
        pushing.send_signal(signal.SIGINT)
        out, _ = pushing.communicate(timeout=30)
    said = json.loads(out)
    assert (pushing.returncode, said["interrupted"], said["accepted"]) == (NO, True, 3)


REQUEST = {
    "flight_id": "cli-1",
    "origin": "JFK",
    "dest": "LAX",
    "carrier": "UA",
    "tailnum": None,
    "departs_at": "2013-01-05T14:00:00Z",
    "distance_miles": 2475,
    "asked_at": "2013-01-05T12:00:00Z",
}


def test_predict_answers_each_row_and_says_no_where_one_got_none(trained: Any, tidemill: Run, tmp_path: Path) -> None:
    file = tmp_path / "asked.ndjson"
    file.write_text(json.dumps(REQUEST) + "\n")
    good = tidemill("predict", PIPELINE, file, "--as-of", "2013-01-05T12:00:00Z", "--features", "--json")
    assert good.code == DONE, good
    assert 0 < good.json["probability"] < 1
    assert good.json["version"] >= 1
    assert (good.json["features"]["carrier"], good.json["features"]["hour"]) == ("UA", 14)
    logged = tidemill("tail", "serving.predictions.v1", "--last", 1, "--json").json
    assert logged["value"]["prediction_id"] == good.json["prediction_id"]
    file.write_text(json.dumps(REQUEST) + "\n" + json.dumps({**REQUEST, "origin": None}) + "\n")
    mixed = tidemill("predict", PIPELINE, file, "--json")
    assert mixed.code == NO
    assert ["reason" in one for one in mixed.lines] == [False, True]
    assert (mixed.lines[1]["reason"], mixed.lines[1]["field"]) == ("missing_field", "origin")
    unknown = tidemill("predict", "nothing", file, "--json")
    assert (unknown.code, unknown.json["reason"]) == (NO, "unknown_pipeline")
    assert tidemill("predict", PIPELINE, file, "--log", "never").code == USAGE


def test_retrain_asks_once_per_key_and_runs_and_models_show_what_came_of_it(trained: Any, tidemill: Run) -> None:
    before = {one["version"] for one in tidemill("models", "list", PIPELINE, "--json").json["versions"]}
    asked = ("retrain", PIPELINE, "--why", "the test wants it", "--key", f"cli-{time_ns()}", "--json")
    first, second = tidemill(*asked), tidemill(*asked)
    assert first.code == second.code == DONE
    request = first.json["request_id"]
    assert second.json["request_id"] == request
    assert "ada" in first.json["summary"]

    def ended() -> Any:
        found = [run for run in tidemill("runs", PIPELINE, "--json").json["runs"] if run.get("request_id") == request]
        return found if found and found[0]["status"] != "started" else None

    (run,) = eventually(ended, 150, claim="one run ends")
    assert (run["status"], run["cause_kind"], run["attempts"]) == ("succeeded", "operator", 1)
    models = tidemill("models", "list", PIPELINE, "--json").json
    (fresh,) = {one["version"] for one in models["versions"]} - before
    assert models["deployments"][0]["pipeline"] == PIPELINE
    shown = tidemill("models", "show", PIPELINE, fresh).json
    assert (shown["version"], shown["run_id"]) == (fresh, run["run_id"])
    missing = tidemill("models", "show", PIPELINE, 99, "--json")
    assert (missing.code, missing.json["reason"]) == (NO, "unknown_version")
    assert "succeeded" in tidemill("runs", PIPELINE).out


def test_incidents_are_listed_and_an_unknown_one_is_named(tidemill: Run) -> None:
    listed = tidemill("incidents", "list", PIPELINE, "--json")
    assert (listed.code, isinstance(listed.json["incidents"], list)) == (DONE, True)
    unknown = tidemill("incidents", "ack", "no-such-incident", "--json")
    assert (unknown.code, unknown.json["reason"]) == (NO, "unknown_entity")
    assert tidemill("incidents", "list", "--status", "closed").code == USAGE


def test_dead_letters_are_listed_by_reason_with_their_bytes(shared: Any, tidemill: Run, park: Park) -> None:
    line = '{"ride_id": "d-1", "gate": null'
    shared.write(f"events.{park.stream}", line.encode())

    def letters() -> Any:
        return tidemill("dead-letters", "list", park.stream, "--reason", "undecodable", "--json").json["dead_letters"]

    (letter,) = eventually(letters, 20, claim="it is refused")
    assert (letter["value"], letter["group"]) == (line, "feature-online")
    assert letter["from_topic"] == f"events.{park.stream}"
    assert tidemill("dead-letters", "list", park.stream, "--reason", "too_late", "--json").json["dead_letters"] == []
    assert tidemill("dead-letters", "list", "no-such-stream").code == USAGE


def test_what_is_not_there_is_code_three(tidemill: Run, park: Park, tmp_path: Path) -> None:
    file = tmp_path / "row.ndjson"
    file.write_text(json.dumps(REQUEST))
    elsewhere = ("--home", tmp_path / "nothing", "--json")
    for command in (
        ("apply", park.file),
        ("push", park.stream, file),
        ("features", "read", park.view, "north"),
        ("predict", PIPELINE, file),
        ("models", "list"),
        ("retrain", PIPELINE, "--why", "x"),
        ("dead-letters", "list"),
    ):
        answer = tidemill(*command, *elsewhere, stack=False)
        assert answer.code == NOT_REACHABLE, (command, answer)
        assert answer.json["error"]
    gone = tidemill("runs", "--registry", NOWHERE, "--json")
    assert (gone.code, NOWHERE in gone.json["error"]) == (NOT_REACHABLE, True)
    assert tidemill("tail", "registry.audit.v1", "--kafka", NOWHERE, "--json").code == NOT_REACHABLE


def test_status_shows_every_process_answering(tidemill: Run) -> None:
    answer = tidemill("status", "--json")
    assert answer.code == DONE, answer
    assert len(answer.json["processes"]) == 9
    assert all(process["answers"] for process in answer.json["processes"])
