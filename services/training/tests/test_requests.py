"""What is asked for, and what is said of it."""

import json

import pytest
from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.canonical import to_json
from tidemill_contracts.causes import OPERATOR, cause_key
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us, to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_features.training_set import Window
from tidemill_runtime.errors import Poison
from tidemill_training import run_records
from tidemill_training.adapters.processes import environment
from tidemill_training.inputs import topics_of
from tidemill_training.requests import decode_request, operator_request, timed
from tidemill_training.spec import Done, Failed, Places, Progress, RunSpec, from_line, to_line

AT = to_timestamp(parse_us("2013-06-06T14:00:00Z"))
NOW_US = parse_us("2026-11-21T00:00:00Z")


def request(**changes: object) -> monitoring.RetrainRequest:
    fields = {
        "request_id": "r1",
        "pipeline": "flight-delays",
        "cause_key": "sha256:c",
        "cause_kind": "drift",
        "event_time": AT,
        "reason": "log loss rose",
    }
    return monitoring.RetrainRequest(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_request_survives_the_wire() -> None:
    assert decode_request(to_json(request())) == request()


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        (None, Reason.EMPTY, ""),
        (b"", Reason.EMPTY, ""),
        (b"\xff\xfe", Reason.UNDECODABLE, ""),
        (b"[]", Reason.UNDECODABLE, ""),
        (b'{"event_time": "yesterday"}', Reason.UNDECODABLE, ""),
        (to_json(request(pipeline="")), Reason.MISSING_FIELD, "pipeline"),
        (to_json(request(cause_key="")), Reason.MISSING_FIELD, "cause_key"),
        (to_json(request(event_time=None)), Reason.MISSING_FIELD, "event_time"),
        (to_json(request(pipeline="x" * 501)), Reason.OVERSIZED, "pipeline"),
    ],
)
def test_what_is_no_request_is_poison_with_its_reason(value: bytes | None, reason: Reason, field: str) -> None:
    with pytest.raises(Poison) as caught:
        decode_request(value)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_an_operators_key_makes_one_cause() -> None:
    asked = training.SubmitRunRequest(pipeline="p", reason="new aircraft")
    one, other = (operator_request(asked, key="k", actor="anna") for _ in range(2))
    assert one.cause_key == other.cause_key == cause_key("p", OPERATOR, "k")
    assert one.request_id == other.request_id
    assert operator_request(asked, key="other", actor="anna").cause_key != one.cause_key


@pytest.mark.parametrize(("reason", "key"), [("w" * 501, "k"), ("why", "k" * 501)])
def test_what_an_operator_says_is_bounded(reason: str, key: str) -> None:
    with pytest.raises(Poison, match="at most 500 characters"):
        operator_request(training.SubmitRunRequest(pipeline="p", reason=reason), key=key, actor="anna")


@pytest.mark.parametrize("field", ["pipeline", "reason"])
def test_an_operator_says_what_and_why(field: str) -> None:
    asked = training.SubmitRunRequest(pipeline="p", reason="why")
    setattr(asked, field, " ")
    with pytest.raises(Poison) as caught:
        operator_request(asked, key="k", actor="anna")
    assert caught.value.field == field


def test_without_a_time_the_pipeline_clock_counts_and_without_a_clock_it_is_refused() -> None:
    asked = operator_request(training.SubmitRunRequest(pipeline="p", reason="why"), key="k", actor="anna")
    clock = monitoring.ClockRecord(pipeline="p", event_time=AT)
    clock.positions.add(topic="events.a", partition=1, next_offset=7)
    complete = timed(asked, clock, NOW_US)
    assert complete.event_time == AT
    assert complete.positions[0].next_offset == 7
    assert complete.summary == "p: retraining on data up to 2013-06-06T14:00:00Z asked for by anna: why"
    for none in (None, monitoring.ClockRecord(pipeline="p")):
        with pytest.raises(Poison, match="no clock yet"):
            timed(asked, none, NOW_US)


def closure() -> definition.Definition:
    pipeline = definition.Pipeline(name="flight-delays", request="asked", label=definition.Label(stream="landed"))
    pipeline.features.add(name="o", view=definition.ViewLookup(view="origin"))
    pipeline.train.window_ms = 86_400_000
    views = [definition.View(name="origin", stream="departed")]
    return definition.Definition(pipelines=[pipeline], views=views)


def spec(asked: monitoring.RetrainRequest, seed: int = 0) -> RunSpec:
    record = definition.DefinitionRecord(name="flight-delays", hash="sha256:d", definition=closure())
    record.definition.pipelines[0].train.seed = seed
    champion = records.DeployedVersion(version=3, bundle="p/x", manifest_hash="sha256:m")
    return RunSpec("run-1", record, asked, champion, 0.15, False, Places("a", "k"), {"events_asked": "file:///t"})


def test_a_run_reads_every_stream_of_its_pipeline_and_the_predictions() -> None:
    assert topics_of(closure()) == ["events.asked", "events.departed", "events.landed", "serving.predictions.v1"]


def test_a_spec_survives_the_pipe() -> None:
    whole = spec(request())
    assert RunSpec.from_json(whole.to_json()) == whole


def test_the_seed_follows_cause_definition_and_declared_seed_and_nothing_else() -> None:
    assert spec(request()).seed == spec(request(reason="other words")).seed
    assert len({spec(request()).seed, spec(request(cause_key="other")).seed, spec(request(), seed=1).seed}) == 3
    assert 0 <= spec(request()).seed < 2**53


def test_the_window_is_the_definitions_or_the_requests() -> None:
    until = parse_us("2013-06-06T14:00:00Z")
    start = parse_us("2013-06-01T00:00:00Z")
    assert spec(request()).window == Window(until - 86_400_000_000, until)
    assert spec(request(window_start=to_timestamp(start))).window == Window(start, until)


def test_lines_survive_the_pipe_and_others_are_refused() -> None:
    version = registry.RegisterVersionRequest(pipeline="p", bundle="p/x", metrics={"log_loss": 0.4})
    version.lineage.snapshots["events"] = 8_000_000_000_000_000_001
    for line in (Progress("fit", 0.5), Done(version, {"rows": 7}), Failed("too few rows")):
        raw = to_line(line)
        assert raw.endswith(b"\n")
        assert b"\n" not in raw[:-1]
        assert from_line(raw) == line
    for raw in (b"hello\n", b"{}\n", b'{"kind": "other"}\n'):
        with pytest.raises((ValueError, KeyError)):
            from_line(raw)


def test_a_runs_process_gets_no_settings_of_the_service() -> None:
    given = {"TIDEMILL_TRAINING_KAFKA__SASL_PASSWORD": "secret", "PATH": "/bin", "AWS_REGION": "x"}
    found = environment(given)
    assert "secret" not in found.values()
    assert found["AWS_REGION"] == "x"
    assert found["OPENBLAS_NUM_THREADS"] == "1"


def test_records_of_a_run_say_what_happened_in_a_sentence() -> None:
    run = registry.Run(run_id="run-1", attempts=2)
    begun = run_records.started(run, request(), NOW_US)
    assert begun.summary == (
        "flight-delays: training on data up to 2013-06-06T14:00:00Z began, attempt 2 (drift: log loss rose)."
    )
    version = records.VersionRecord(version=4, metrics={"log_loss": 0.4321})
    version.lineage.rows = 46_750
    done = run_records.succeeded("run-1", request(), version, Struct(), NOW_US)
    assert done.summary == (
        "flight-delays v4 trained on 46,750 rows, log loss 0.4321 on the newest rows; every gate passed."
    )
    version.gates.add(gate="better(log_loss)", passed=False, reason="0.44 does not beat 0.43.")
    refused = run_records.succeeded("run-1", request(), version, Struct(), NOW_US)
    assert refused.summary.endswith("refused by better(log_loss): 0.44 does not beat 0.43.")
    failed = run_records.ended("run-1", request(), "failed", "12 labelled rows.", NOW_US)
    assert failed.summary == "flight-delays: training failed: 12 labelled rows."
    assert json.loads(to_json(failed))["requested_at"] == "2013-06-06T14:00:00Z"
