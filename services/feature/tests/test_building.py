"""Where a partition begins, which versions and builds are folded, and when they end."""

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_feature.book import Book, Version, read_book
from tidemill_feature.building import Fault, Found, resumable, start_partition
from tidemill_feature.decode import StreamDecoder
from tidemill_feature.progress import Progress
from tidemill_feature.registered import Definitions
from tidemill_feature.replaying import Chunk, Replay
from tidemill_feature.retiring import SETTLE_US, retire, unsettled
from tidemill_feature.uses import Uses
from tidemill_features.admission import Repeats
from tidemill_features.columns import Coded
from tidemill_features.expressions import Column
from tidemill_features.layout import EMPTY, NO_TOPIC_ID, Checkpoint, build_id, view_id
from tidemill_features.plan import compile_view
from tidemill_runtime.positions import Partition

IN_USE = ("registered", "shadow", "canary", "champion")
HERE, OTHER = bytes(range(16)), bytes(range(1, 17))
NEAR = 10
STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="amount", type=definition.FIELD_TYPE_FLOAT64, nullable=True),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=2,
    dedup_window_ms=60_000,
)


def view(window_s: int, name: str = "payer") -> definition.View:
    feature = definition.Aggregation(
        name="sum",
        function=definition.AGGREGATION_FUNCTION_SUM,
        expression="amount",
        window_ms=window_s * 1000,
        type=definition.FIELD_TYPE_FLOAT64,
    )
    return definition.View(name=name, stream="paid", entity=["payer"], features=[feature])


OLD, NEW = view(60), view(120)
OLD_ID, NEW_ID = (build_id(compile_view(one, STREAM).hash) for one in (OLD, NEW))


def registered(*views: definition.View, stream: definition.Stream = STREAM, book: Book | None = None) -> Definitions:
    definitions = Definitions()
    closure = definition.Definition(streams=[stream], views=list(views))
    definitions.fold(to_json(definition.DefinitionRecord(kind="view", name="v", definition=closure)))
    if book is not None:
        definitions.take(book)
    return definitions


def with_old(stream: definition.Stream = STREAM, **fields: Any) -> Definitions:
    """Return definitions of the new version, with the old one in the book."""
    versions = {OLD_ID.hex(): Version(1, OLD, STREAM), NEW_ID.hex(): Version(2, NEW, STREAM)}
    return registered(NEW, stream=stream, book=Book(versions=versions, **fields))


def point(offset: int, *builds: bytes, low: int | None = None) -> Checkpoint:
    return Checkpoint(HERE, offset, offset if low is None else low, 7, frozenset(builds), 2)


def found(stored: Checkpoint | None, built: Checkpoint | None = None, begin: int = 0, end: int = 1000) -> Found:
    return Found(stored, built, HERE, 2, begin, end)


def start(definitions: Definitions, one: Found) -> Any:
    return start_partition(definitions.streams()["paid"], one, NEAR)


def test_a_fresh_log_is_folded_from_its_first_record_and_read_once_it_has_caught_up() -> None:
    begun = start(registered(NEW), found(None))
    assert (begun.offset, set(begun.live), set(begun.missing)) == (0, {NEW_ID}, set())
    assert not begun.point.readable
    assert replace(begun.point, next_offset=1000).readable == {NEW_ID}
    assert start(registered(NEW), found(None, end=0)).point is None, "nothing has to be read first"


def test_without_its_beginning_a_log_is_not_enough() -> None:
    begun = start(registered(NEW), found(None, begin=50))
    assert (begun.offset, set(begun.live), set(begun.missing)) == (50, set(), {NEW_ID})
    assert begun.point.views == frozenset()


def test_a_new_view_is_built_beside_unless_its_past_is_short() -> None:
    definitions = with_old()
    far = start(definitions, found(point(500, OLD_ID, low=480)))
    assert (far.offset, set(far.live), set(far.missing)) == (480, {OLD_ID}, {NEW_ID})
    near = start(definitions, found(point(8, OLD_ID)))
    assert (near.offset, set(near.live), near.state.held_until) == (0, {OLD_ID, NEW_ID}, 8)
    assert near.state.checkpoint() is None
    near.state.next_offset = 8
    assert near.state.checkpoint() is not None


def test_what_was_built_is_read_together_from_where_it_is() -> None:
    begun = start(with_old(), found(point(500, OLD_ID, low=480), point(495, NEW_ID, low=470)))
    assert (begun.offset, begun.state.applied, begun.state.held_until) == (470, 495, 500)
    assert set(begun.live) == {OLD_ID, NEW_ID}
    assert begun.point is None, "nobody may read the new one before it has caught up"


def test_what_was_built_of_what_kafka_has_dropped_is_not_read_together_from_behind_it() -> None:
    begun = start(with_old(), found(point(60, OLD_ID, low=55), point(52, NEW_ID), begin=54))
    assert (set(begun.live), set(begun.missing)) == ({OLD_ID}, {NEW_ID})
    begun = start(with_old(), found(point(60, OLD_ID, low=55), point(54, NEW_ID), begin=54))
    assert (set(begun.live), begun.offset) == ({OLD_ID, NEW_ID}, 54)


@pytest.mark.parametrize(("built", "joined"), [(point(490, NEW_ID), True), (point(489, NEW_ID), False)])
def test_what_was_built_is_read_together_once_it_is_near(built: Checkpoint, joined: bool) -> None:
    begun = start(with_old(), found(point(500, OLD_ID), built))
    assert (NEW_ID in begun.live, NEW_ID in begun.missing) == (joined, not joined)


def test_what_was_built_beyond_the_others_waits_for_them() -> None:
    begun = start(with_old(), found(point(495, OLD_ID, low=470), point(500, NEW_ID), begin=480))
    assert (begun.offset, begun.state.applied, begun.state.held_until) == (480, 495, 500)
    assert begun.point is None


def test_of_two_that_are_read_together_time_stands_where_the_first_is_and_no_poison_is_told_twice() -> None:
    behind = replace(point(495, NEW_ID), newest_event_us=5)
    begun = start(with_old(), found(replace(point(500, OLD_ID), ready_from=700), behind))
    assert (begun.state.admission.newest_us, begun.state.seen, begun.state.ready_from) == (5, 500, 700)


def test_what_was_built_of_another_log_or_of_other_views_is_built_anew() -> None:
    one = found(point(1000, OLD_ID), point(1000, NEW_ID))
    assert resumable(one, frozenset({NEW_ID})) == one.built
    assert resumable(one, frozenset({NEW_ID, b"another"})) is None
    for built in (replace(point(1000, NEW_ID), topic_id=OTHER), point(1001, NEW_ID)):
        assert resumable(replace(one, built=built), frozenset({NEW_ID})) is None


def test_what_was_built_to_the_same_record_is_said_at_once() -> None:
    begun = start(with_old(), found(point(1000, OLD_ID), point(1000, NEW_ID)))
    assert begun.point.views == {OLD_ID, NEW_ID}


@pytest.mark.parametrize(
    ("stored", "fault"),
    [
        (Checkpoint(OTHER, 500, 500, 7, frozenset({NEW_ID}), 2), Fault.MADE_ANEW),
        (point(1001, NEW_ID), Fault.LOST_END),
    ],
)
def test_rings_of_another_log_count_for_nothing(stored: Checkpoint, fault: Fault) -> None:
    one = found(stored)
    assert one.fault is fault
    assert found(point(1000, NEW_ID)).fault is Fault.NONE
    assert replace(found(point(1000, NEW_ID)), topic_id=NO_TOPIC_ID).fault is Fault.NONE
    begun = start(registered(NEW), one)
    assert (begun.offset, begun.state.stored, begun.point.next_offset) == (0, stored, 0)
    assert (begun.state.admission.newest_us, begun.state.ready_from) == (EMPTY, 1000)


def test_a_checkpoint_of_another_number_of_partitions_is_written_at_once() -> None:
    begun = start(registered(NEW), replace(found(point(500, NEW_ID)), partitions=4))
    assert begun.point == replace(point(500, NEW_ID), partitions=4)


def test_an_old_version_is_folded_by_the_new_streams_fields_as_long_as_it_has_them() -> None:
    wider = copy.deepcopy(STREAM)
    wider.lateness_ms = 5_000
    assert [plan.hash for plan in with_old(wider).versions["payer"]][:-1] == [
        compile_view(one, STREAM).hash for one in (OLD, NEW)
    ]
    narrower = copy.deepcopy(STREAM)
    del narrower.fields[1]
    definitions = registered(book=Book(versions={OLD_ID.hex(): Version(1, OLD, STREAM)}), stream=narrower)
    assert not any(plans[:-1] for plans in definitions.versions.values())


def test_old_versions_and_builds_are_folded_until_the_book_says_otherwise() -> None:
    plan = compile_view(NEW, STREAM)
    first, second = build_id(plan.hash), build_id(plan.hash, 1)
    stream = registered(NEW, book=Book(builds={NEW_ID.hex(): 1})).streams()["paid"]
    live, missing = stream.folded(frozenset({first}))
    assert (set(live), set(missing)) == ({first}, {second})
    stream = registered(NEW, book=Book(builds={NEW_ID.hex(): 1}, floors={NEW_ID.hex(): 1})).streams()["paid"]
    assert set(stream.folded(frozenset({first, second}))[0]) == {second}


def test_an_old_version_ends_after_its_grace_and_not_while_a_model_reads_it() -> None:
    points = {"events.paid": [point(500, OLD_ID, NEW_ID), point(400, OLD_ID, NEW_ID)]}
    old_hash, name = compile_view(OLD, STREAM).hash, view_id(compile_view(OLD, STREAM).hash).hex()

    def changes(definitions: Definitions, now_us: int, in_use: frozenset[str] = frozenset()) -> Any:
        return retire(definitions, points, in_use, now_us, 100, "default")

    assert changes(with_old(), 1_000).first == {f"r:{name}": 1_000}
    retired = with_old(retired={name: 1_000})
    assert not changes(retired, 1_099)
    assert not changes(retired, 1_100, frozenset({old_hash}))
    ended = changes(retired, 1_100)
    assert f"d:{name}" in ended.delete
    assert ended.set == {f"x:tm1:{{default:{name}:": 1_100 + SETTLE_US, f"b:{name}": 1, f"f:{name}": 1}
    points["events.paid"][1] = point(400, OLD_ID)
    assert not changes(with_old(), 1_000), "not while a partition is behind"
    points["events.paid"][1] = replace(point(400, OLD_ID, NEW_ID), ready_from=401)
    assert not changes(with_old(), 1_000), "nor while one is not read"
    points.clear()
    assert not changes(with_old(), 1_000), "nor where nobody folds"
    assert changes(with_old(retired={NEW_ID.hex(): 5}), 1_000).delete == [f"r:{NEW_ID.hex()}"], "it is the newest again"


def test_the_builds_before_the_one_that_is_read_expire() -> None:
    name, third = NEW_ID.hex(), build_id(compile_view(NEW, STREAM).hash, 3)
    definitions = registered(NEW, book=Book(builds={name: 3}, floors={name: 1}))

    def changes(*held: Checkpoint) -> Any:
        return retire(definitions, {"events.paid": held}, frozenset(), 1_000, 100, "default")

    shards = {f"x:tm1:{{default:{name}.{build}:": 1_000 + SETTLE_US for build in (1, 2)}
    assert changes(point(500, third), point(400, third)).set == {f"f:{name}": 3, **shards}
    assert not changes()
    assert not changes(point(500, third), point(400, NEW_ID))
    assert not changes(replace(point(500, third), ready_from=501))


def test_checkpoints_are_read_only_while_an_old_version_or_build_may_end() -> None:
    name = NEW_ID.hex()
    assert unsettled(registered(NEW)) == set()
    assert unsettled(with_old()) == {"paid"}
    assert unsettled(registered(NEW, book=Book(builds={name: 2}))) == {"paid"}
    assert unsettled(registered(NEW, book=Book(builds={name: 2}, floors={name: 1}))) == {"paid"}
    assert unsettled(registered(NEW, book=Book(builds={name: 2}, floors={name: 2}))) == set()


def test_a_retired_view_ends_at_once_but_not_before_the_definitions_are_all_read() -> None:
    definitions = with_old()
    names = [view_id(compile_view(view, STREAM).hash).hex() for view in (OLD, NEW)]
    versions = dict(zip(names, (Version(1, OLD, STREAM), Version(2, NEW, STREAM)), strict=True))
    definitions.take(Book(versions=versions, builds={names[1]: 2}))
    definitions.fold(to_json(definition.DefinitionRecord(kind="view", name="payer", retired=True)))
    assert not definitions.streams()["paid"].plans, "nothing of it is folded"

    def changes(in_use: frozenset[str] = frozenset()) -> Any:
        return retire(definitions, {}, in_use, 1_000, 100, "default")

    assert not changes()
    definitions.complete = True
    assert sorted(changes().delete) == sorted(f"{kind}:{name}" for name in names for kind in "dr")
    assert {f"x:tm1:{{default:{name}:" for name in (*names, f"{names[1]}.1", f"{names[1]}.2")} <= changes().set.keys()
    assert (changes().set[f"b:{names[0]}"], changes().set[f"f:{names[1]}"]) == (1, 3)
    assert changes(frozenset({compile_view(OLD, STREAM).hash})).delete == [f"d:{names[1]}", f"r:{names[1]}"]


def test_a_version_that_comes_back_is_folded_beside_the_shards_that_expire() -> None:
    book = Book(builds={NEW_ID.hex(): 1}, floors={NEW_ID.hex(): 1})
    stream = registered(NEW, book=book).streams()["paid"]
    live, missing = stream.folded(frozenset({build_id(compile_view(NEW, STREAM).hash)}))
    assert (set(live), [plan.build for plan in missing.values()]) == (set(), [1])


def test_a_model_version_uses_its_views_until_it_is_over() -> None:
    uses = Uses()
    for stage, wanted in (("retired", set()), *((stage, {"h"}) for stage in IN_USE)):
        uses.fold(b"p/1", json.dumps({"stage": stage, "views": {"v": "h"}}).encode())
        assert uses.hashes == wanted
    uses.fold(b"p/1", None)
    assert not uses.hashes


def test_the_book_says_again_what_was_written() -> None:
    raw = {b"d:0102": Version(5, NEW, STREAM).pack(), b"b:0102": b"3", b"t:paid": HERE.hex().encode(), b"x:tm1:": b"9"}
    # The last is of a later release.
    raw |= {b"f:0102": b"2", b"r:0102": b"7", b"z:0102": b"?"}
    book = read_book(raw)
    assert book.versions["0102"] == Version(5, NEW, STREAM)
    assert (book.builds, book.topics, book.expiring) == ({"0102": 3}, {"paid": HERE}, {"tm1:": 9})
    assert (book.floors, book.retired) == ({"0102": 2}, {"0102": 7})
    assert Progress.unpack(Progress(1, 2, 3).pack().encode()).remaining == 1


def test_pieces_of_a_chunk_are_the_chunk() -> None:
    offsets = np.array([1, 2, 5, 7, 8])
    columns = {"amount": Column(offsets / 2, offsets == 5)}
    chunk = Chunk(offsets, offsets * 10, [str(one) for one in offsets], columns, 12, Repeats(offsets - 1, offsets * 9))
    pieces = list(chunk.pieces(2))
    assert [piece.end for piece in pieces] == [5, 8, 12]
    assert [piece.columns["amount"].values.tolist() for piece in pieces] == [[0.5, 1.0], [2.5, 3.5], [4.0]]
    assert [piece.columns["amount"].nulls.tolist() for piece in pieces] == [[False, False], [True, False], [False]]
    assert [piece.identities for piece in pieces] == [["1", "2"], ["5", "7"], ["8"]]
    assert [piece.repeats.offset.tolist() for piece in pieces if piece.repeats] == [[0, 1], [4, 6], [7]]
    empty = chunk.part(5, 5)
    assert [piece.end for piece in empty.pieces(2)] == [12]


def test_what_is_read_again_is_remembered_and_neither_folded_again_nor_ahead_of_itself() -> None:
    place = Partition("events.paid", 0)
    replay = Replay(place, StreamDecoder(STREAM), [], point(5, low=2), frozenset({NEW_ID}))
    assert replay.checkpoint() == point(5, NEW_ID, low=2), "what is remembered is still to be read"
    replay.skip_to(3)
    assert (replay.read, replay.next_offset) == (3, 5)
    offsets, times = np.array([3, 4, 5, 7, 8, 9]), np.array([6, 7, 7, 5, 8, 8])
    coded = {"payer": Coded(np.array(["a", "b"], np.object_), np.array([0, 1, 1, 1, 0, 1]))}
    chunk = Chunk(offsets, times, ["a", "b", "c", "late", "a", "e"], {}, 12, coded=coded)
    assert replay.take(chunk.part(0, 1)) is None
    assert (replay.read, replay.next_offset) == (4, 5)
    folding = replay.take(chunk.part(1, 6))
    assert folding is not None
    assert (folding.events.offset.tolist(), folding.events.coded["payer"].codes.tolist()) == ([5, 9], [1, 1])
    assert replay.checkpoint() == replace(point(12, NEW_ID, low=3), newest_event_us=8)
