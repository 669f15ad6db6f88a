"""The topic catalogue and the fold of registered definitions."""

import re

import pytest
from tidemill_contracts.canonical import to_json, view_hash
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import (
    dead_letter_topic,
    events_topic,
    fixed_topics,
    load_topics,
    stream_topics,
)

DEFINITION = definition.Definition(
    streams=[definition.Stream(name=name) for name in ("asked", "clicks", "bought")],
    views=[definition.View(name="user", stream="clicks")],
    pipelines=[
        definition.Pipeline(
            name="buys",
            request="asked",
            label=definition.Label(stream="bought"),
            features=[
                definition.FeatureSource(name="user", view=definition.ViewLookup(view="user", on=["id"])),
                definition.FeatureSource(name="hour", expression="hour(at)"),
            ],
        )
    ],
)


def record(revision: int, content: definition.Definition) -> bytes:
    return to_json(
        definition.DefinitionRecord(
            kind="pipeline", name="buys", revision=revision, hash=f"sha256:{revision}", definition=content
        )
    )


def test_a_pipelines_streams_are_request_label_and_views() -> None:
    catalogue = Catalogue()
    catalogue.fold(record(1, DEFINITION))
    assert catalogue.streams_of(catalogue.pipelines["buys"]) == ["asked", "bought", "clicks"]
    assert catalogue.view_hash("user").startswith("sha256:")


def test_a_later_record_replaces_an_earlier_one() -> None:
    catalogue = Catalogue()
    catalogue.fold(record(1, DEFINITION))
    changed = definition.Definition()
    changed.CopyFrom(DEFINITION)
    changed.streams[1].partitions = 9
    catalogue.fold(record(2, changed))
    assert catalogue.streams["clicks"].partitions == 9
    assert catalogue.pipeline_hashes["buys"] == "sha256:2"


def test_a_tombstone_changes_nothing() -> None:
    catalogue = Catalogue()
    assert catalogue.fold(None) is None
    assert catalogue == Catalogue()


def test_a_retired_view_is_gone_until_it_is_registered_again() -> None:
    catalogue = Catalogue()
    catalogue.fold(record(1, DEFINITION))
    gone = to_json(definition.DefinitionRecord(kind="view", name="user", revision=2, retired=True))
    assert catalogue.fold(gone) is not None
    assert (catalogue.views, catalogue.retired, len(catalogue.streams)) == ({}, {"user"}, 3)
    catalogue.fold(record(3, DEFINITION))
    assert (list(catalogue.views), catalogue.retired) == (["user"], set())


def test_a_retired_pipeline_or_stream_is_gone() -> None:
    catalogue = Catalogue()
    catalogue.fold(record(1, DEFINITION))
    for kind, name in (("pipeline", "buys"), ("stream", "bought")):
        catalogue.fold(to_json(definition.DefinitionRecord(kind=kind, name=name, revision=2, retired=True)))
    assert (catalogue.pipelines, catalogue.pipeline_hashes) == ({}, {})
    assert (sorted(catalogue.streams), catalogue.retired) == (["asked", "clicks"], set())


def test_a_views_name_does_not_depend_on_the_number_of_partitions() -> None:
    view, narrow = DEFINITION.views[0], definition.Stream(name="clicks", partitions=2)
    assert view_hash(view, narrow) == view_hash(view, definition.Stream(name="clicks", partitions=4))


def test_garbage_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        Catalogue().fold(b"\x00")


def test_names_follow_the_convention() -> None:
    for topic in fixed_topics():
        assert re.fullmatch(r"[a-z]+\.[a-z-]+\.v\d+", topic.name), topic.name
        assert "_" not in topic.name


def test_compacted_topics_hold_state_for_ever() -> None:
    for topic in load_topics():
        if topic.cleanup == "compact":
            assert topic.retention_hours == -1, topic.name


def test_a_stream_gets_its_topic_and_its_dead_letters() -> None:
    events, refused = stream_topics([("clicks", 3)])
    assert (events.name, events.partitions) == (events_topic("clicks"), 3)
    assert (refused.name, refused.partitions) == (dead_letter_topic(events.name), 1)
    assert dead_letter_topic("registry.models.v1") == "ingestion.dead-letters.v1"
