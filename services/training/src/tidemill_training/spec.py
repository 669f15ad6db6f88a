"""What a run's process is told on stdin, and what it answers in lines of JSON on stdout; pure.

The process gets only what it needs: no Kafka, no PostgreSQL, no peers, no settings of the service.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from tidemill_contracts.canonical import view_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import from_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_features.training_set import Window

PROGRESS = "progress"
DONE = "done"
FAILED = "failed"
MAX_LINE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Places:
    """Where a run finds the champion's bundle and puts its own, and the path of the key that seals it."""

    artifacts: str
    signing_key_file: str


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's result, and where its inputs are."""

    run_id: str
    record: definition.DefinitionRecord
    request: monitoring.RetrainRequest
    # Absent before the first one.
    champion: records.DeployedVersion | None
    holdout: float
    flip_labels: bool
    places: Places
    # Of the offline log: where each table's newest metadata is.
    tables: Mapping[str, str]

    @property
    def pipeline(self) -> definition.Pipeline:
        return self.record.definition.pipelines[0]

    @property
    def views(self) -> dict[str, str]:
        """View name to view hash of what the definition refers to."""
        closure = self.record.definition
        streams = {stream.name: stream for stream in closure.streams}
        return {view.name: view_hash(view, streams[view.stream]) for view in closure.views}

    @property
    def seed(self) -> int:
        """The same cause, definition and seed of the definition give the same run."""
        text = f"{self.request.cause_key}|{self.record.hash}|{self.pipeline.train.seed}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

    @property
    def window(self) -> Window:
        """The rows' window: up to the request's event time, as long as the request or the definition says."""
        until_us = from_timestamp(self.request.event_time)
        if self.request.HasField("window_start"):
            return Window(from_timestamp(self.request.window_start), until_us)
        return Window(until_us - self.pipeline.train.window_ms * 1000, until_us)

    def to_json(self) -> bytes:
        """Return the form that is written to the process's stdin."""
        return json.dumps(
            {
                "run_id": self.run_id,
                "record": _dict(self.record),
                "request": _dict(self.request),
                "champion": None if self.champion is None else _dict(self.champion),
                "holdout": self.holdout,
                "flip_labels": self.flip_labels,
                "places": vars(self.places),
                "tables": dict(self.tables),
            }
        ).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> "RunSpec":
        """Read the form that the parent wrote."""
        fields = json.loads(raw)
        champion = fields["champion"]
        return cls(
            run_id=fields["run_id"],
            record=ParseDict(fields["record"], definition.DefinitionRecord()),
            request=ParseDict(fields["request"], monitoring.RetrainRequest()),
            champion=None if champion is None else ParseDict(champion, records.DeployedVersion()),
            holdout=fields["holdout"],
            flip_labels=fields["flip_labels"],
            places=Places(**fields["places"]),
            tables=fields["tables"],
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: "dataset", "fit", "evaluate" or "register", and 0 to 1 over the whole."""

    phase: str
    progress: float


@dataclass(frozen=True)
class Done:
    """A run that made a bundle: what to register, and the figures for people."""

    version: registry.RegisterVersionRequest
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """A run that cannot succeed, however often it is tried; the reason is a sentence."""

    reason: str


Line = Progress | Done | Failed


def to_line(line: Line) -> bytes:
    """Return one line of the process's stdout."""
    match line:
        case Progress(phase, progress):
            fields: dict[str, Any] = {"kind": PROGRESS, "phase": phase, "progress": progress}
        case Done(version, details):
            fields = {"kind": DONE, "version": _dict(version), "details": details}
        case Failed(reason):
            fields = {"kind": FAILED, "reason": reason}
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def from_line(raw: bytes) -> Line:
    """Read one line of the process's stdout. Raises `ValueError` where it is none."""
    fields = json.loads(raw)
    if fields["kind"] == PROGRESS:
        return Progress(fields["phase"], fields["progress"])
    if fields["kind"] == DONE:
        version = ParseDict(fields["version"], registry.RegisterVersionRequest())
        return Done(version, fields["details"])
    if fields["kind"] == FAILED:
        return Failed(fields["reason"])
    raise ValueError(f"unknown line {fields['kind']!r}")


def _dict(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)
