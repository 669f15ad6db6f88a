"""What operators read: sentences to act on, and ids that a second run gives again."""

import json

from tidemill_contracts.canonical import from_json, to_dict, to_json
from tidemill_contracts.instants import parse_us
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_monitoring import records
from tidemill_monitoring.adwin import Cut
from tidemill_monitoring.drift import Verdict
from tidemill_monitoring.policy import ALERT, DEFERRED, RETRAIN, Decision
from tidemill_monitoring.records import Asked, Change, Moment

AT = Moment(parse_us("2013-06-06T14:00:00Z"), parse_us("2026-01-01T00:00:00Z"))
VERDICT = Verdict(True, True, 3, 40, 2140, 0.56, Cut(36, 0.47, 0.56, 1.4, 0.06), parse_us("2013-06-04T00:00:00Z"))
EVIDENCE = {
    "detector": "adwin",
    "before": 0.47,
    "after": 0.56,
    "rows": 2140,
    "coverage": 0.93,
    "limit": 0.05,
    "false_alarms_allowed": "1 per 90d",
}


def test_an_incident_says_what_changed_since_when_how_sure_and_what_was_done() -> None:
    opened = records.incident("flight-delays", VERDICT, EVIDENCE, AT)
    assert opened.summary == (
        "flight-delays v3 lost 0.09 log loss since 4 June 2013 (2,140 labelled predictions, 93 % covered)."
    )
    asked = records.revised(to_json(opened), records.decided(Decision(RETRAIN, "beyond the limit"), "r1"), 5)
    assert asked.summary == (
        "flight-delays v3 lost 0.09 log loss since 4 June 2013 (2,140 labelled predictions, 93 % covered); "
        "retraining requested."
    )
    told = json.loads(to_json(asked))
    assert told["changed_at"] == "2013-06-04T00:00:00Z"
    assert told["detected_at"] == "2013-06-06T14:00:00Z"
    assert (told["status"], told["severity"], told["revision"]) == ("open", "high", 2)
    assert told["action"] == {"kind": "retrain", "request_id": "r1", "reason": "beyond the limit"}
    assert told["evidence"]["false_alarms_allowed"] == "1 per 90d"


def test_each_decision_ends_the_sentence_in_its_own_words() -> None:
    raw = to_json(records.incident("p", VERDICT, EVIDENCE, AT))
    ends = {
        DEFERRED: "retraining waits, cooldown until then.",
        ALERT: "not retrained, cooldown until then.",
    }
    for outcome, end in ends.items():
        found = records.revised(raw, records.decided(Decision(outcome, "cooldown until then"), "r"), 1)
        assert found.summary.endswith("; " + end)
        assert found.action.request_id == ""


def test_a_revision_replaces_the_end_of_the_sentence_and_keeps_the_rest() -> None:
    first = records.incident("p", VERDICT, EVIDENCE, AT)
    second = records.revised(to_json(first), Change("anna", "acknowledged by anna", "acknowledged"), 1)
    third = records.revised(to_json(second), Change("anna", "resolved by anna", "resolved"), 2)
    assert third.summary == first.summary.rstrip(".") + "; resolved by anna."
    assert (third.revision, third.status, third.actor) == (3, "resolved", "anna")
    assert third.incident_id == first.incident_id


def test_the_same_cause_gives_the_same_request_in_every_run() -> None:
    asked = Asked("p", "schedule", "2013-03-01T00:00:00Z", "due", records.ACTOR, 60 * 86_400_000_000)
    first = records.request(asked, None, [], AT)
    again = records.request(asked, None, [], Moment(AT.event_time_us, 1))
    assert (first.request_id, first.cause_key) == (again.request_id, again.cause_key)
    assert to_dict(first)["window_start"] == "2013-04-07T14:00:00Z"


def test_an_operators_record_is_json_with_an_identity_of_its_own() -> None:
    sent = records.outgoing(records.INCIDENTS, "p", records.incident("p", VERDICT, EVIDENCE, AT), "one")
    assert from_json(sent.value or b"", monitoring.IncidentRecord()).pipeline == "p"
    headers = dict(sent.headers)
    assert headers["ce_id"] == b"one"
    assert headers["ce_type"] == b"tidemill.monitoring.incidents.v1"
