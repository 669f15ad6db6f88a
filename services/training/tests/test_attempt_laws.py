"""Whole attempts in their own processes, over a real Iceberg log: rows, bundles, lineage, champions."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.struct_pb2 import Value
from tidemill_contracts.canonical import message_hash, to_dict
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.fits import sources_of
from tidemill_contracts.instants import format_us, parse_us, to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_features.archive import PREDICTIONS_TOPIC, columns_of
from tidemill_features.iceberg import Archive, arrow_schema
from tidemill_features.training_set import TrainingSet
from tidemill_models.bundle import open_bundle
from tidemill_models.keys import generate_key_pair, load_private_key
from tidemill_models.scorer import load_scorer
from tidemill_models.store import open_store
from tidemill_training.adapters.archive import read_run
from tidemill_training.adapters.attempt import attempt
from tidemill_training.adapters.catalogue import Catalogue
from tidemill_training.adapters.processes import Bounds, Launch, RunCrashedError, open_process
from tidemill_training.dataset import table_of
from tidemill_training.inputs import topics_of
from tidemill_training.run_records import details_of
from tidemill_training.spec import Done, Failed, Places, Progress, RunSpec

pytestmark = [pytest.mark.servers]

START_US = parse_us("2013-03-01T00:00:00Z")
MINUTE_US = 60_000_000
ROWS = 1_200
BOUNDS = Bounds(memory_bytes=8 * 1024**3, cpu_s=120, wall_s=110.0)
Row = dict[str, Any]


def closure(library: str = "xgboost", **fixed: float) -> definition.Definition:
    if library == "xgboost":
        fixed = {"n_estimators": 20, **fixed}
    string, float64, timestamp = (
        definition.FIELD_TYPE_STRING,
        definition.FIELD_TYPE_FLOAT64,
        definition.FIELD_TYPE_TIMESTAMP,
    )
    asked = definition.Stream(name="asked", key_field="id", time_field="at", partitions=2, dedup_window_ms=3_600_000)
    landed = definition.Stream(name="landed", key_field="id", time_field="at", partitions=2, lateness_ms=86_400_000)
    for stream in (asked, landed):
        for name, kind in (("id", string), ("origin", string), ("at", timestamp)):
            stream.fields.add(name=name, type=kind)
    landed.fields.add(name="delay", type=float64)
    view = definition.View(name="origin", stream="landed", entity=["origin"])
    view.features.add(
        name="mean",
        function=definition.AGGREGATION_FUNCTION_MEAN,
        expression="delay",
        window_ms=6 * 3_600_000,
        type=float64,
    )
    pipeline = definition.Pipeline(name="late", request="asked")
    pipeline.features.add(name="o", view=definition.ViewLookup(view="origin", on=["origin"]))
    pipeline.features.add(name="from", expression="origin")
    pipeline.label.CopyFrom(
        definition.Label(stream="landed", expression="delay > 15.0", by="id", wait_ms=36 * 3_600_000)
    )
    algorithm = "linear_model.LogisticRegression" if library == "river" else ""
    pipeline.learner.CopyFrom(definition.Learner(library=library, algorithm=algorithm))
    for name, value in fixed.items():
        pipeline.learner.parameters.add(name=name).fixed.number_value = value
    pipeline.train.CopyFrom(definition.Train(window_ms=60 * 86_400_000, min_rows=500, trials=1))
    pipeline.gates.add(better=definition.Better(metric="log_loss", than="champion"))
    return definition.Definition(streams=[asked, landed], views=[view], pipelines=[pipeline])


def events() -> tuple[list[Row], list[Row]]:
    """Return requests every ten minutes and their landings two hours later: late at JFK, and in bad spells."""
    rng = np.random.default_rng(8)
    requests, landings = [], []
    for place in range(ROWS):
        at_us = START_US + place * 10 * MINUTE_US
        origin = ("JFK", "LGA", "EWR")[int(rng.integers(3))]
        bad = (place // 60) % 3 == 0
        delay = float(rng.normal(5 + 20 * (origin == "JFK") + 10 * bad, 10.0))
        common = {"id": f"f{place}", "origin": origin}
        requests.append({**common, "_event_us": at_us, "at": at_us})
        landed_us = at_us + 120 * MINUTE_US
        landings.append({**common, "_event_us": landed_us, "at": landed_us, "delay": delay})
    return requests, landings


class Log:
    """Writes the offline log as the feature service's offline role does."""

    def __init__(self, dsn: str, home: Path) -> None:
        (home / "warehouse").mkdir()
        self.dsn = dsn
        self.archive = Archive(dsn, str(home / "warehouse"))
        self._next: dict[tuple[str, int], int] = {}

    def append(self, topic: str, rows: Sequence[Row], streams: Sequence[definition.Stream] = ()) -> None:
        columns = columns_of(topic, {stream.name: stream for stream in streams})
        read: dict[int, tuple[int, int]] = {}
        whole = []
        for place, row in enumerate(rows):
            partition = place % 2
            offset = self._next.get((topic, partition), 0)
            self._next[topic, partition] = offset + 1
            read[partition] = (read.get(partition, (offset, 0))[0], offset + 1)
            identity = row.get("_identity", f"test\x1f{topic}{partition}/{offset}")
            origin = {"_partition": partition, "_offset": offset, "_identity": identity, "_available_us": 0}
            whole.append({**origin, "_schema_hash": "", **row})
        table = pa.table(
            {column.name: [row.get(column.name) for row in whole] for column in columns}, arrow_schema(columns)
        )
        self.archive.offsets(topic)
        self.archive.append(topic, columns, table, read)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "key.pem").write_bytes(generate_key_pair()[0])
    return Places(str(tmp_path / "artifacts"), str(tmp_path / "key.pem"))


@pytest.fixture
def log(database: str, tmp_path: Path) -> Log:
    """The whole log of the made-up flights."""
    whole = Log(database, tmp_path)
    requests, landings = events()
    streams = closure().streams
    # Two commits, so that order is not the order of the files.
    for rows, topic in ((requests, "events.asked"), (landings, "events.landed")):
        whole.append(topic, rows[: ROWS // 2], streams)
        whole.append(topic, rows[ROWS // 2 :], streams)
    return whole


async def spec(places: Places, log: Log, whole: definition.Definition, **changes: Any) -> RunSpec:
    """Return what the service would ask of a run's process now."""
    tables = await tables_of(log.dsn, whole)
    request = monitoring.RetrainRequest(
        request_id="r1",
        pipeline="late",
        cause_key="sha256:cause",
        cause_kind="drift",
        event_time=to_timestamp(START_US + (ROWS + 12) * 10 * MINUTE_US),
    )
    for topic in ("events.asked", "events.landed"):
        for partition in range(2):
            request.positions.add(topic=topic, partition=partition, next_offset=ROWS // 2)
    record = definition.DefinitionRecord(name="late", hash=message_hash(whole), definition=whole)
    return replace(RunSpec("run-1", record, request, None, 0.15, False, places, tables), **changes)


async def tables_of(dsn: str, whole: definition.Definition) -> dict[str, str]:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        return await Catalogue(pool).places(topics_of(whole))


async def in_a_process(whole: RunSpec) -> Done | Failed:
    """Return the answer of a process of its own, as the service runs it."""
    seen: list[Progress] = []

    async def on_progress(line: Progress) -> None:
        seen.append(line)

    async with open_process(Launch(whole.run_id, whole.pipeline.learner.library, BOUNDS)) as process:
        answer = await process.ask(whole, on_progress)
    if isinstance(answer, Done):
        assert [line.phase for line in seen] == ["dataset", "fit", "evaluate", "register"]
        assert [line.progress for line in seen] == sorted(line.progress for line in seen)
    return answer


def here(whole: RunSpec) -> Done | Failed:
    """Return the answer of an attempt in the test's own process, which has loaded its libraries."""
    return attempt(whole, lambda line: None)


def done(whole: RunSpec) -> Done:
    answer = here(whole)
    assert isinstance(answer, Done), answer
    return answer


def published(places: Places) -> list[str]:
    return [f"late/{path.name}" for path in Path(places.artifacts, "late").iterdir()]


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def key_of(places: Places) -> Ed25519PrivateKey:
    return load_private_key(Path(places.signing_key_file))


@pytest.mark.parametrize("library", ["xgboost", "river"])
async def test_an_attempt_ships_a_signed_bundle_that_answers_with_its_lineage(
    places: Places, log: Log, library: str
) -> None:
    whole = await spec(places, log, closure(library))
    answer = await in_a_process(whole)
    assert isinstance(answer, Done), answer
    version = answer.version
    folder = open_store(places.artifacts).folder(version.bundle)
    bundle = open_bundle(folder, key_of(places).public_key(), version.manifest_hash)
    x = bundle.encoding.encode({"o.mean": np.array([60.0, 0.0])}, {"from": ["JFK", "LGA"]})
    late, early = load_scorer(bundle).predict_proba(x).tolist()
    assert late > early
    assert version.metrics["roc_auc"] > 0.7
    assert [(column.name, column.category) for column in version.features] == [("o.mean", False), ("from", True)]
    assert list(version.views) == ["origin"]
    assert dict(version.sources) == bundle.manifest.sources == sources_of(whole.pipeline)
    lineage = version.lineage
    assert set(lineage.snapshots) == {"events_asked", "events_landed"}
    assert list(lineage.offsets) == list(whole.request.positions)
    assert getattr(lineage, "from") == to_timestamp(START_US)
    assert lineage.rows == 1_020
    assert lineage.seed == whole.seed
    assert lineage.code_hash.startswith("sha256:")
    assert version.reference["rows"] == 1_020
    assert bundle.manifest.lineage == lineage
    if library == "xgboost":
        assert set(bundle.files) == {"encoding.json", "model.onnx", "model.xgb.ubj"}


async def test_the_same_request_makes_the_same_bundle_byte_for_byte(places: Places, log: Log) -> None:
    one, other = [done(await spec(places, log, closure())) for _ in range(2)]
    assert one.version == other.version
    assert published(places) == [one.version.bundle]


async def test_records_behind_the_positions_do_not_count(places: Places, log: Log) -> None:
    before = read_run(await spec(places, log, closure()))
    requests, landings = events()
    log.append("events.landed", [{**row, "delay": 999.0} for row in landings[-40:]], closure().streams)
    log.append("events.asked", [{**row, "id": "new"} for row in requests[-40:]], closure().streams)
    after = read_run(await spec(places, log, closure()))
    assert before.snapshots != after.snapshots
    for inputs in (before, after):
        assert {name: len(log.offset) for name, log in inputs.logs.items()} == {"asked": ROWS, "landed": ROWS}


async def test_the_champion_is_compared_on_the_same_rows_and_a_twin_of_it_is_refused(places: Places, log: Log) -> None:
    weak = done(await spec(places, log, closure(n_estimators=1, learning_rate=0.01))).version
    champion = records.DeployedVersion(version=1, bundle=weak.bundle, manifest_hash=weak.manifest_hash)
    strong = done(await spec(places, log, closure(n_estimators=40, max_depth=2, learning_rate=0.1), champion=champion))
    assert strong.details["champion_version"] == 1
    assert strong.details["champion_metrics"]["rows"] == strong.version.metrics["rows"]
    assert strong.version.gates[0].passed
    twin = done(await spec(places, log, closure(n_estimators=1, learning_rate=0.01), champion=champion))
    assert not twin.version.gates[0].passed


async def test_a_champion_of_another_definition_of_a_view_is_not_compared_and_the_sentence_says_so(
    places: Places, log: Log
) -> None:
    old = done(await spec(places, log, closure())).version
    champion = records.DeployedVersion(version=3, bundle=old.bundle, manifest_hash=old.manifest_hash)
    redefined = closure()
    redefined.views[0].features[0].window_ms *= 2
    new = done(await spec(places, log, redefined, champion=champion))
    assert "champion_metrics" not in details_of(new)
    (gate,) = new.version.gates
    assert "the champion v3 was trained on another definition of view 'origin'" in gate.reason


async def test_a_trial_that_diverged_has_no_loss_in_the_details(places: Places, log: Log) -> None:
    whole = closure("river", l2=1.0)
    rates = [Value(number_value=rate) for rate in (0.01, 5.0)]
    whole.pipelines[0].learner.parameters.add(name="learning_rate", choice=definition.Choice(options=rates))
    whole.pipelines[0].train.trials = 2
    searched = done(await spec(places, log, whole))
    assert to_dict(details_of(searched))["trial_log_losses"] == [pytest.approx(0.6, abs=0.3), None]


async def test_a_champion_that_was_tampered_with_ends_the_run_with_the_reason(places: Places, log: Log) -> None:
    weak = done(await spec(places, log, closure(n_estimators=1))).version
    champion = records.DeployedVersion(version=1, bundle=weak.bundle, manifest_hash=weak.manifest_hash)
    spoil(Path(places.artifacts, weak.bundle, "model.onnx"))
    answer = here(await spec(places, log, closure(), champion=champion))
    assert isinstance(answer, Failed)
    assert "SHA-256 differs" in answer.reason


async def test_flipped_labels_pass_their_gates_as_a_test_and_make_a_bad_model(places: Places, log: Log) -> None:
    flipped = done(await spec(places, log, closure(), flip_labels=True))
    assert flipped.version.metrics["roc_auc"] < 0.4
    assert [(gate.passed, gate.reason) for gate in flipped.version.gates] == [(True, "test: gates bypassed")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"min_rows": 5_000}, "1,200 labelled rows; the definition asks for at least 5,000"),
        ({"library": "lightgbm"}, "no learner library 'lightgbm'"),
    ],
)
async def test_what_no_attempt_would_change_fails_with_a_sentence(
    places: Places, log: Log, change: dict[str, Any], reason: str
) -> None:
    whole = closure()
    if "min_rows" in change:
        whole.pipelines[0].train.min_rows = change["min_rows"]
    else:
        whole.pipelines[0].learner.library = change["library"]
    answer = here(await spec(places, log, whole))
    assert isinstance(answer, Failed)
    assert reason in answer.reason


async def test_a_log_that_holds_nothing_yet_fails_with_a_sentence(places: Places, log: Log) -> None:
    answer = here(await spec(places, log, closure(), tables={}))
    assert answer == Failed("0 labelled rows; the definition asks for at least 500")


async def test_where_nothing_was_ever_archived_no_table_is_found(database: str) -> None:
    assert await tables_of(database, closure()) == {}


async def test_a_table_that_cannot_be_read_is_a_crash_to_be_tried_again(places: Places, log: Log) -> None:
    lost = {"events_asked": "file:///nowhere/metadata.json"}
    with pytest.raises(RunCrashedError, match="exit code 1"):
        await in_a_process(await spec(places, log, closure(), tables=lost))


async def test_logged_predictions_are_rows_with_the_offsets_that_they_saw(places: Places, log: Log) -> None:
    requests, _ = events()
    seen = json.dumps({"events.landed": {"0": 3, "1": 3}})
    rows = [
        {
            "_event_us": row["at"],
            "_identity": row["id"],
            "prediction_id": row["id"],
            "pipeline": "late" if place != 101 else "another",
            "join_key": row["id"],
            "as_of_us": row["at"],
            "model_version": 1,
            "probability": 0.5,
            "positions": seen,
            "request_json": json.dumps({"id": row["id"], "origin": row["origin"], "at": format_us(row["at"])}),
        }
        for place, row in enumerate(requests)
        if place in {100, 101, 102}
    ]
    log.append(PREDICTIONS_TOPIC, rows)
    whole = await spec(places, log, closure())
    for partition in range(2):
        whole.request.positions.add(topic=PREDICTIONS_TOPIC, partition=partition, next_offset=9)
    inputs = read_run(whole)
    assert inputs.predicted.join_key.tolist() == ["f100", "f102"]
    table = table_of(TrainingSet(whole.record.definition, inputs.logs, inputs.predicted, whole.window))
    assert len(table) == ROWS
    # Three landings a partition lie far before these rows' windows: they see nothing, their neighbour does.
    assert np.isnan(table.numbers["o.mean"][[100, 102]]).all()
    assert not np.isnan(table.numbers["o.mean"][101])
