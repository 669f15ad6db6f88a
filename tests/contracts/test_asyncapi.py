"""docs/asyncapi.yaml is an AsyncAPI 3.0 document, says what the catalogue says, and its schemas take the examples."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tidemill_contracts.topics import DEFAULT_PREFIX, STREAM, Topic, load_topics

DOCUMENT = Path(__file__).parents[2] / "docs/asyncapi.yaml"
SPECIFICATION = Path(__file__).parent / "asyncapi/3.0.0.json"
TOPICS = load_topics()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text())
    return loaded


def channel_of(document: dict[str, Any], topic: Topic) -> dict[str, Any]:
    channel: dict[str, Any] = document["channels"][topic.name.replace(STREAM, "stream")]
    return channel


def references(node: Any) -> Iterator[str]:
    """Yield every reference of the document."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        yield node["$ref"]
    for child in children:
        yield from references(child)


def faults(specification: dict[str, Any], document: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(specification)
    return [
        f"{'/'.join(map(str, fault.absolute_path))}: {fault.message[:200]}" for fault in validator.iter_errors(document)
    ]


def test_the_document_keeps_to_the_specification(document: dict[str, Any]) -> None:
    specification = json.loads(SPECIFICATION.read_text())
    assert faults(specification, document) == []
    # The schema would notice: a binding of the wrong type is a fault.
    document["channels"]["serving.predictions.v1"]["bindings"]["kafka"]["partitions"] = "four"
    assert faults(specification, document) != []
    document["channels"]["serving.predictions.v1"]["bindings"]["kafka"]["partitions"] = 4


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in set(references(document)):
        node: Any = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
        assert node


def test_every_topic_is_a_channel_and_every_channel_a_topic(document: dict[str, Any]) -> None:
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert addresses == {DEFAULT_PREFIX + topic.name.replace(STREAM, "{stream}") for topic in TOPICS}


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_producers_send_and_consumers_receive(document: dict[str, Any], topic: Topic) -> None:
    name = topic.name.replace(STREAM, "stream")
    mine = [one for one in document["operations"].values() if one["channel"]["$ref"] == f"#/channels/{name}"]
    said = {(one["action"], one["tags"][0]["name"]) for one in mine}
    assert said == {("send", who) for who in topic.producers} | {("receive", who) for who in topic.consumers}


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_the_schemas_take_every_example(document: dict[str, Any], topic: Topic) -> None:
    message = channel_of(document, topic)["messages"]["record"]
    payload = message["payload"]
    if topic.encoding == "protobuf":
        payload = {"$ref": f"#/components/schemas/{topic.message.removeprefix('tidemill.')}"}
    for example in message["examples"]:
        for schema, value in ((payload, example["payload"]), (message["headers"], example["headers"])):
            whole = {**schema, "components": document["components"]}
            jsonschema.Draft7Validator(_closed(whole)).validate(value)


def _closed(node: Any) -> Any:
    """Return the schema with no property allowed that it does not name, wherever it says nothing of others."""
    if isinstance(node, dict):
        closed = {name: _closed(child) for name, child in node.items()}
        named = node.get("type") == "object" and "properties" in node
        return {"additionalProperties": False, **closed} if named else closed
    return [_closed(child) for child in node] if isinstance(node, list) else node
