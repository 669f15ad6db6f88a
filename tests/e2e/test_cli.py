"""The command line as people and scripts use it: a process each time, JSON on request, four exit codes."""

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tidemill_testkit.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(600)]

DONE, NO, USAGE, NOT_REACHABLE = 0, 1, 2, 3
PIPELINE = "flight-delays"
NOWHERE = "127.0.0.1:1"
COMMAND = [sys.executable, "-m", "tidemill.cli.main"]
MOMENT = "2013-06-04T12:05:00Z"
FLIGHTS = Path(__file__).parents[2] / "docs/examples/flights/flights.py"
PROBE = Path(__file__).with_name("probe.py")


def test_check_says_yes_or_names_file_line_and_fix(tidemill: Any, park: Any, tmp_path: Path) -> None:
    sound = tidemill("check", FLIGHTS, "--json", stack=False)
    assert (sound.code, sound.json["pipelines"]) == (DONE, [PIPELINE])
    faulty = replace(park, file=tmp_path / "faulty.py").write()
    faulty.write_text(faulty.read_text().replace('"minutes"', '"minuets"'))
    answer = tidemill("check", faulty, "--json", stack=False)
    assert answer.code == NO
    (fault,) = answer.json["problems"]
    assert (Path(fault["file"]).name, fault["line"]) == ("faulty.py", 12)
    assert "did you mean 'minutes'?" in tidemill("check", faulty, stack=False).err


def test_apply_is_idempotent_and_diff_says_what_would_change_and_what_would_break(tidemill: Any, park: Any) -> None:
    again = tidemill("apply", park.file, "--json")
    assert {one["change"] for one in again.json["changes"]} == {"unchanged"}
    changed = tidemill("diff", park.write(window="30m"), "--json")
    park.write()
    assert changed.code == DONE
    by_kind = {one["kind"]: one for one in changed.json["changes"]}
    assert (by_kind["stream"]["change"], by_kind["view"]["change"]) == ("unchanged", "changed")
    assert any(line.endswith(": 1h → 30m") for line in by_kind["view"]["differences"]), by_kind["view"]["differences"]
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


def test_push_counts_every_refusal_and_a_second_push_adds_nothing(tidemill: Any, park: Any, tmp_path: Path) -> None:
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


def test_features_read_shows_value_status_and_age(tidemill: Any, park: Any) -> None:
    row = {"ride_id": "s-1", "gate": "south", "minutes": 12.5, "ended_at": "2013-06-04T12:00:00Z"}
    pushed = tidemill("push", park.stream, "-", "--format", "ndjson", "--json", stdin=json.dumps(row))
    assert (pushed.code, pushed.json["accepted"]) == (DONE, 1)

    def values() -> dict[tuple[str, str], Any]:
        found = tidemill("features", "read", park.view, "south", "west", "--as-of", MOMENT, "--json")
        assert found.code == DONE
        return {(one["entity"], one["feature"]): one for one in found.json["values"]}

    read = eventually(lambda: (found := values())["south", "rides_1h"]["value"] == 1 and found, claim="it is folded")
    assert isinstance(read, dict)
    longest = read["south", "longest_1h"]
    assert (longest["value"], longest["status"], longest["age_s"]) == (12.5, "PRESENT", 300)
    assert (read["west", "longest_1h"]["value"], read["west", "longest_1h"]["status"]) == (None, "NOT_FOUND")
    assert (read["south", "rides_1h"]["window"], longest["window"]) == ("1h", "1h")


def test_explain_shows_the_slots_of_a_value_and_says_what_it_cannot(tidemill: Any, park: Any) -> None:
    row = {"ride_id": "x-1", "gate": "south-east", "minutes": 12.5, "ended_at": "2013-06-04T12:00:00Z"}
    assert tidemill("push", park.stream, "-", "--format", "ndjson", stdin=json.dumps(row)).code == DONE

    def explanation() -> Any:
        arguments = ["south-east", "--explain", "--as-of", MOMENT, "--json"]
        found = tidemill("features", "read", park.view, *arguments)
        return found.json["explanations"][0]["shards"] and found.json

    read = eventually(explanation, claim="it is folded")
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
def test_a_bad_read_is_named(tidemill: Any, park: Any, arguments: list[str], code: int, reason: str | None) -> None:
    found = tidemill("features", "read", *(park.view if one == "VIEW" else one for one in arguments), "--json")
    assert (found.code, found.json.get("reason")) == (code, reason), found


def test_an_empty_string_is_an_entity_like_any_other(tidemill: Any, park: Any) -> None:
    found = tidemill("features", "read", park.view, "", "--json")
    assert (found.code, {one["status"] for one in found.json["values"]}) == (DONE, {"NOT_FOUND"})


def test_ctrl_c_stops_a_push_cleanly_and_says_what_was_kept(shared: Any, park: Any) -> None:
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
        out, _ = pushing.communicate(timeout=60)
    said = json.loads(out)
    assert (pushing.returncode, said["interrupted"], said["accepted"]) == (NO, True, 3)


def test_what_is_not_there_is_code_three(tidemill: Any, park: Any, tmp_path: Path) -> None:
    file = tmp_path / "row.ndjson"
    file.write_text('{"flight_id": "cli-1"}')
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


def test_status_shows_every_process_answering(tidemill: Any) -> None:
    answer = tidemill("status", "--json")
    assert answer.code == DONE, answer
    assert len(answer.json["processes"]) == 9
    assert all(process["answers"] for process in answer.json["processes"])
