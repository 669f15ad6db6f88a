"""The AsyncAPI 3.0 document of every topic in the catalogue, with each message's schema from its .proto file."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc_tools import protoc
from tidemill_contracts.topics import DEFAULT_PREFIX, STREAM, Topic, load_topics

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
HEAD = "# Written by docs/generate.py (`make gen`) from proto/topics and the .proto files: change those.\n"
PROTOBUF_FORMAT = "application/vnd.google.protobuf;version=3"

Json = dict[str, Any]

_KINDS: dict[int, Json] = {
    FieldDescriptor.TYPE_DOUBLE: {"$ref": "#/components/schemas/Number"},
    FieldDescriptor.TYPE_FLOAT: {"$ref": "#/components/schemas/Number"},
    FieldDescriptor.TYPE_INT32: {"type": "integer"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0},
    # proto3 JSON writes 64-bit integers as strings, since JSON's numbers end at 2^53 for many readers.
    FieldDescriptor.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]+$"},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]+$"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
_WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Struct": {"type": "object"},
}
_TEXT: Json = {"type": "string"}
_CLOUD_EVENT = {
    "ce_specversion": {"type": "string", "const": "1.0"},
    "ce_id": {**_TEXT, "description": "Names the event together with ce_source."},
    "ce_source": _TEXT,
    "ce_type": _TEXT,
    "ce_time": {"type": "string", "format": "date-time", "description": "Event time."},
    "ce_subject": _TEXT,
    "ce_dataschema": {**_TEXT, "description": "Hash of the definition that the value follows."},
    "ce_traceparent": {**_TEXT, "description": "W3C trace context."},
    "content-type": _TEXT,
}
_DEAD_LETTER = {
    "x-dlq-reason": {**_TEXT, "description": "A name of docs/reasons.md."},
    "x-dlq-field": {**_TEXT, "description": "The field at fault, where one is."},
    "x-dlq-consumer-group": {**_TEXT, "description": "The group that refused the record; others may have taken it."},
    "x-dlq-attempt": {"type": "string", "pattern": "^[0-9]+$"},
    "x-dlq-first-failed-at": {"type": "string", "format": "date-time"},
    "x-dlq-value-bytes": {
        "type": "string",
        "pattern": "^[0-9]+$",
        "description": "Of a letter without its value, which did not fit: the value's length.",
    },
    "x-dlq-value-sha256": {**_TEXT, "description": "Of such a letter: SHA-256 of the value, in hexadecimal digits."},
    "__connect.errors.topic": {**_TEXT, "description": "Where the record lay, in Kafka Connect's words."},
    "__connect.errors.partition": {"type": "string", "pattern": "^[0-9]+$"},
    "__connect.errors.offset": {"type": "string", "pattern": "^[0-9]+$"},
    "__connect.errors.exception.message": _TEXT,
}
_ORIGINAL = {"description": "The refused record's own headers are kept beside these."}
_SHARED: dict[str, Json] = {
    "CloudEventHeaders": {"type": "object", "properties": _CLOUD_EVENT},
    "DeadLetterHeaders": {"type": "object", "properties": _DEAD_LETTER, "additionalProperties": _ORIGINAL},
    # As proto3 JSON writes a double.
    "Number": {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]},
}


class _Comments:
    """The comment above each message and field, by full name."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch, "set")
            sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("tidemill/**/*.proto"))
            well_known = Path(protoc.__file__).parent / "_proto"
            flags = [f"-I{PROTO}", f"-I{well_known}", f"--descriptor_set_out={out}", "--include_source_info"]
            if protoc.main(["protoc", *flags, *sources]) != 0:
                raise SystemExit("protoc refused the contracts")
            files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
        self._by_name = dict(pair for file in files for pair in _comments_in(file))

    def of(self, name: str) -> Json:
        text = self._by_name.get(name, "")
        return {"description": text} if text else {}


def _comments_in(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Yield comments of top-level messages and their fields; paths are (4, message[, 2, field])."""
    for location in file.source_code_info.location:
        path, text = list(location.path), " ".join(location.leading_comments.split())
        if not text or path[:1] != [4] or len(path) not in (2, 4) or (len(path) == 4 and path[2] != 2):
            continue
        message = file.message_type[path[1]]
        name = f"{file.package}.{message.name}"
        yield (name if len(path) == 2 else f"{name}.{message.field[path[3]].name}"), text


class _Schemas:
    """JSON schemas of messages in their proto3 JSON mapping, collected as they are referred to."""

    def __init__(self) -> None:
        self._comments = _Comments()
        self.schemas: dict[str, Json] = {}

    def of(self, message: Descriptor) -> Json:
        """Return a reference to a message's schema."""
        if message.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[message.full_name])
        name = message.full_name.removeprefix("tidemill.")
        if name not in self.schemas:
            self.schemas[name] = {}
            properties = {field.name: self._field(field) for field in message.fields}
            described = self._comments.of(message.full_name)
            self.schemas[name] = {"type": "object", **described, "properties": properties}
        return {"$ref": f"#/components/schemas/{name}"}

    def _field(self, field: FieldDescriptor) -> Json:
        described = self._comments.of(field.full_name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values = self._value(field.message_type.fields_by_name["value"])
            return {"type": "object", **described, "additionalProperties": values}
        value = self._value(field)
        if field.is_repeated:
            return {"type": "array", **described, "items": value}
        # What stands beside a $ref is ignored in draft 7.
        return {"allOf": [value], **described} if described and "$ref" in value else {**value, **described}

    def _value(self, field: FieldDescriptor) -> Json:
        if field.message_type is not None:
            return self.of(field.message_type)
        if field.enum_type is not None:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        return dict(_KINDS[field.type])


def _descriptor(topic: Topic) -> Descriptor | None:
    """Return the topic's message, None where its values are a user's own."""
    if topic.message in ("cloudevents.json", "original"):
        return None
    return descriptor_pool.Default().FindMessageTypeByName(topic.message)


def _payload(topic: Topic, schemas: _Schemas) -> Json:
    message = _descriptor(topic)
    if message is None:
        if topic.message == "original":
            return {"description": "The refused record's value, untouched."}
        fields = "The stream's declared fields; a watermark record (ce_type tidemill.watermark.v1) has an empty value."
        return {"type": "object", "description": fields}
    if topic.encoding == "protobuf":
        # The examples are in the JSON mapping, so its schema stands beside the .proto text.
        schemas.of(message)
        return {"schemaFormat": PROTOBUF_FORMAT, "schema": (PROTO / message.file.name).read_text()}
    return schemas.of(message)


def _examples(topic: Topic) -> list[Json]:
    found = []
    for path in sorted((PROTO / "topics" / topic.example).resolve().glob("*.json")):
        raw = json.loads(path.read_text())
        if raw["value"] is not None:
            example = {"name": path.stem, "headers": raw["headers"], "payload": raw["value"]}
            if topic.encoding == "protobuf":
                example["summary"] = "The value in protobuf's JSON mapping; on the topic it is binary."
            found.append(example)
    return found


def _message(topic: Topic, schemas: _Schemas) -> Json:
    dead = topic.message == "original"
    content_type = {"json": "application/json", "protobuf": "application/protobuf"}
    return {
        "name": topic.message,
        "summary": topic.description,
        **({} if dead else {"contentType": content_type[topic.encoding]}),
        "headers": {"$ref": f"#/components/schemas/{'DeadLetterHeaders' if dead else 'CloudEventHeaders'}"},
        "payload": _payload(topic, schemas),
        "bindings": {"kafka": {"key": {"type": "string", "description": topic.key}, "bindingVersion": "0.5.0"}},
        "examples": _examples(topic),
    }


def _configuration(topic: Topic) -> Json:
    config = topic.config()
    numbers = {name: int(value) for name, value in config.items() if name != "cleanup.policy"}
    return {"cleanup.policy": [topic.cleanup], **numbers}


def _channel(topic: Topic, schemas: _Schemas) -> Json:
    address = DEFAULT_PREFIX + topic.name
    channel: Json = {
        "address": address.replace(STREAM, "{stream}"),
        "title": topic.name,
        "description": f"{topic.description} Owner: {topic.owner}. Key: {topic.key}.",
        "messages": {"record": _message(topic, schemas)},
        "tags": [{"name": topic.owner}],
        "bindings": {
            "kafka": {
                "partitions": topic.partitions,
                "topicConfiguration": _configuration(topic),
                "bindingVersion": "0.5.0",
            }
        },
    }
    if topic.per_stream:
        channel["parameters"] = {"stream": {"description": "Name of a registered stream."}}
    else:
        channel["bindings"]["kafka"]["topic"] = address
    return channel


def _channel_name(topic: Topic) -> str:
    return topic.name.replace(STREAM, "stream")


def _operations(topic: Topic) -> Iterator[tuple[str, Json]]:
    """Yield who writes the topic and who reads it, each as an operation of that party."""
    name = _channel_name(topic)
    for action, parties in (("send", topic.producers), ("receive", topic.consumers)):
        verb = "writes" if action == "send" else "reads"
        for party in parties:
            yield (
                f"{party}.{action}.{name}",
                {
                    "action": action,
                    "channel": {"$ref": f"#/channels/{name}"},
                    "summary": f"{party} {verb} {topic.name}.",
                    "tags": [{"name": party}],
                },
            )


def document() -> Json:
    """Return the document."""
    for path in sorted(PROTO.glob("tidemill/**/*.proto")):
        # The pool knows a file's messages once its generated module is imported.
        __import__(f"tidemill_contracts.{'.'.join(path.relative_to(PROTO / 'tidemill').with_suffix('').parts)}_pb2")
    topics, schemas = load_topics(), _Schemas()
    channels = {_channel_name(topic): _channel(topic, schemas) for topic in topics}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tidemill",
            "version": "1.0.0",
            "description": "Every topic of Tidemill: who owns, writes and reads it, its key, retention and messages. "
            "Headers are CloudEvents 1.0 in Kafka's binary mode. Topic names begin with a configurable prefix, here "
            f"`{DEFAULT_PREFIX}`.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "variables": {"bootstrap": {"default": "localhost:9092", "description": "Any broker."}},
            }
        },
        "channels": channels,
        "operations": dict(pair for topic in topics for pair in _operations(topic)),
        "components": {"schemas": {**_SHARED, **dict(sorted(schemas.schemas.items()))}},
    }


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and everything in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def page() -> str:
    """Return the document as YAML."""
    return HEAD + yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
