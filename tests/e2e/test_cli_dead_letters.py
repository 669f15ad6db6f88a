"""The command line over dead letters: listed, shown, sent again once their stream takes them, or discarded."""

import json
from dataclasses import replace
from pathlib import Path
from time import time_ns
from typing import Any

import pytest
from tidemill_contracts.instants import format_us
from tidemill_testkit.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(600)]

DONE, NO, USAGE = 0, 1, 2


def test_dead_letters_are_listed_by_reason_with_their_bytes(shared: Any, tidemill: Any, park: Any) -> None:
    line = '{"ride_id": "d-1", "gate": null'
    shared.write(f"events.{park.stream}", line.encode())

    def letters() -> Any:
        return tidemill("dead-letters", "list", park.stream, "--reason", "undecodable", "--json").json["dead_letters"]

    (letter,) = eventually(letters, claim="it is refused")
    assert (letter["value"], letter["group"]) == (line, "feature-online")
    assert letter["from_topic"] == f"events.{park.stream}"
    assert tidemill("dead-letters", "list", park.stream, "--reason", "too_late", "--json").json["dead_letters"] == []
    assert tidemill("dead-letters", "list", "no-such-stream").code == USAGE


def test_a_dead_letter_comes_back_once_its_stream_takes_it(
    shared: Any, tidemill: Any, park: Any, tmp_path: Path
) -> None:
    name = f"mended-{time_ns()}"
    park = replace(park, stream=name, view=f"{name}-gates", file=tmp_path / "park.py")
    assert tidemill("apply", park.write()).code == DONE
    now = format_us(time_ns() // 1000)
    ride = {"ride_id": "m-1", "gate": "north", "minutes": None, "ended_at": now}
    broken = {**ride, "ride_id": "m-2", "minutes": "long"}
    for record in (ride, broken, {**ride, "ride_id": "m-3", "minutes": 3.0}):
        shared.write(f"events.{name}", json.dumps(record).encode())

    def listed(state: str) -> Any:
        return tidemill("dead-letters", "list", name, "--state", state, "--json").json["dead_letters"]

    def rides() -> Any:
        return tidemill("features", "read", park.view, "north", "--json")

    def redrive(*arguments: object) -> Any:
        return tidemill("dead-letters", "redrive", name, *arguments, "--json")

    letters: Any = eventually(lambda: found if len(found := listed("open")) == 2 else [], claim="two are refused")
    shown = tidemill("dead-letters", "show", letters[1]["id"], "--json").json
    assert (shown["reason"], shown["from_offset"], json.loads(shown["value"])) == ("wrong_type", "1", broken)
    assert tidemill("dead-letters", "show", letters[1]["id"], "--raw").out == json.dumps(broken)
    before = redrive("--dry-run")
    assert (before.code, before.json["refused"]) == (NO, {"missing_field": 1, "wrong_type": 1})

    # The fix: minutes may be missing.
    park.file.write_text(park.file.read_text().replace("minutes: float", "minutes: float | None"))
    assert tidemill("apply", park.file).code == DONE
    eventually(lambda: redrive("--dry-run").json["would_be_redriven"] == 1, claim="ingestion knows of the fix")
    sent = redrive("--why", "minutes may be missing")
    assert (sent.code, sent.json["redriven"], sent.json["refused"]) == (NO, 1, {"wrong_type": 1})
    assert redrive().json["redriven"] == 0
    (again,) = listed("redriven")
    assert again["id"] == letters[0]["id"]
    eventually(lambda: '"value": 2' in rides().out, claim="the good one and the mended one count, each once")
    old = rides().json["view_hash"]
    # Another view, built from the log, where the mended one lies twice.
    park.file.write_text(park.file.read_text().replace('"minutes", "1h"', '"minutes", "30m"'))
    assert tidemill("apply", park.file).code == DONE
    built = eventually(lambda: found if (found := rides().json)["view_hash"] != old else None, claim="it is built")
    assert '"value": 2' in json.dumps(built)

    gone = tidemill("dead-letters", "discard", name, "--why", "nobody can say how long", "--json")
    assert (gone.code, gone.json["discarded"], redrive().json["records"]) == (DONE, 1, 0)
    (action,) = tidemill("tail", "ingestion.dead-letter-actions.v1", "--last", 1, "--json").lines
    said = action["value"]
    assert (said["action"], said["actor"], said["reason"]) == ("discarded", "ada", "nobody can say how long")
