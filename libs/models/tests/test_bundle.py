"""What was signed is what is loaded; everything else is refused."""

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tidemill_contracts.canonical import digest
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_models.bundle import ENCODING, MANIFEST, MAX_FILES, SIGNATURE, MemoryFolder, open_bundle, seal
from tidemill_models.encoding import Column, Encoding
from tidemill_models.errors import BundleRefusedError
from tidemill_models.keys import generate_key_pair, load_private_key, load_public_key
from tidemill_models.linear import LinearModel, NumberTerm
from tidemill_models.manifest import Constructor, Manifest, checked_hash
from tidemill_models.scorer import load_scorer
from tidemill_models.store import LocalStore, bundle_path, checked_path, open_store

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ENCODED = Encoding((Column("delay", False),), {})
MODEL = LinearModel(0.5, (NumberTerm(0, 1.0, 0.5, 2.0, -1.0),), ())


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "pipeline": "flight-delays",
        "run_id": "run-1",
        "definition_hash": "sha256:d",
        "constructor": Constructor("river", "linear_model.LogisticRegression", {"l2": 0.1}),
        "scorer": "linear",
        "model_file": "model.linear.json",
        "features": (records.FeatureColumn(name="delay", category=False),),
        "views": {"origin": "sha256:v"},
        "sources": {"delay": "view origin by origin"},
        "lineage": records.Lineage(snapshots={"events": 8_000_000_000_000_000_001}, rows=3, seed=7),
        "metrics": {"log_loss": 0.4},
        "files": {},
        "parity": 0.0,
        "created_at": "2013-03-01T00:00:00Z",
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def sealed(**changes: object) -> dict[str, bytes]:
    return seal(manifest(**changes), ENCODED, {"model.linear.json": MODEL.to_bytes()}, KEY)


def test_a_sealed_bundle_opens_to_what_was_sealed() -> None:
    bundle = open_bundle(MemoryFolder(sealed()), KEY.public_key())
    assert bundle.manifest.lineage.snapshots["events"] == 8_000_000_000_000_000_001
    assert bundle.manifest.views == {"origin": "sha256:v"}
    assert bundle.encoding == ENCODED
    assert bundle.manifest_hash == digest(sealed()[MANIFEST])
    assert load_scorer(bundle).predict_proba(ENCODED.encode({"delay": [1.0]}, {})).shape == (1,)  # type: ignore[dict-item]


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE, ENCODING, "model.linear.json"])
def test_every_flipped_byte_of_every_file_is_refused(name: str) -> None:
    files = sealed()
    for place in range(len(files[name])):
        altered = bytearray(files[name])
        altered[place] ^= 1
        with pytest.raises(BundleRefusedError):
            open_bundle(MemoryFolder({**files, name: bytes(altered)}), KEY.public_key())


Change = Callable[[dict[str, bytes]], dict[str, bytes]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda files: {**files, "state.pkl": b"x"}, "does not name"),
        (lambda files: {**files, "../escape": b"x"}, "does not name"),
        (lambda files: {name: raw for name, raw in files.items() if name != ENCODING}, "missing"),
        (lambda files: {name: raw for name, raw in files.items() if name != SIGNATURE}, "missing"),
        (lambda files: {**files, SIGNATURE: b""}, "signature"),
        (lambda files: {**files, SIGNATURE: files[SIGNATURE] + b"x"}, "larger"),
        (lambda files: {**files, MANIFEST: files[MANIFEST] + b" "}, "signature"),
        (lambda files: {**files, MANIFEST: b" " * (5 * 1024 * 1024)}, "larger"),
        (lambda files: {**files, "model.linear.json": files["model.linear.json"] + b" "}, "SHA-256"),
        (lambda files: {**files, "model.linear.json": files["model.linear.json"][:-1]}, "SHA-256"),
        (lambda files: {**files, ENCODING: files["model.linear.json"]}, "SHA-256"),
    ],
)
def test_every_other_kind_of_change_is_refused_with_its_reason(change: Change, reason: str) -> None:
    with pytest.raises(BundleRefusedError, match=reason):
        open_bundle(MemoryFolder(change(sealed())), KEY.public_key())


def test_another_key_another_hash_and_another_format_are_refused() -> None:
    files = sealed()
    with pytest.raises(BundleRefusedError, match="signature"):
        open_bundle(MemoryFolder(files), Ed25519PrivateKey.generate().public_key())
    with pytest.raises(BundleRefusedError, match="registry names"):
        open_bundle(MemoryFolder(files), KEY.public_key(), expected_hash="sha256:0")
    for raw in (files[MANIFEST].replace(b'"format":1', b'"format":2'), b"[]", b"{}", b"\xff"):
        with pytest.raises(BundleRefusedError, match="format"):
            open_bundle(MemoryFolder({**files, MANIFEST: raw, SIGNATURE: KEY.sign(raw)}), KEY.public_key())


def resealed(change: Callable[[dict[str, Any]], object]) -> MemoryFolder:
    """Return a bundle whose manifest was changed before it was signed."""
    files = sealed()
    fields = json.loads(files[MANIFEST])
    change(fields)
    raw = json.dumps(fields).encode()
    return MemoryFolder({**files, MANIFEST: raw, SIGNATURE: KEY.sign(raw)})


def test_fields_that_a_newer_release_adds_to_a_manifest_are_passed_over() -> None:
    def newer(fields: dict[str, Any]) -> None:
        fields["scanned_by"] = "x"
        fields["lineage"]["iceberg_ref"] = "main"

    lineage = open_bundle(resealed(newer), KEY.public_key()).manifest.lineage
    assert (lineage.rows, lineage.seed) == (3, 7)


def test_a_bundle_that_was_sealed_before_its_sources_were_noted_is_read() -> None:
    assert open_bundle(resealed(lambda fields: fields.pop("sources")), KEY.public_key()).manifest.sources == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(lineage=3),
        lambda fields: fields.update(lineage={"rows": "many"}),
        lambda fields: fields.update(lineage={"offsets": [{"partition": 2**40}]}),
        lambda fields: fields.update(lineage={"from": "yesterday"}),
        lambda fields: fields.update(metrics={"log_loss": 10**400}),
        lambda fields: fields["files"].update({"model.linear.json": "sha256:0"}),
    ],
)
def test_a_signed_manifest_that_is_malformed_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(BundleRefusedError):
        open_bundle(resealed(change), KEY.public_key())


@pytest.mark.parametrize("value", ["", "sha256:", "/abs", "sha256:../../x", "0" * 64, "sha256:" + "0" * 64 + "\n"])
def test_nothing_but_a_hash_is_taken_for_one(value: str) -> None:
    with pytest.raises(BundleRefusedError, match=r"^the hash of x is "):
        checked_hash(value, "the hash of x")
    assert checked_hash(digest(b""), "the hash of x") == digest(b"")


def test_even_a_signed_manifest_cannot_name_a_path_or_an_undeclared_model() -> None:
    files = sealed()
    for before, after in (
        (b'"model.linear.json":"sha256', b'"../../etc/x":"sha256'),
        (b'"model.linear.json":"sha256', b'"model/../../x":"sha256'),
        (b'"model.linear.json":"sha256', b'"' + b"x" * 65 + b'":"sha256'),
        (b'"files":{', b'"files":{"":"",'),
    ):
        raw = files[MANIFEST].replace(before, after)
        assert raw != files[MANIFEST]
        with pytest.raises(BundleRefusedError, match="file name"):
            open_bundle(MemoryFolder({**files, MANIFEST: raw, SIGNATURE: KEY.sign(raw)}), KEY.public_key())
    with pytest.raises(BundleRefusedError, match="not list"):
        sealed(model_file="other.onnx")


def test_a_signed_manifest_that_does_not_name_the_encoding_is_refused() -> None:
    folder = resealed(lambda fields: fields["files"].pop(ENCODING))
    without = {name: raw for name, raw in folder.content.items() if name != ENCODING}
    with pytest.raises(BundleRefusedError, match=r"does not list 'encoding\.json'"):
        open_bundle(MemoryFolder(without), KEY.public_key())


@pytest.mark.parametrize(("files", "fine"), [(MAX_FILES, True), (MAX_FILES + 1, False)])
def test_the_files_of_a_bundle_are_bounded_in_number(files: int, fine: bool) -> None:
    # Beside them come the encoding, the manifest and its signature.
    content = {"model.linear.json": MODEL.to_bytes()} | {f"more-{number}": b"" for number in range(files - 4)}
    with nullcontext() if fine else pytest.raises(BundleRefusedError, match="a bundle has at most 32"):
        assert len(seal(manifest(), ENCODED, content, KEY)) == MAX_FILES


def test_a_manifest_that_disagrees_with_the_encoding_is_refused() -> None:
    with pytest.raises(BundleRefusedError, match="disagree"):
        sealed(features=(records.FeatureColumn(name="delay", category=True),))


def test_a_published_bundle_opens_from_the_store_and_publishing_again_changes_nothing(tmp_path: Path) -> None:
    store, files = LocalStore(tmp_path), sealed()
    path = bundle_path("flight-delays", files)
    store.publish(path, files)
    before = {item.name: item.stat().st_mtime_ns for item in (tmp_path / path).iterdir()}
    store.publish(path, files)
    assert {item.name: item.stat().st_mtime_ns for item in (tmp_path / path).iterdir()} == before
    assert open_bundle(store.folder(path), KEY.public_key()).manifest.run_id == "run-1"
    assert [item.name for item in (tmp_path / "flight-delays").iterdir()] == [Path(path).name]


def test_a_link_a_folder_and_an_absent_bundle_are_refused(tmp_path: Path) -> None:
    store, files = LocalStore(tmp_path), sealed()
    path = bundle_path("p", files)
    store.publish(path, files)
    model = tmp_path / path / "model.linear.json"
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleRefusedError, match="no regular file"):
        open_bundle(store.folder(path), KEY.public_key())
    model.unlink()
    model.mkdir()
    with pytest.raises(BundleRefusedError, match="no regular file"):
        open_bundle(store.folder(path), KEY.public_key())
    with pytest.raises(BundleRefusedError, match="missing"):
        open_bundle(store.folder("p/absent"), KEY.public_key())


@pytest.mark.parametrize("path", ["", "/etc", "../x", "a/../../x", "a//b", "a/.", "a\\b", "a/b\0", ".hidden/x"])
def test_a_path_that_could_leave_the_store_is_refused(path: str) -> None:
    with pytest.raises(BundleRefusedError, match="no path"):
        checked_path(path)


def test_what_a_killed_publisher_left_is_removed_and_what_another_writes_now_is_not(tmp_path: Path) -> None:
    old, young = tmp_path / "p" / ".incoming-old", tmp_path / "p" / ".incoming-young"
    for rest in (old, young):
        rest.mkdir(parents=True)
        (rest / "model.onnx").write_bytes(b"half")
    os.utime(old, (0, 0))
    files = sealed()
    LocalStore(tmp_path).publish(bundle_path("p", files), files)
    assert not old.exists()
    assert young.exists()


def test_a_store_behind_a_uri_publishes_and_opens_alike(tmp_path: Path) -> None:
    store, files = open_store(tmp_path.as_uri()), sealed()
    path = bundle_path("p", files)
    store.publish(path, files)
    assert open_bundle(store.folder(path), KEY.public_key()).manifest.run_id == "run-1"
    (tmp_path / path / "extra").write_bytes(b"x")
    with pytest.raises(BundleRefusedError, match="does not name"):
        open_bundle(store.folder(path), KEY.public_key())
    with pytest.raises(BundleRefusedError, match="missing"):
        open_bundle(store.folder("p/absent"), KEY.public_key())


def test_keys_are_read_from_pem_files_and_other_keys_are_refused(tmp_path: Path) -> None:
    private, public = generate_key_pair()
    (tmp_path / "private.pem").write_bytes(private)
    (tmp_path / "public.pem").write_bytes(public)
    load_public_key(tmp_path / "public.pem").verify(load_private_key(tmp_path / "private.pem").sign(b"x"), b"x")
    with pytest.raises(ValueError):
        load_private_key(tmp_path / "public.pem")
