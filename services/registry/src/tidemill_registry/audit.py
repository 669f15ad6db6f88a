"""The audit trail as a hash chain: each record's hash covers the one before, so a gap or an edit shows."""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.canonical import message_hash, to_dict
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.registry.v1 import records_pb2 as records

# What the first record follows.
GENESIS = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True)
class Act:
    """Something that was done to an object, before it has its place in the chain."""

    # "pipeline/flight-delays", "version/flight-delays/3", …
    object: str
    action: str
    actor: str
    reason: str
    before: Message | None = None
    after: Message | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """The newest record of the chain."""

    sequence: int = 0
    hash: str = GENESIS


def link(head: Head, act: Act, at_us: int) -> records.AuditRecord:
    """Return the record that follows `head`; `at_us` is the wall clock."""
    record = records.AuditRecord(
        sequence=head.sequence + 1,
        object=act.object,
        action=act.action,
        actor=act.actor,
        reason=act.reason,
        at=to_timestamp(at_us),
        previous_hash=head.hash,
    )
    if act.before is not None:
        record.before.CopyFrom(_struct(act.before))
    if act.after is not None:
        record.after.CopyFrom(_struct(act.after))
    record.hash = message_hash(record)
    return record


def first_break(chain: Iterable[records.AuditRecord], head: Head | None = None) -> int | None:
    """Return the sequence of the first record that does not follow from the one before; None when all do."""
    last = head or Head()
    for record in chain:
        bare = records.AuditRecord()
        bare.CopyFrom(record)
        bare.hash = ""
        follows = record.sequence == last.sequence + 1 and record.previous_hash == last.hash
        if not follows or message_hash(bare) != record.hash:
            return record.sequence
        last = Head(record.sequence, record.hash)
    return None


def _struct(message: Message) -> Struct:
    struct = Struct()
    struct.update(to_dict(message))
    return struct
