"""Fetches signed bundles: from the local cache where one is kept, else from the artifact store; always verified."""

import asyncio
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_models.bundle import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Bundle, Folder, open_bundle
from tidemill_models.errors import BundleRefusedError
from tidemill_models.scorer import Scorer, load_scorer
from tidemill_models.store import ArtifactStore, LocalStore
from tidemill_runtime.errors import Poison, Retryable

from tidemill_serving.assembly import Loaded, Rings, assemble
from tidemill_serving.desired import Wanted
from tidemill_serving.routing import scorers_of
from tidemill_serving.served import Served

CACHE = "bundles"
# Shapes that requests will have: ONNX Runtime plans its memory at the first run of each.
_WARM_UP_ROWS = (1, 2, 16, 64)
_SIGNATURE_BYTES = 64

log = structlog.get_logger(__name__)


class BundleLoader:
    """Opens what a deployment names. Blocking: call it in a thread."""

    def __init__(self, store: ArtifactStore, key: Ed25519PublicKey, cache: Path | None) -> None:
        self._store = store
        self._key = key
        self._root = Path() if cache is None else cache / CACHE
        self._cache = None if cache is None else LocalStore(self._root)

    def load(self, version: registry.DeployedVersion) -> Loaded:
        """Return a version, verified and warmed up.

        Raises `Poison` where the bundle is not what was signed and registered, `Retryable` where it cannot be reached.
        """
        if not version.manifest_hash:
            raise Poison(
                Reason.MISSING_FIELD, f"version {version.version} names no manifest hash", field="manifest_hash"
            )
        bundle = self._cached(version) or self._fetched(version)
        try:
            scorer = load_scorer(bundle)
            _warm_up(scorer, bundle.encoding.width)
        except BundleRefusedError as error:
            raise Poison(Reason.CONFLICT, f"version {version.version}: {error}") from error
        return Loaded(bundle, scorer)

    def keep_only(self, hashes: Iterable[str]) -> None:
        """Remove cached bundles that are served no more."""
        if self._cache is None or not self._root.is_dir():
            return
        kept = {manifest_hash.removeprefix("sha256:") for manifest_hash in hashes}
        for path in self._root.iterdir():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _cached(self, version: registry.DeployedVersion) -> Bundle | None:
        if self._cache is None:
            return None
        try:
            return open_bundle(self._cache.folder(_cache_path(version)), self._key, version.manifest_hash)
        except (BundleRefusedError, OSError):
            # Absent, cut short or altered: the store has the last word, and its copy takes this place.
            shutil.rmtree(self._root / _cache_path(version), ignore_errors=True)
            return None

    def _fetched(self, version: registry.DeployedVersion) -> Bundle:
        try:
            folder = self._store.folder(version.bundle)
            bundle = open_bundle(folder, self._key, version.manifest_hash)
            self._keep(version, bundle, folder)
        except BundleRefusedError as error:
            raise Poison(Reason.CONFLICT, f"bundle {version.bundle} of version {version.version}: {error}") from error
        except OSError as error:
            raise Retryable(f"bundle {version.bundle} of version {version.version} cannot be read: {error}") from error
        return bundle

    def _keep(self, version: registry.DeployedVersion, bundle: Bundle, folder: Folder) -> None:
        if self._cache is None:
            return
        signed = {
            MANIFEST: folder.read(MANIFEST, MAX_MANIFEST_BYTES),
            SIGNATURE: folder.read(SIGNATURE, _SIGNATURE_BYTES),
        }
        try:
            self._cache.publish(_cache_path(version), {**bundle.files, **signed})
        except OSError as error:
            log.warning("bundle_not_cached", version=version.version, error=str(error))


def _cache_path(version: registry.DeployedVersion) -> str:
    # The store refuses a hash that is no plain path segment.
    return version.manifest_hash.removeprefix("sha256:")


def _warm_up(scorer: Scorer, width: int) -> None:
    for rows in _WARM_UP_ROWS:
        scorer.predict_proba(np.zeros((rows, width), dtype=np.float32))


class EntryLoader:
    """Turns a wanted pipeline into what serves it; bundles are opened in a thread, never on the event loop.

    Bundles stay in memory as long as the entry that they serve: a version that is served already is not loaded again.
    """

    def __init__(self, bundles: BundleLoader, rings: Rings) -> None:
        self._bundles = bundles
        self._rings = rings
        self._kept: dict[str, dict[str, Loaded]] = {}

    async def load(self, wanted: Wanted) -> Served:
        """Return the entry, every version verified and warm. Raises `Poison` or `Retryable`."""
        kept = self._kept.get(wanted.name, {})
        loaded: dict[str, Loaded] = {}
        for version, _ in scorers_of(wanted.deployment):
            name = version.manifest_hash
            loaded[name] = kept[name] if name in kept else await asyncio.to_thread(self._bundles.load, version)
        served = await asyncio.to_thread(assemble, wanted, loaded, self._rings)
        self._kept[wanted.name] = loaded
        return served
