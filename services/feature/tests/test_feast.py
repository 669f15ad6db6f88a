"""Reads through Feast's HTTP door, from rings in the real Redis: values, shapes and refusals."""

from typing import Any

import pytest
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_testkit.fraud_world import PAYER, PIPELINE, STREAM

# conftest's Door; test modules cannot import it under importlib mode.
Door = Any

pytestmark = pytest.mark.servers


async def test_feast_answers_by_column_with_entities_first(door: Door) -> None:
    # Feast's door reads as of now: what was paid in 2013 has left every window.
    found = await door.feast(features=["payer:payments", "payer:card"], entities={"payer": ["ann", "eve", None]})
    assert found["metadata"]["feature_names"] == ["payer", "payments", "card"]
    payer, payments, card = found["results"]
    assert payer == {
        "values": ["ann", "eve", None],
        "statuses": ["PRESENT", "PRESENT", "NULL_VALUE"],
        "event_timestamps": ["1970-01-01T00:00:00Z"] * 3,
    }
    assert payments["statuses"] == card["statuses"] == ["OUTSIDE_MAX_AGE", "NOT_FOUND", "NOT_FOUND"]
    assert payments["values"] == [0, None, None]


async def test_a_reference_names_a_version_by_its_hash_or_its_first_digits(door: Door) -> None:
    whole = door.hashes["payer"]
    for version in (whole, whole.removeprefix("sha256:"), whole.removeprefix("sha256:")[:8]):
        found = await door.feast(features=[f"payer@{version}:payments"], entities={"payer": ["ann"]})
        assert found["metadata"]["feature_names"] == ["payer", "payments"]


async def test_feast_full_names_and_a_pipeline_as_a_feature_service(door: Door) -> None:
    found = await door.feast(feature_service="fraud", entities={"card": ["ann"]}, full_feature_names=True)
    names = found["metadata"]["feature_names"]
    assert names[:2] == ["card", "who__payments"]
    assert len(names) == len(found["results"]) == 1 + len(PAYER.features)


@pytest.mark.parametrize("entities", [{}, {"card": ["ann"]}])
async def test_a_pipeline_that_looks_up_no_view_is_refused_as_a_feature_service(
    door: Door, entities: dict[str, Any]
) -> None:
    bare = definition.Pipeline(name="bare", request="paid", features=[PIPELINE.features[1]])
    closure = definition.Definition(streams=[STREAM], pipelines=[bare])
    door.known.fold(to_json(definition.DefinitionRecord(kind="pipeline", name="bare", definition=closure)))
    response = await door.http.post("/get-online-features", json={"feature_service": "bare", "entities": entities})
    problem = response.json()
    assert (response.status_code, problem["reason"], problem["field"]) == (400, "empty", "feature_service")
    assert problem["detail"] == "pipeline 'bare' looks up no view"


async def test_what_only_the_version_has_that_is_being_built_is_unavailable(door: Door) -> None:
    changed = definition.View.FromString(PAYER.SerializeToString())
    changed.features.add().CopyFrom(changed.features[3])
    changed.features[-1].name = "largest"
    new = door.redefine(changed)
    # The former version answers for both.
    found = await door.feast(features=["payer:payments"], entities={"payer": ["ann"]})
    assert found["results"][1]["values"] == [0]
    body: dict[str, Any]
    for wanted in ("payer:largest", f"payer@{new.removeprefix('sha256:')}:payments"):
        body = {"features": [wanted], "entities": {"payer": ["ann"]}}
        response = await door.http.post("/get-online-features", json=body)
        assert (response.status_code, response.json()["reason"]) == (503, "unavailable"), response.text
    body = {"feature_service": "fraud", "entities": {"card": []}, "full_feature_names": True}
    response = await door.http.post("/get-online-features", json=body)
    assert (response.status_code, response.json()["reason"]) == (503, "unavailable"), response.text


BAD_BODIES: list[tuple[dict[str, Any], int, str]] = [
    ({"features": ["payer:payments"], "entities": {"payer": [7]}}, 400, "wrong_type"),
    ({"features": ["payer:payments"], "entities": {"payer": ["x" * 1_000_000]}}, 413, "oversized"),
    ({"features": ["payer:payments"], "entities": {"payer": [{}]}}, 400, "wrong_type"),
    ({"features": ["payer:payments"], "entities": {"payer": "ann"}}, 400, "wrong_type"),
    ({"features": ["payer:payments"], "entities": {"driver": [1]}}, 404, "unknown_entity"),
    ({"features": ["payer:payments"], "entities": {}}, 400, "missing_field"),
    ({"features": ["payer:payments"]}, 400, "missing_field"),
    ({"features": ["nobody:payments"], "entities": {"payer": ["ann"]}}, 404, "unknown_view"),
    ({"features": ["payer@v2:payments"], "entities": {"payer": ["ann"]}}, 404, "unknown_version"),
    ({"features": ["payer:nothing"], "entities": {"payer": ["ann"]}}, 400, "unknown_field"),
    ({"features": ["payments"], "entities": {"payer": ["ann"]}}, 400, "undecodable"),
    ({"features": [], "entities": {"payer": ["ann"]}}, 400, "empty"),
    ({"feature_service": "nobody", "entities": {"payer": ["ann"]}}, 404, "unknown_pipeline"),
    ({"feature_service": "fraud", "features": ["payer:items"], "entities": {}}, 409, "conflict"),
    ({"features": ["payer:card", "payer:card"], "entities": {"payer": ["ann"]}}, 409, "conflict"),
    ({"features": ["payer:items"], "entities": {"payer": ["ann"]}, "more": 1}, 400, "unknown_field"),
    ({"features": ["payer:items"], "entities": {"payer": ["ann"] * 10_001}}, 400, "out_of_range"),
    *(
        ({"features": ["basket:payments"], "entities": {**whole, **changed}}, 400, reason)
        for whole in ({"items": [2], "at": ["2013-06-04T12:00:00Z"], "gift": [True]},)
        for changed, reason in (
            ({"items": [2**63]}, "out_of_range"),
            ({"items": [True]}, "wrong_type"),
            ({"items": [1, 2]}, "missing_field"),
            ({"at": ["2013-06-04T12:00:00"]}, "naive_timestamp"),
            ({"at": ["noon"]}, "wrong_type"),
            ({"at": ["1492-10-12T00:00:00Z"]}, "out_of_range"),
            ({"at": [1_370_347_200]}, "wrong_type"),
            ({"gift": [1]}, "wrong_type"),
        )
    ),
]
BAD_BYTES: list[tuple[bytes, int, str]] = [
    (b"", 400, "empty"),
    (b'{"features": [', 400, "undecodable"),
    (b'{"features": ["payer:items"], "entities": {"payer": ["\\ud800"]}}', 400, "bad_utf8"),
    (b'{"features": ["payer:items"], "entities": {"\\ud800": ["a"]}}', 400, "bad_utf8"),
    (b'{"features": ["payer:items"], "entities": {"payer": ["\xff"]}}', 400, "bad_utf8"),
    ('{"features": ["payer:items"], "entities": {"payer": ["a"]}}'.encode("utf-16-le"), 400, "bad_utf8"),
    (b'{"features": ["payer:items"], "entities": {"payer": [NaN]}}', 400, "non_finite"),
    (b'{"features": ["payer:items"], "entities": {"payer": [-Infinity]}}', 400, "non_finite"),
    (b" " * (4 * 1024 * 1024 + 1), 413, "oversized"),
]


async def test_what_feast_s_door_refuses_has_one_named_reason(door: Door) -> None:
    for body, status, reason in BAD_BODIES:
        response = await door.http.post("/get-online-features", json=body)
        assert (response.status_code, response.json().get("reason")) == (status, reason), (body, response.text)
        assert response.headers["content-type"] == "application/problem+json"
    for raw, status, reason in BAD_BYTES:
        response = await door.http.post(
            "/get-online-features", content=raw, headers={"content-type": "application/json"}
        )
        assert (response.status_code, response.json().get("reason")) == (status, reason), (raw[:80], response.text)


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}])
async def test_a_body_that_curl_sends_without_a_word_is_json(door: Door, headers: dict[str, str]) -> None:
    asked = b'{"features": ["payer:payments"], "entities": {"payer": ["ann"]}}'
    response = await door.http.post("/get-online-features", content=asked, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["metadata"]["feature_names"] == ["payer", "payments"]
