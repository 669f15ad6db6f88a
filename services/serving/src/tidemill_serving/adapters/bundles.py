"""Fetches signed bundles: from the local cache where one is kept, else from the artifact store; always verified."""

import asyncio
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_models.bundle import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Bundle, Folder, open_bundle
from tidemill_models.errors import BundleRefusedError
from tidemill_models.manifest import checked_hash
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
        place = _cache_path(version)
        bundle = self._cached(version, place) or self._fetched(version, place)
        try:
            scorer = load_scorer(bundle)
            _warm_up(scorer, bundle.encoding.width)
        except BundleRefusedError as error:
            raise Poison(Reason.CONFLICT, f"version {version.version}: {error}") from error
        return Loaded(bundle, scorer)

    def ensure(self, versions: Iterable[registry.DeployedVersion]) -> None:
        """Cache what is not there, as after a disk that refused it; a store that does not have it is logged."""
        if self._cache is None:
            return
        for version in versions:
            place = _cache_path(version)
            if (self._root / place).is_dir():
                continue
            try:
                self._fetched(version, place)
            except (Poison, Retryable) as error:
                log.warning("bundle_not_cached", version=version.version, error=str(error))

    def keep_only(self, hashes: Iterable[str]) -> None:
        """Remove every other bundle from the cache."""
        if self._cache is None or not self._root.is_dir():
            return
        kept = {manifest_hash.removeprefix("sha256:") for manifest_hash in hashes}
        for path in self._root.iterdir():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _cached(self, version: registry.DeployedVersion, place: str) -> Bundle | None:
        if self._cache is None:
            return None
        try:
            return open_bundle(self._cache.folder(place), self._key, version.manifest_hash)
        except (BundleRefusedError, OSError):
            # Absent, cut short or altered: the store has the last word, and its copy takes this place.
            shutil.rmtree(self._root / place, ignore_errors=True)
            return None

    def _fetched(self, version: registry.DeployedVersion, place: str) -> Bundle:
        try:
            folder = self._store.folder(version.bundle)
            bundle = open_bundle(folder, self._key, version.manifest_hash)
            self._keep(version, place, bundle, folder)
        except BundleRefusedError as error:
            raise Poison(Reason.CONFLICT, f"bundle {version.bundle} of version {version.version}: {error}") from error
        except OSError as error:
            raise Retryable(f"bundle {version.bundle} of version {version.version} cannot be read: {error}") from error
        return bundle

    def _keep(self, version: registry.DeployedVersion, place: str, bundle: Bundle, folder: Folder) -> None:
        if self._cache is None:
            return
        signed = {
            MANIFEST: folder.read(MANIFEST, MAX_MANIFEST_BYTES),
            SIGNATURE: folder.read(SIGNATURE, _SIGNATURE_BYTES),
        }
        try:
            self._cache.publish(place, {**bundle.files, **signed})
        except OSError as error:
            log.warning("bundle_not_cached", version=version.version, error=str(error))


def _cache_path(version: registry.DeployedVersion) -> str:
    """Return the folder of a version in the cache, which may be deleted: nothing but a hash is one. Raises `Poison`."""
    try:
        whole = checked_hash(version.manifest_hash, f"the manifest hash of version {version.version}")
    except BundleRefusedError as error:
        raise Poison(Reason.UNDECODABLE, str(error), field="manifest_hash") from error
    return whole.removeprefix("sha256:")


def _warm_up(scorer: Scorer, width: int) -> None:
    for rows in _WARM_UP_ROWS:
        scorer.predict_proba(np.zeros((rows, width), dtype=np.float32))


class EntryLoader:
    """Turns a wanted pipeline into what serves it; bundles are opened in a thread, never on the event loop.

    Bundles stay in memory, and in the cache, until `keep_only`: a version that is served already is not loaded again.
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
        if served.left_out:
            log.warning("baselines_left_out", pipeline=wanted.name, why=served.left_out)
        return served

    def ensure(self, versions: Iterable[registry.DeployedVersion]) -> None:
        """Cache the bundles that are not there. Blocking."""
        self._bundles.ensure(versions)

    def keep_only(self, hashes: Collection[str]) -> None:
        """Forget every other bundle, in memory as in the cache: what is in memory is not cached again. Blocking."""
        kept = {name: {one: loaded[one] for one in loaded if one in hashes} for name, loaded in self._kept.items()}
        self._kept = {name: loaded for name, loaded in kept.items() if loaded}
        self._bundles.keep_only(hashes)
