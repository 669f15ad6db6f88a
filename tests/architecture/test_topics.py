"""Every topic has an owner, a retention, an example and somebody who reads it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from tidemill_contracts.topics import Topic, load_topics

PARTIES = {"feature", "ingestion", "monitoring", "registry", "serving", "training", "sdk", "users"}
TOPICS = load_topics()


@pytest.fixture(params=TOPICS, ids=lambda topic: topic.name)
def topic(request: pytest.FixtureRequest) -> Topic:
    value: Topic = request.param
    return value


def test_the_catalogue_in_the_library_is_the_one_in_proto(root: Path) -> None:
    kept = {path.name: path.read_text() for path in (root / "proto/topics").glob("*.yaml")}
    shipped = {
        path.name: path.read_text()
        for path in (root / "libs/contracts/src/tidemill_contracts/topics_data").glob("*.yaml")
    }
    assert shipped == kept, "run `make gen`"
    assert len({yaml.safe_load(text)["name"] for text in kept.values()}) == len(kept)


def test_a_topic_has_an_owner_and_known_parties(topic: Topic) -> None:
    assert topic.owner in PARTIES - {"sdk"}
    assert topic.producers
    assert set(topic.producers) | set(topic.consumers) <= PARTIES


def test_a_topic_is_read_by_somebody(topic: Topic) -> None:
    assert topic.consumers, f"{topic.name}: name a consumer or drop the topic"


def test_a_topic_says_how_long_it_keeps(topic: Topic) -> None:
    assert topic.cleanup in {"compact", "delete"}
    if topic.cleanup == "delete":
        assert topic.retention_hours > 0 or topic.name == "registry.audit.v1", f"{topic.name} would grow for ever"


def test_a_topic_has_a_key_and_a_description(topic: Topic) -> None:
    assert topic.key.strip()
    assert topic.description.strip().endswith("."), f"{topic.name}: describe it in a sentence"
    assert topic.partitions >= 1


def test_a_topic_name_keeps_to_the_form(topic: Topic) -> None:
    # No underscore: Kafka's own metric names take '.' and '_' for the same character.
    users = topic.name.startswith("events.<stream>")
    assert users or re.fullmatch(r"[a-z]+\.[a-z]+(-[a-z]+)*\.v[1-9][0-9]*", topic.name)
    assert users or topic.name.startswith(topic.owner + "."), f"{topic.name} does not begin with its owner"


def test_a_topic_has_a_readable_example(topic: Topic, root: Path) -> None:
    folder = (root / "proto/topics" / topic.example).resolve()
    cases = sorted(folder.glob("*.json"))
    assert cases, f"add an example of {topic.name} as {folder.relative_to(root)}/<case>.json"
    for case in cases:
        assert "value" in json.loads(case.read_text()), f"{case.relative_to(root)} has no value"
