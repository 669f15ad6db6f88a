"""What a bundle says of itself: the signed part, canonical JSON."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785
from google.protobuf.json_format import ParseDict, ParseError
from tidemill_contracts.canonical import digest, to_dict
from tidemill_contracts.registry.v1 import records_pb2 as records

from tidemill_models.errors import BundleRefusedError

FORMAT = 1
# A file of a bundle lies directly in its folder.
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Constructor:
    """How the model was built: library, class within it, and the parameters that the search chose."""

    library: str
    algorithm: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The signed description of a bundle."""

    pipeline: str
    run_id: str
    definition_hash: str
    constructor: Constructor
    # How serving computes probabilities ("onnx" or "linear"), and the file that it reads.
    scorer: str
    model_file: str
    features: tuple[records.FeatureColumn, ...]
    # View name to view hash that the bundle reads.
    views: Mapping[str, str]
    # How each source of the vector is made, by its name (`fits.sources_of`); empty in bundles that are older.
    sources: Mapping[str, str]
    lineage: records.Lineage
    metrics: Mapping[str, float]
    # File name to "sha256:…".
    files: Mapping[str, str]
    # Largest difference between native and served probabilities, measured on the evaluation rows.
    parity: float
    created_at: str

    def to_bytes(self) -> bytes:
        """Return the canonical JSON that is signed."""
        return rfc8785.dumps(
            {
                "format": FORMAT,
                "pipeline": self.pipeline,
                "run_id": self.run_id,
                "definition_hash": self.definition_hash,
                "constructor": {
                    "library": self.constructor.library,
                    "algorithm": self.constructor.algorithm,
                    "parameters": dict(self.constructor.parameters),
                },
                "scorer": self.scorer,
                "model_file": self.model_file,
                "features": [{"name": column.name, "category": column.category} for column in self.features],
                "views": dict(self.views),
                "sources": dict(self.sources),
                "lineage": to_dict(self.lineage),
                "metrics": dict(self.metrics),
                "files": dict(self.files),
                "parity": self.parity,
                "created_at": self.created_at,
            }
        )


def manifest_hash(raw: bytes) -> str:
    """Return `sha256:…` of the signed bytes: the name under which the registry knows a bundle."""
    return digest(raw)


def parse_manifest(raw: bytes) -> Manifest:
    """Read a manifest whose signature was checked; fields that this release does not know are passed over.

    Raises `BundleRefusedError` where its form is not format 1.
    """
    try:
        fields = json.loads(raw)
        if fields["format"] != FORMAT:
            raise BundleRefusedError(
                f"bundle format {fields['format']!r} is not known here; this release reads {FORMAT}"
            )
        return _manifest(fields)
    except BundleRefusedError:
        raise
    # protobuf's own error is no ValueError, nor is a number beyond a float's or nesting without end.
    except (KeyError, TypeError, ValueError, AttributeError, ParseError, OverflowError, RecursionError) as error:
        raise BundleRefusedError(f"manifest.json is no manifest of format {FORMAT}: {error!r}") from error


def _manifest(fields: Mapping[str, Any]) -> Manifest:
    files = {str(name): str(value) for name, value in fields["files"].items()}
    for name, value in files.items():
        checked_file_name(name)
        checked_hash(value, f"the hash of file {name!r}")
    constructor = fields["constructor"]
    return Manifest(
        pipeline=str(fields["pipeline"]),
        run_id=str(fields["run_id"]),
        definition_hash=str(fields["definition_hash"]),
        constructor=Constructor(constructor["library"], constructor["algorithm"], constructor["parameters"]),
        scorer=str(fields["scorer"]),
        model_file=str(fields["model_file"]),
        features=tuple(
            records.FeatureColumn(name=column["name"], category=column["category"]) for column in fields["features"]
        ),
        views={str(name): str(value) for name, value in fields["views"].items()},
        sources={str(name): str(value) for name, value in fields.get("sources", {}).items()},
        lineage=ParseDict(fields["lineage"], records.Lineage(), ignore_unknown_fields=True),
        metrics={str(name): float(value) for name, value in fields["metrics"].items()},
        files=files,
        parity=float(fields["parity"]),
        created_at=str(fields["created_at"]),
    )


def checked_file_name(name: str) -> str:
    """Return the name of a file in a bundle's folder. Raises `BundleRefusedError` for anything that could leave it."""
    if not _FILE_NAME.fullmatch(name):
        raise BundleRefusedError(f"{name!r} is no file name of a bundle")
    return name


def checked_hash(value: str, what: str) -> str:
    """Return a SHA-256 as `digest` writes it. Raises `BundleRefusedError`, saying what it is, for any other text."""
    if not _HASH.fullmatch(value):
        raise BundleRefusedError(f"{what} is {value[:80]!r}, not 'sha256:' and 64 hexadecimal digits")
    return value
