"""The command line over a model's life: predictions, runs, versions and incidents."""

import json
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any

import pytest
from tidemill_testkit.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(600)]

DONE, NO, USAGE = 0, 1, 2
PIPELINE = "flight-delays"
FLIGHTS = Path(__file__).parents[2] / "docs/examples/flights/flights.py"
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


def test_predict_answers_each_row_and_says_no_where_one_got_none(trained: Any, tidemill: Any, tmp_path: Path) -> None:
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


def test_who_redefines_a_feature_is_told_what_becomes_of_the_champion(
    trained: Any, tidemill: Any, tmp_path: Path
) -> None:
    file = tmp_path / "flights.py"
    file.write_text(FLIGHTS.read_text().replace('"hour": "hour(departs_at)"', '"hour": "hour(asked_at)"'))
    changed = tidemill("diff", file)
    assert changed.code == DONE, changed
    said = "was trained with 'hour' as 'HOUR(departs_at)', which is 'HOUR(asked_at)' now: it answers as before"
    assert said in changed.out
    (outdated,) = tidemill("diff", file, "--json").json["outdated"]
    assert outdated.startswith("flight-delays v")
    assert outdated.endswith("ask for one: tidemill retrain flight-delays --why ...")
    assert tidemill("diff", FLIGHTS, "--json").json["outdated"] == []


@dataclass(frozen=True)
class Retrained:
    """What one request for a run led to: the champion before it, and the version that it registered."""

    champion: int
    fresh: int


@pytest.fixture(scope="module")
def retrained(trained: Any, tidemill: Any) -> Retrained:
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
    retrained: Retrained, tidemill: Any, tmp_path: Path
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
        eventually(lambda: answering(retrained.fresh), claim="the promoted version answers")
    finally:
        back = tidemill("models", "rollback", PIPELINE, "--why", "a test is over", "--json")
    assert (back.code, back.json["champion"]["version"]) == (DONE, retrained.champion), back
    eventually(lambda: answering(retrained.champion), claim="the champion before answers again")
    (stage,) = [
        one["stage"]
        for one in tidemill("models", "list", PIPELINE, "--json").json["versions"]
        if one["version"] == retrained.fresh
    ]
    assert stage == "rolled_back"

    def audited() -> bool:
        acts = [one["value"] for one in tidemill("tail", "registry.audit.v1", "--last", 20, "--json").lines]
        mine = [one["actor"] for one in acts if one.get("reason") in ("a test wants it", "a test is over")]
        return mine[-2:] == ["ada", "ada"]

    eventually(audited, claim="both acts are in the audit trail")
    assert tidemill("models", "rollback", "nothing", "--why", "x", "--json").json["reason"] == "unknown_pipeline"


def test_incidents_are_listed_and_an_unknown_one_is_named(tidemill: Any) -> None:
    listed = tidemill("incidents", "list", PIPELINE, "--json")
    assert (listed.code, isinstance(listed.json["incidents"], list)) == (DONE, True)
    unknown = tidemill("incidents", "ack", "no-such-incident", "--json")
    assert (unknown.code, unknown.json["reason"]) == (NO, "unknown_entity")
    assert tidemill("incidents", "list", "--status", "closed").code == USAGE
