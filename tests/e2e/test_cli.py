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
from tidemill_contracts.instants import format_us
from tidemill_testkit.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(300)]

DONE, NO, USAGE, NOT_REACHABLE = 0, 1, 2, 3
PIPELINE = "flight-delays"
NOWHERE = "127.0.0.1:1"
COMMAND = [sys.executable, "-m", "tidemill.cli.main"]
MOMENT = "2013-06-04T12:05:00Z"
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
    for command in ("check", "diff", "apply"):
        refused = tidemill(command, breaking, "--json")
        assert (refused.code, refused.json["reason"]) == (NO, "breaking_change"), refused
        assert "view 'probes'" in refused.out
    broken, used = tidemill("diff", breaking, "--json").json["breaks"]
    assert (broken["rule"], broken["subject"]) == ("type_changed", "streams.probe.fields.tries")
    assert (used["rule"], used["breaks"]) == ("redefined_in_use", ["pipeline 'probing'"])
    assert "fix: add a field of another name" in tidemill("check", breaking).err
    assert tidemill("check", park.file, "--json").json["registry"] == "compatible"
    assert "only says that it compiles" in tidemill("check", park.file, "--offline").out


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
        found = tidemill("features", "read", park.view, "south", "west", "--as-of", MOMENT, "--json")
        assert found.code == DONE
        return {(one["entity"], one["feature"]): one for one in found.json["values"]}

    read = eventually(
        lambda: (found := values())["south", "rides_1h"]["value"] == 1 and found, 20, claim="it is folded"
    )
    assert isinstance(read, dict)
    longest = read["south", "longest_1h"]
    assert (longest["value"], longest["status"], longest["age_s"]) == (12.5, "PRESENT", 300)
    assert (read["west", "longest_1h"]["value"], read["west", "longest_1h"]["status"]) == (None, "NOT_FOUND")
    assert (read["south", "rides_1h"]["window"], longest["window"]) == ("1h", "1h")


def test_explain_shows_the_slots_of_a_value_and_says_what_it_cannot(tidemill: Run, park: Park) -> None:
    row = {"ride_id": "x-1", "gate": "south-east", "minutes": 12.5, "ended_at": "2013-06-04T12:00:00Z"}
    assert tidemill("push", park.stream, "-", "--format", "ndjson", stdin=json.dumps(row)).code == DONE

    def explanation() -> Any:
        arguments = ["south-east", "--explain", "--as-of", MOMENT, "--json"]
        found = tidemill("features", "read", park.view, *arguments)
        return found.json["explanations"][0]["shards"] and found.json

    read = eventually(explanation, 20, claim="it is folded")
    whole = tidemill("features", "read", park.view, "south-east", "--version", read["view_hash"], "--json")
    assert whole.json["view_hash"] == read["view_hash"]
    (entity,) = read["explanations"]
    features = {one["feature"]: one for one in entity["features"]}
    (slot,) = features["longest_1h"]["slots"]
    assert (slot["from"], slot["newest_event"]) == ("2013-06-04T12:00:00Z", "2013-06-04T12:00:00Z")
    assert slot["partials"]["max(minutes)"] == 12.5
    assert features["rides_1h"]["value"] == sum(one["partials"]["count(*)"] for one in features["rides_1h"]["slots"])
    assert any("not the events" in note for note in entity["notes"])
    shown = tidemill("features", "read", park.view, "south-east", "--explain", "--as-of", MOMENT)
    assert "max(minutes) = 12.5" in shown.out
    assert "the offline log" in shown.out


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["no-such-view", "x"], NO, "unknown_view"),
        (["VIEW", "x", "--version", "0" * 16], NO, "unknown_version"),
        (["VIEW", "x" * 100_000], NO, "oversized"),
        (["VIEW", "[7]"], NO, "wrong_type"),
        (["VIEW", "[NaN]"], NO, "non_finite"),
        (["VIEW", "[9223372036854775808]"], NO, "out_of_range"),
        (["VIEW", '["\\ud800"]'], NO, "bad_utf8"),
        (["VIEW", "x", "--as-of", "1492-10-12T00:00:00Z"], NO, "out_of_range"),
        (["VIEW", "x", "--as-of", "2013-06-04T12:00:00"], USAGE, "naive_timestamp"),
        (["VIEW", '["a", "b"]'], USAGE, None),
        (["VIEW", "[oops"], USAGE, None),
    ],
)
def test_a_bad_read_is_named(tidemill: Run, park: Park, arguments: list[str], code: int, reason: str | None) -> None:
    found = tidemill("features", "read", *(park.view if one == "VIEW" else one for one in arguments), "--json")
    assert (found.code, found.json.get("reason")) == (code, reason), found


def test_an_empty_string_is_an_entity_like_any_other(tidemill: Run, park: Park) -> None:
    found = tidemill("features", "read", park.view, "", "--json")
    assert (found.code, {one["status"] for one in found.json["values"]}) == (DONE, {"NOT_FOUND"})


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


@dataclass(frozen=True)
class Retrained:
    """What one request for a run led to: the champion before it, and the version that it registered."""

    champion: int
    fresh: int


@pytest.fixture(scope="module")
def retrained(trained: Any, tidemill: Run) -> Retrained:
    champion = tidemill("models", "list", PIPELINE, "--json").json["deployments"][0]["champion"]["version"]
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
    return Retrained(champion, fresh)


def test_retrain_asks_once_per_key_and_runs_and_models_show_what_came_of_it(retrained: Retrained) -> None:
    assert retrained.fresh > retrained.champion


def test_a_promoted_version_answers_until_it_is_rolled_back(
    retrained: Retrained, tidemill: Run, tmp_path: Path
) -> None:
    file = tmp_path / "asked.ndjson"
    file.write_text(json.dumps(REQUEST) + "\n")

    def answering(version: int) -> bool:
        asked = tidemill("predict", PIPELINE, file, "--as-of", "2013-01-05T12:00:00Z", "--log", "async", "--json")
        assert asked.code == DONE, asked
        return bool(asked.json["version"] == version)

    for unknown, reason in ((99, "unknown_version"), (retrained.champion, "")):
        refused = tidemill("models", "promote", PIPELINE, unknown, "--why", "a test", "--json")
        assert (refused.code, refused.json.get("reason", "")) == (NO if reason else DONE, reason)
    promoted = tidemill("models", "promote", PIPELINE, retrained.fresh, "--why", "a test wants it", "--json")
    assert (promoted.code, promoted.json["champion"]["version"]) == (DONE, retrained.fresh), promoted
    try:
        eventually(lambda: answering(retrained.fresh), 30, claim="the promoted version answers")
    finally:
        back = tidemill("models", "rollback", PIPELINE, "--why", "a test is over", "--json")
    assert (back.code, back.json["champion"]["version"]) == (DONE, retrained.champion), back
    eventually(lambda: answering(retrained.champion), 30, claim="the champion before answers again")
    (stage,) = [
        one["stage"]
        for one in tidemill("models", "list", PIPELINE, "--json").json["versions"]
        if one["version"] == retrained.fresh
    ]
    assert stage == "rolled_back"
    acts = [one["value"] for one in tidemill("tail", "registry.audit.v1", "--last", 20, "--json").lines]
    mine = [one["actor"] for one in acts if one.get("reason") in ("a test wants it", "a test is over")]
    assert mine[-2:] == ["ada", "ada"]
    assert tidemill("models", "rollback", "nothing", "--why", "x", "--json").json["reason"] == "unknown_pipeline"


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


def test_a_dead_letter_comes_back_once_its_stream_takes_it(
    shared: Any, tidemill: Run, tmp_path: Path
) -> None:
    name = f"mended-{time_ns()}"
    park = Park(name, f"{name}-gates", tmp_path / "park.py")
    assert tidemill("apply", park.write()).code == DONE
    now = format_us(time_ns() // 1000)
    ride = {"ride_id": "m-1", "gate": "north", "minutes": None, "ended_at": now}
    broken = {**ride, "ride_id": "m-2", "minutes": "long"}
    for record in (ride, broken, {**ride, "ride_id": "m-3", "minutes": 3.0}):
        shared.write(f"events.{name}", json.dumps(record).encode())

    def listed(state: str) -> Any:
        return tidemill("dead-letters", "list", name, "--state", state, "--json").json["dead_letters"]

    def rides() -> Done:
        return tidemill("features", "read", park.view, "north", "--json")

    def redrive(*arguments: object) -> Done:
        return tidemill("dead-letters", "redrive", name, *arguments, "--json")

    letters: Any = eventually(lambda: found if len(found := listed("open")) == 2 else [], 20, claim="two are refused")
    shown = tidemill("dead-letters", "show", letters[1]["id"], "--json").json
    assert (shown["reason"], shown["from_offset"], json.loads(shown["value"])) == ("wrong_type", "1", broken)
    assert tidemill("dead-letters", "show", letters[1]["id"], "--raw").out == json.dumps(broken)
    before = redrive("--dry-run")
    assert (before.code, before.json["refused"]) == (NO, {"missing_field": 1, "wrong_type": 1})

    # The fix: minutes may be missing.
    park.file.write_text(park.file.read_text().replace("minutes: float", "minutes: float | None"))
    assert tidemill("apply", park.file).code == DONE
    eventually(lambda: redrive("--dry-run").json["would_be_redriven"] == 1, 20, claim="ingestion knows of the fix")
    sent = redrive("--why", "minutes may be missing")
    assert (sent.code, sent.json["redriven"], sent.json["refused"]) == (NO, 1, {"wrong_type": 1})
    assert redrive().json["redriven"] == 0
    (again,) = listed("redriven")
    assert again["id"] == letters[0]["id"]
    eventually(lambda: '"value": 2' in rides().out, 60, claim="the good one and the mended one count, each once")
    old = rides().json["view_hash"]
    # Another view, built from the log, where the mended one lies twice.
    park.file.write_text(park.file.read_text().replace('"minutes", "1h"', '"minutes", "30m"'))
    assert tidemill("apply", park.file).code == DONE
    built = eventually(lambda: found if (found := rides().json)["view_hash"] != old else None, 60, claim="it is built")
    assert '"value": 2' in json.dumps(built)

    gone = tidemill("dead-letters", "discard", name, "--why", "nobody can say how long", "--json")
    assert (gone.code, gone.json["discarded"], redrive().json["records"]) == (DONE, 1, 0)
    (action,) = tidemill("tail", "ingestion.dead-letter-actions.v1", "--last", 1, "--json").lines
    said = action["value"]
    assert (said["action"], said["actor"], said["reason"]) == ("discarded", "ada", "nobody can say how long")


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
