"""What the workers of a group agree on besides the log: pure. One hash in Redis, read by every instance.

A view that is defined anew keeps its old version until nobody reads it, and a rebuilt view gets its rings beside the
old ones. Both must survive a restart, when the registry's compacted topic tells of the newest definition alone.

    d:<view id>    when it was first seen (µs, eight bytes) and its definition with its stream
    b:<view id>    number of the build that is wanted, f:<view id> of the first one that is still kept
    r:<view id>    since when a newer version answers in its stead (µs)
    t:<stream>     the id of the topic that the rings were folded from
    x:<prefix>     shards to be expired, and from when on (µs)
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidemill_contracts.definition.v1 import definition_pb2 as definition

_SEEN = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Version:
    """One definition of a view that is, or was, folded."""

    since_us: int
    view: definition.View
    stream: definition.Stream

    def pack(self) -> bytes:
        """Return the stored bytes."""
        closure = definition.Definition(streams=[self.stream], views=[self.view])
        return _SEEN.pack(self.since_us) + closure.SerializeToString(deterministic=True)

    @classmethod
    def unpack(cls, raw: bytes) -> "Version":
        """Return what the bytes say."""
        closure = definition.Definition.FromString(raw[_SEEN.size :])
        return cls(_SEEN.unpack_from(raw)[0], closure.views[0], closure.streams[0])


@dataclass(frozen=True, slots=True)
class Book:
    """The hash, read; every mapping but `topics` and `expiring` by the hexadecimal view id."""

    versions: Mapping[str, Version] = field(default_factory=dict)
    builds: Mapping[str, int] = field(default_factory=dict)
    floors: Mapping[str, int] = field(default_factory=dict)
    retired: Mapping[str, int] = field(default_factory=dict)
    topics: Mapping[str, bytes] = field(default_factory=dict)
    expiring: Mapping[str, int] = field(default_factory=dict)


def read_book(raw: Mapping[bytes, bytes]) -> Book:
    """Return the hash as stored."""
    parts: dict[str, dict[str, bytes]] = {kind: {} for kind in "dbfrtx"}
    for name, value in raw.items():
        kind, _, rest = name.decode().partition(":")
        if kind in parts:
            parts[kind][rest] = value
    return Book(
        versions={name: Version.unpack(value) for name, value in parts["d"].items()},
        builds=_numbers(parts["b"]),
        floors=_numbers(parts["f"]),
        retired=_numbers(parts["r"]),
        topics={name: bytes.fromhex(value.decode()) for name, value in parts["t"].items()},
        expiring=_numbers(parts["x"]),
    )


def _numbers(values: Mapping[str, bytes]) -> dict[str, int]:
    return {name: int(value) for name, value in values.items()}
