"""Canonical JSON (RFC 8785) of definition messages, and the hashes that name them."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import rfc8785
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from tidemill_contracts.definition.v1 import definition_pb2 as definition

M = TypeVar("M", bound=Message)
_WORD = re.compile(r"\w+")


def to_dict(message: Message) -> dict[str, Any]:
    """Return the proto3 JSON mapping with the field names of the .proto file."""
    return MessageToDict(message, preserving_proto_field_name=True)


def to_json(message: Message) -> bytes:
    """Return compact UTF-8 JSON of a message, as operators' topics carry it."""
    return json.dumps(to_dict(message), separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()


def from_json(raw: bytes, message: M) -> M:
    """Fill `message` from JSON; fields that this version does not know are ignored.

    Raises `ValueError` where the bytes are not such a message.
    """
    try:
        content = json.loads(raw)
        if not isinstance(content, dict):
            raise ParseError(f"a JSON object is expected, not {type(content).__name__}")
        return ParseDict(content, message, ignore_unknown_fields=True)
    # protobuf's own error is no ValueError, and nesting without end is a RecursionError.
    except (ParseError, RecursionError) as error:
        raise ValueError(f"no {message.DESCRIPTOR.name}: {error}") from error


def digest(raw: bytes) -> str:
    """Return `sha256:<hex>` of the bytes."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def message_hash(message: Message) -> str:
    """Return the hash of a message's canonical JSON."""
    return digest(rfc8785.dumps(to_dict(message)))


def stream_hash(stream: definition.Stream) -> str:
    """Return the hash that `ce_dataschema` carries: of the stream's whole definition."""
    return message_hash(stream)


def view_hash(view: definition.View, stream: definition.Stream) -> str:
    """Return the hash that names a view's rings: of the view and of what it reads of the stream that feeds it.

    A field counts where its name stands anywhere in the view, or is the stream's key or time: fields that a view does
    not read may come and go, and partitions be added, without its rings, and the models trained on them, losing their
    name.
    """
    counts = mentioned_in([*_texts(to_dict(view)), stream.key_field, stream.time_field])
    read = definition.Stream()
    read.CopyFrom(stream)
    # Every partition has shards of its own: their number changes none of them.
    read.ClearField("partitions")
    del read.fields[:]
    read.fields.extend(field for field in stream.fields if counts(field.name))
    kept = definition.View()
    kept.CopyFrom(view)
    # What a view may take in memory says nothing of what its rings hold.
    kept.ClearField("budget_bytes")
    return message_hash(definition.Definition(streams=[read], views=[kept]))


def mentioned_in(texts: Iterable[str]) -> Callable[[str], bool]:
    """Return what says whether a name stands in one of the texts as a word, whatever it means there.

    A name that is no single word (Python's allow combining marks, others hyphens) counts wherever it stands.

    >>> [mentioned_in(['"dep-delay" > fare'])(name) for name in ("fare", "far", "dep-delay", "delay")]
    [True, False, True, True]
    """
    texts = list(texts)
    words = {word.casefold() for text in texts for word in _WORD.findall(text)}
    whole = "\n".join(texts).casefold()

    def mentioned(name: str) -> bool:
        folded = name.casefold()
        if _WORD.fullmatch(name):
            return folded in words
        # SQL doubles the quotes within a quoted name.
        return folded in whole or folded.replace('"', '""') in whole

    return mentioned


def _texts(value: Any) -> Iterator[str]:
    """Yield every text within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
