"""CloudEvents over HTTP as events: structured, batch and binary mode; pure.

Source: CloudEvents HTTP protocol binding 1.0.2, section 3, and JSON format 1.0.2, sections 2 to 4.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason

from tidemill_ingestion.exact import loads
from tidemill_ingestion.verdicts import Refusal

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
JSON = "application/json"
SPEC_VERSION = "1.0"
_ATTRIBUTES = ("id", "source", "type", "traceparent")

Parsed = messages.Event | Refusal

# A quoted string and a backslash escape in it: RFC 7230, section 3.2.6.
_quoted = re.compile(r'"((?:[^"\\]|\\.)*)"').fullmatch
_escaped = re.compile(r"\\(.)")


def media_type(content_type: str) -> str:
    """Return a content type without its parameters.

    >>> media_type("Application/CloudEvents+JSON; charset=utf-8")
    'application/cloudevents+json'
    """
    return content_type.partition(";")[0].strip().lower()


def binary(headers: Mapping[str, str], body: bytes) -> Parsed:
    """Return an event whose attributes are `ce-` headers and whose body is its data.

    Plain JSON without such headers is an event too: it gets an id here.
    """
    kind = media_type(headers.get("content-type", ""))
    if not _is_json(kind):
        return _unsupported_content(kind)
    version = attribute(headers, "specversion", SPEC_VERSION)
    if version != SPEC_VERSION:
        return version if isinstance(version, Refusal) else _unsupported_version(version)
    event = messages.Event(data=body)
    for name in _ATTRIBUTES:
        value = attribute(headers, name)
        if isinstance(value, Refusal):
            return value
        setattr(event, name, value)
    event.traceparent = event.traceparent or headers.get("traceparent", "")
    return event


def attribute(headers: Mapping[str, str], name: str, otherwise: str = "") -> str | Refusal:
    """Return what a `ce-` header says, `otherwise` where there is none.

    Quotes around it are taken off first, as older senders put them, then what is percent-encoded is decoded.

    >>> attribute({"ce-id": '"an \\\\"old\\\\" id"'}, "id"), attribute({"ce-id": "Euro%20%E2%82%AC"}, "id")
    ('an "old" id', 'Euro €')
    """
    text = headers.get(f"ce-{name}", otherwise)
    if quoted := _quoted(text):
        text = _escaped.sub(r"\1", quoted[1])
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return Refusal(Reason.BAD_UTF8, name, f"header ce-{name} percent-encodes bytes that are not UTF-8")


def structured(body: bytes) -> Parsed:
    """Return the event of one JSON envelope."""
    envelope = _decode(body)
    return envelope if isinstance(envelope, Refusal) else _event(envelope)


def batch(body: bytes) -> list[Parsed] | Refusal:
    """Return the events of a JSON array of envelopes, or why the array itself is refused."""
    envelopes = _decode(body)
    if isinstance(envelopes, Refusal):
        return envelopes
    if not isinstance(envelopes, list):
        return Refusal(Reason.UNDECODABLE, "", "a batch is a JSON array of CloudEvents")
    return [_event(envelope) for envelope in envelopes]


def _decode(body: bytes) -> Any:
    try:
        # What validation is to name must reach it.
        return loads(body.decode())
    except UnicodeDecodeError as error:
        return Refusal(Reason.BAD_UTF8, "", f"byte {error.start} of the body is not UTF-8")
    except RecursionError:
        return Refusal(Reason.UNDECODABLE, "", "the body is nested too deeply")
    except ValueError as error:
        return Refusal(Reason.UNDECODABLE, "", f"the body is no JSON: {error}")


def _event(envelope: Any) -> Parsed:
    if not isinstance(envelope, dict):
        return Refusal(Reason.UNDECODABLE, "", "a CloudEvent is a JSON object")
    version = envelope.get("specversion")
    if version != SPEC_VERSION:
        return _unsupported_version(version)
    content = envelope.get("datacontenttype", JSON)
    for name in _ATTRIBUTES:
        value = envelope.get(name, "")
        if not isinstance(value, str):
            return Refusal(Reason.WRONG_TYPE, name, f"attribute {name!r} is a string")
        if not _encodable(value):
            return Refusal(Reason.BAD_UTF8, name, f"attribute {name!r} holds half of a surrogate pair")
    if not isinstance(content, str) or not _is_json(media_type(content)):
        return _unsupported_content(content)
    data = _data(envelope)
    if isinstance(data, Refusal):
        return data
    return messages.Event(data=data, **{name: envelope.get(name, "") for name in _ATTRIBUTES})


def _data(envelope: dict[str, Any]) -> bytes | Refusal:
    if "data" in envelope:
        # ASCII, so that a lone surrogate reaches validation as the escape that it was.
        return json.dumps(envelope["data"], separators=(",", ":")).encode()
    if "data_base64" not in envelope:
        return b""
    encoded = envelope["data_base64"]
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        return Refusal(Reason.UNDECODABLE, "data_base64", f"no base64: {error}")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json(kind: str) -> bool:
    return kind == JSON or kind.endswith("+json")


def _unsupported_content(kind: Any) -> Refusal:
    return Refusal(Reason.UNSUPPORTED, "datacontenttype", f"events are JSON, not {str(kind)[:80]!r}: send {JSON}")


def _unsupported_version(version: Any) -> Refusal:
    return Refusal(
        Reason.UNSUPPORTED, "specversion", f"CloudEvents {SPEC_VERSION} is spoken here, not {str(version)[:20]!r}"
    )
