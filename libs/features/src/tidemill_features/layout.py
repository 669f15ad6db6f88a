"""What lies in Redis: keys, the shard's header and the checkpoint, byte for byte. Format version 1.

Shard (one per project, view, entity, hop class and source partition), little-endian, in words of eight bytes:

    word 0      magic "TMRG", format version u16, reserved u16
    words 1-2   topic id of the partition's topic (its log generation)
    word 3      partition u32, number of slots u32
    word 4      next offset: every record before it is included
    word 5      newest event time included, µs
    word 6      fingerprint of the slot layout
    word 7      bytes of the variable-length area u32, words of a slot u32
    then        the slots; slot i holds a bucket whose number mod slots is i (EMPTY: none): bucket number, newest
                event time, then the partials
    then        the variable-length area: UTF-8 strings, sketches and, of an exact view, raw events (`raw_events`), to
                which words of the slots point as offset u32, length u32; of an absent sketch the word is 0, an absent
                string has no event time before it

What a slot holds is written in `partials`. The fingerprint covers it: aggregates that came later leave the bytes of
older views as they were, and a shard of another layout is refused, never misread.

Checkpoint (one per project, worker group, topic and partition), format version 2: magic "TMCP", version u16, number of
views u16, topic id, next offset, lowest offset that deduplication needs, newest event time, partitions of the topic
u32, reserved u32, offset from which reads are answered, then of each view eight bytes of its hash and its build u32.
Version 1, which ends with the hashes and has none of what comes after the event time, is read as build 0. A shard's
key carries its view's hash and build, so that a changed definition never meets old bytes.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tidemill_features.partials import Dtype, Kind
from tidemill_features.plan import HEADER_WORDS, SLOT_PREFIX_WORDS, RingPlan

FORMAT_VERSION = 1
SHARD_MAGIC = b"TMRG"
CHECKPOINT_MAGIC = b"TMCP"
CHECKPOINT_VERSION = 2
DEFAULT_PROJECT = "default"
DEFAULT_GROUP = "feature-online"

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
# Bucket number of an empty slot, and the time before every event.
EMPTY = INT64_MIN

TOPIC_ID_WORDS = slice(1, 3)
NEXT_OFFSET_WORD = 4
NEWEST_WORD = 5
FINGERPRINT_WORD = 6
SIZES_WORD = 7

_MAGIC_WORD = int.from_bytes(SHARD_MAGIC + struct.pack("<HH", FORMAT_VERSION, 0), "little")
_CHECKPOINT = struct.Struct("<4sHH16sqqq")
_CHECKPOINT_2 = struct.Struct("<IIq")
# Bytes of a view's hash in a checkpoint, and of the number of its build.
_VIEW, _BUILD = 8, 4
NO_TOPIC_ID = bytes(16)
CHECKPOINT_PREFIX = b"tm1:checkpoint:"

Words = NDArray[np.int64]
EntityValue = str | int | bool | None


class LayoutError(ValueError):
    """Stored bytes are not what this version writes; they are refused, never guessed at."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far one worker group has come in one partition, written after the shards of the same flush.

    `views`: the builds (`build_id`) whose shards include everything before `next_offset`. `partitions`: how many the
    topic has, 0 where that is not known; it may have more than its definition says, since an operator may add some.
    `ready_from`: before this offset the rings are being built again from the log, and are not read.
    """

    topic_id: bytes
    next_offset: int
    dedup_low_offset: int
    newest_event_us: int
    views: frozenset[bytes]
    partitions: int = 0
    ready_from: int = 0

    @property
    def readable(self) -> frozenset[bytes]:
        """The builds that may be read."""
        return self.views if self.next_offset >= self.ready_from else frozenset()

    def pack(self) -> bytes:
        """Return the stored bytes."""
        views = sorted(self.views)
        head = _CHECKPOINT.pack(
            CHECKPOINT_MAGIC,
            CHECKPOINT_VERSION,
            len(views),
            self.topic_id,
            self.next_offset,
            self.dedup_low_offset,
            self.newest_event_us,
        )
        tail = b"".join(view.ljust(_VIEW + _BUILD, b"\0") for view in views)
        return head + _CHECKPOINT_2.pack(self.partitions, 0, self.ready_from) + tail

    @classmethod
    def unpack(cls, raw: bytes) -> "Checkpoint":
        """Return what the bytes say. Raises `LayoutError`."""
        if len(raw) < _CHECKPOINT.size:
            raise LayoutError(f"a checkpoint of {len(raw)} bytes")
        magic, version, count, topic_id, next_offset, low, newest = _CHECKPOINT.unpack_from(raw)
        first, each, partitions, ready_from = _CHECKPOINT.size, _VIEW, 0, 0
        if version == CHECKPOINT_VERSION:
            first, each = first + _CHECKPOINT_2.size, each + _BUILD
        known = magic == CHECKPOINT_MAGIC and version in (1, CHECKPOINT_VERSION)
        if not known or len(raw) != first + each * count:
            raise LayoutError(f"no checkpoint of format {CHECKPOINT_VERSION}: {raw[:8]!r}")
        if version == CHECKPOINT_VERSION:
            partitions, _, ready_from = _CHECKPOINT_2.unpack_from(raw, _CHECKPOINT.size)
        entries = [raw[at : at + each] for at in range(first, len(raw), each)]
        views = frozenset(entry[:_VIEW] + entry[_VIEW:].rstrip(b"\0") for entry in entries)
        return cls(topic_id, next_offset, low, newest, views, partitions, ready_from)


def view_id(view_hash: str) -> bytes:
    """Return the eight bytes of a view's hash that keys and checkpoints carry."""
    return bytes.fromhex(view_hash.removeprefix("sha256:")[:16])


def build_id(view_hash: str, build: int = 0) -> bytes:
    """Return what a checkpoint names a build of a view by: its first build by the view alone.

    >>> build_id("sha256:" + "ab" * 32), build_id("sha256:" + "ab" * 32, 2)[8:]
    (b'\\xab\\xab\\xab\\xab\\xab\\xab\\xab\\xab', b'\\x02')
    """
    return view_id(view_hash) + build.to_bytes(_BUILD, "little").rstrip(b"\0")


def builds_in(ids: Iterable[bytes], view_hash: str) -> list[int]:
    """Return, rising, the builds of a view among those of a checkpoint."""
    wanted = view_id(view_hash)
    return sorted(int.from_bytes(one[_VIEW:], "little") for one in ids if one[:_VIEW] == wanted)


def entity_key(values: Sequence[EntityValue]) -> bytes | None:
    """Return an entity's bytes within its view; None where a part is null.

    >>> entity_key(["JFK"]), entity_key(["JFK", "LA:X"]), entity_key([None])
    (b'JFK', b'3:JFK4:LA:X', None)
    """
    if len(values) == 1:
        return None if values[0] is None else _part(values[0])
    return None if None in values else _joined(map(_part, values))


def entity_keys(keys: Sequence[EntityValue | tuple[EntityValue, ...]]) -> list[bytes]:
    """Return the bytes of entities of one view, no part of which is null; keys of several fields are tuples.

    >>> entity_keys(["JFK", "LAX"]), entity_keys([("JFK", "LA:X"), ("LAX", 7)])
    ([b'JFK', b'LAX'], [b'3:JFK4:LA:X', b'3:LAX1:7'])
    """
    if keys and isinstance(keys[0], str):
        # As `_part` does, in half the time; all are of one type.
        return [*map(str.encode, cast(Sequence[str], keys), repeat("utf-8"), repeat("surrogatepass"))]
    return [_joined(map(_part, key)) if isinstance(key, tuple) else _part(key) for key in keys]


def _joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(b"%d:%s" % (len(part), part) for part in parts)


def _part(value: EntityValue) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return b"%d" % int(value or 0)


def shard_prefix(project: str, view_hash: str, build: int = 0) -> bytes:
    """Return what a view's shard keys begin with; the brace opens the hash tag, so an entity's shards share a node."""
    name = view_id(view_hash).hex() + (f".{build}" if build else "")
    return b"tm1:{%s:%s:" % (project.encode(), name.encode())


def shard_suffix(ring: RingPlan, partition: int) -> bytes:
    """Return what the shard keys of a ring and a partition end with."""
    return b"}:%d:%d" % (ring.hop_us // 1_000_000, partition)


def checkpoint_key(project: str, group: str, topic: str, partition: int) -> bytes:
    """Return the key of a partition's checkpoint; `topic` is logical."""
    return CHECKPOINT_PREFIX + f"{{{project}:{group}}}:{topic}:{partition}".encode()


def empty_shard(ring: RingPlan, topic_id: bytes, partition: int) -> Words:
    """Return the words of a shard that includes nothing."""
    words = np.zeros(ring.words, np.int64)
    words[0] = _MAGIC_WORD
    words[TOPIC_ID_WORDS] = np.frombuffer(topic_id, "<i8")
    words[3] = partition | ring.slots << 32
    words[NEWEST_WORD] = EMPTY
    words[FINGERPRINT_WORD] = ring.fingerprint
    words[SIZES_WORD] = ring.slot_words << 32
    words[HEADER_WORDS:] = np.tile(empty_slot(ring), ring.slots)
    return words


def empty_slot(ring: RingPlan) -> Words:
    """Return the words of a slot that holds no bucket: every partial at its identity."""
    slot = np.zeros(ring.slot_words, np.int64)
    floats = slot.view(np.float64)
    slot[:SLOT_PREFIX_WORDS] = EMPTY
    for partial in ring.partials:
        if partial.kind is Kind.LAST:
            slot[partial.word] = EMPTY
            slot[partial.word + 1] = -1
        elif partial.kind is Kind.FIRST:
            slot[partial.word] = INT64_MAX
        elif partial.kind is Kind.NEWEST:
            slot[partial.word] = EMPTY
        elif partial.kind is Kind.LAST_K:
            slot[partial.word : partial.word + partial.words : 2] = EMPTY
        elif partial.kind in (Kind.MIN, Kind.MAX):
            sign = 1 if partial.kind is Kind.MIN else -1
            if partial.dtype is Dtype.FLOAT:
                floats[partial.word] = sign * np.inf
            else:
                slot[partial.word] = INT64_MAX if sign > 0 else INT64_MIN
    return slot


def shard_keys(prefix: bytes, entities: Iterable[bytes], suffixes: Sequence[bytes]) -> list[bytes]:
    """Return the keys of all shards: entities outermost, then `suffixes`."""
    return [prefix + entity + suffix for entity in entities for suffix in suffixes]


def to_words(raws: Sequence[bytes | None], ring: RingPlan, blank: bytes) -> Words:
    """Return int64[len(raws), ring.words]: stored shards, `blank` (an empty shard's bytes) where there is none.

    Raises `LayoutError` where bytes do not fit the plan.
    """
    size = ring.words * 8
    if ring.pointers:
        block = b"".join([blank if raw is None else raw[:size] for raw in raws])
    else:
        block = b"".join([raw or blank for raw in raws])
    if len(block) != size * len(raws):
        raise LayoutError("a shard cut short")
    words = np.frombuffer(block, "<i8").reshape(len(raws), ring.words)
    # The magic word and, six further on, the fingerprint.
    marks = words[:, 0 : FINGERPRINT_WORD + 1 : FINGERPRINT_WORD]
    if marks.tobytes() != _marks(ring.fingerprint) * len(raws):
        raise LayoutError("a shard of another format or slot layout")
    return words


@lru_cache(4_096)
def _marks(fingerprint: int) -> bytes:
    return np.array([_MAGIC_WORD, fingerprint], np.int64).tobytes()
