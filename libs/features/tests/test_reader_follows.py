"""A reader follows what the checkpoints say is built: versions, builds and partitions of a topic."""

from dataclasses import replace

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.layout import Checkpoint, build_id
from tidemill_features.plan import ViewPlan, compile_view
from tidemill_features.reader import Lookup, Reader

STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=2,
)
_STRUCT_OF_VERSION_1 = 48


def plan(window_s: int) -> ViewPlan:
    feature = definition.Aggregation(
        name="n",
        function=definition.AGGREGATION_FUNCTION_COUNT,
        window_ms=window_s * 1000,
        type=definition.FIELD_TYPE_INT64,
    )
    return compile_view(definition.View(name="payer", stream="paid", entity=["payer"], features=[feature]), STREAM)


OLD, NEW = plan(60), plan(120)


def point(*builds: bytes, partitions: int = 2) -> bytes:
    return Checkpoint(bytes(16), 5, 0, 0, frozenset(builds), partitions).pack()


def ask(reader: Reader, *points: bytes) -> tuple[str, list[str], bool]:
    """Return the version that answered, what was unready, and whether the reader moved on."""
    request = reader.request([Lookup("payer", [("ann",)])])
    raws: list[bytes | None] = [None] * (len(request.keys) - len(points))
    result = reader.values(request, [*raws, *points], 0)
    return result.views[0].view_hash, result.unready, result.moved


def test_the_old_version_answers_until_every_partition_has_the_new_one() -> None:
    reader, old, new = Reader([OLD, NEW]), build_id(OLD.hash), build_id(NEW.hash)
    assert ask(reader, point(old), point(old)) == (NEW.hash, ["payer"], True)
    assert ask(reader, point(old), point(old)) == (OLD.hash, [], False)
    assert ask(reader, point(old, new), point(old)) == (OLD.hash, [], False)
    # The first answer after the switch is still the old version's, which is folded until nobody reads it.
    assert ask(reader, point(old, new), point(old, new)) == (OLD.hash, [], True)
    assert ask(reader, point(old, new), point(old, new)) == (NEW.hash, [], False)
    assert ask(reader, point(new), point(new)) == (NEW.hash, [], False)


def test_a_view_that_is_built_anew_is_answered_from_its_first_build_until_then() -> None:
    reader, first, second = Reader([NEW]), build_id(NEW.hash), build_id(NEW.hash, 300)
    assert ask(reader, point(first, second), point(first)) == (NEW.hash, [], False)
    assert reader.views["payer"].plan.build == 0
    assert ask(reader, point(first, second), point(first, second))[2]
    assert reader.views["payer"].plan.build == 300
    assert ask(reader, point(second), point(second)) == (NEW.hash, [], False)


def test_nothing_built_is_unready_and_never_guessed() -> None:
    assert ask(Reader([NEW]), point(), point()) == (NEW.hash, ["payer"], False)


def test_rings_that_are_built_again_are_not_read_before_they_have_caught_up() -> None:
    behind = Checkpoint(bytes(16), 5, 0, 0, frozenset({build_id(NEW.hash)}), 2, ready_from=6)
    assert ask(Reader([NEW]), behind.pack(), point(build_id(NEW.hash)))[1] == ["payer"]
    assert ask(Reader([NEW]), replace(behind, next_offset=6).pack(), point(build_id(NEW.hash)))[1] == []


def test_partitions_that_were_added_are_read_from_then_on() -> None:
    reader, new = Reader([NEW]), build_id(NEW.hash)
    assert ask(reader, point(new, partitions=4), point(new))[2]
    request = reader.request([Lookup("payer", [("ann",)])])
    assert len(request.keys) == 4 + 4
    assert [place.partition for place in request.places] == [0, 1, 2, 3]


def test_a_checkpoint_of_format_1_is_read() -> None:
    checkpoint = Checkpoint(bytes(16), 7, 3, -5, frozenset({b"12345678", b"abcdefgh"}), 4, 9)
    raw = checkpoint.pack()
    old = raw[:4] + b"\x01\x00" + raw[6:_STRUCT_OF_VERSION_1] + b"12345678abcdefgh"
    assert Checkpoint.unpack(old) == replace(checkpoint, partitions=0, ready_from=0)
    assert Checkpoint.unpack(raw) == checkpoint
