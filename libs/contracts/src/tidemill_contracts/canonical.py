"""Canonical JSON (RFC 8785) of definition messages, and the hashes that name them."""

import hashlib
import json
from typing import Any, TypeVar

import rfc8785
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from tidemill_contracts.definition.v1 import definition_pb2 as definition

M = TypeVar("M", bound=Message)


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
    """Return the hash that names a view's rings: of the view and of the stream that feeds it."""
    return message_hash(definition.Definition(streams=[stream], views=[view]))
