"""Signed model bundles: sealed with training's private key, opened with the public key.

Order of the checks on opening, each before anything that it protects is parsed: size and signature of the manifest,
its form, the set of files (none missing, none unknown), the SHA-256 of each file. Bytes are read once, and what was
checked is what is used. Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from tidemill_contracts.canonical import digest

from tidemill_models.encoding import Encoding
from tidemill_models.errors import BundleRefusedError
from tidemill_models.manifest import Manifest, manifest_hash, parse_manifest

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
ENCODING = "encoding.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_FILE_BYTES = 512 * 1024 * 1024
MAX_FILES = 32
_SIGNATURE_BYTES = 64


class Folder(Protocol):
    """Where a bundle's files lie: names of everything in it, and bounded reads of regular files."""

    def names(self) -> list[str]: ...

    def read(self, name: str, max_bytes: int) -> bytes: ...


@dataclass(frozen=True)
class Bundle:
    """A verified bundle, in memory."""

    manifest: Manifest
    manifest_hash: str
    encoding: Encoding
    files: Mapping[str, bytes]

    @property
    def model(self) -> bytes:
        """Bytes of the file that the scorer reads."""
        return self.files[self.manifest.model_file]


def seal(
    manifest: Manifest, encoding: Encoding, files: Mapping[str, bytes], key: Ed25519PrivateKey
) -> dict[str, bytes]:
    """Return every file of the bundle, manifest and signature included; `manifest.files` is filled in here."""
    content = {**files, ENCODING: json.dumps(encoding.to_dict(), ensure_ascii=False, sort_keys=True).encode()}
    raw = replace(manifest, files={name: digest(value) for name, value in content.items()}).to_bytes()
    sealed = {**content, MANIFEST: raw, SIGNATURE: key.sign(raw)}
    # What cannot be opened is never published.
    open_bundle(MemoryFolder(sealed), key.public_key())
    return sealed


def open_bundle(folder: Folder, key: Ed25519PublicKey, expected_hash: str | None = None) -> Bundle:
    """Verify and read a bundle; `expected_hash` is the manifest hash that the registry recorded.

    Raises `BundleRefusedError` with the reason, and then nothing of the bundle may be used.
    """
    raw = _signed_manifest(folder, key)
    found = manifest_hash(raw)
    if expected_hash is not None and found != expected_hash:
        raise BundleRefusedError(f"the bundle is {found}, the registry names {expected_hash}")
    manifest = parse_manifest(raw)
    _check_names(folder.names(), manifest)
    files = {name: _checked_file(folder, name, expected) for name, expected in manifest.files.items()}
    encoding = _encoding(files[ENCODING])
    declared = [(column.name, column.category) for column in manifest.features]
    if declared != [(column.name, column.category) for column in encoding.columns]:
        raise BundleRefusedError("encoding.json and the manifest disagree on the feature columns")
    return Bundle(manifest, found, encoding, files)


def _signed_manifest(folder: Folder, key: Ed25519PublicKey) -> bytes:
    signature = folder.read(SIGNATURE, _SIGNATURE_BYTES)
    raw = folder.read(MANIFEST, MAX_MANIFEST_BYTES)
    try:
        key.verify(signature, raw)
    except InvalidSignature:
        raise BundleRefusedError("manifest.json does not carry the signature of the training service's key") from None
    return raw


def _check_names(names: list[str], manifest: Manifest) -> None:
    expected = {*manifest.files, MANIFEST, SIGNATURE}
    unknown, missing = sorted(set(names) - expected), sorted(expected - set(names))
    if unknown:
        raise BundleRefusedError(f"files that the manifest does not name: {', '.join(map(repr, unknown[:5]))}")
    if missing:
        raise BundleRefusedError(f"files missing: {', '.join(missing[:5])}")
    for needed in (manifest.model_file, ENCODING):
        if needed not in manifest.files:
            raise BundleRefusedError(f"the manifest does not list {needed!r}")
    if len(names) > MAX_FILES:
        raise BundleRefusedError(f"{len(names)} files; a bundle has at most {MAX_FILES}")


def _checked_file(folder: Folder, name: str, expected: str) -> bytes:
    raw = folder.read(name, MAX_FILE_BYTES)
    if digest(raw) != expected:
        raise BundleRefusedError(f"{name} is not the file that was signed (SHA-256 differs)")
    return raw


def _encoding(raw: bytes) -> Encoding:
    try:
        return Encoding.from_dict(json.loads(raw))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleRefusedError(f"encoding.json cannot be read: {error!r}") from error


@dataclass(frozen=True)
class MemoryFolder:
    """A bundle's files in memory."""

    content: Mapping[str, bytes]

    def names(self) -> list[str]:
        """Return the names of all files."""
        return list(self.content)

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a file. Raises `BundleRefusedError` where it is missing or larger than `max_bytes`."""
        if name not in self.content:
            raise BundleRefusedError(f"{name} is missing")
        if len(self.content[name]) > max_bytes:
            raise BundleRefusedError(f"{name} is larger than {max_bytes} bytes")
        return self.content[name]
