"""The last good state on disk: what was served, so that a restart without Kafka or registry serves it again."""

import asyncio
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

import structlog
from tidemill_contracts.canonical import to_json
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_runtime.errors import Poison

from tidemill_serving.desired import Registered
from tidemill_serving.routing import scorers_of

FILE = "last-good.json"
FORMAT = 1

log = structlog.get_logger(__name__)


class Bundles(Protocol):
    """The bundles on which a state rests. Both block."""

    def ensure(self, versions: Iterable[registry.DeployedVersion]) -> None: ...

    def keep_only(self, hashes: Collection[str]) -> None: ...


class LastGood:
    """One JSON file, replaced whole; a file that cannot be read is as good as none."""

    def __init__(self, folder: Path | None, bundles: Bundles) -> None:
        """`folder`: None keeps nothing. `bundles` are told which the state on disk needs, before it is written."""
        self._bundles = bundles
        self._path = None if folder is None else folder / FILE

    async def remember(self, served: Registered, wanted: Registered) -> None:
        """Write what is served; only its bundles, and those of what is wanted and may be served next, are kept.

        A disk that refuses is logged, since serving does not depend on it; the older state that it holds keeps its own.
        """
        needed = _versions(served)
        try:
            if self._path is not None:
                await asyncio.to_thread(self._bundles.ensure, needed)
                await asyncio.to_thread(_replace, self._path, _encode(served))
            hashes = {version.manifest_hash for version in needed + _versions(wanted)}
            await asyncio.to_thread(self._bundles.keep_only, hashes)
        except OSError as error:
            log.warning("last_good_not_written", path=str(self._path), error=str(error))

    def recall(self) -> Registered:
        """Return what was served last; nothing where nothing readable is there."""
        if self._path is None or not self._path.exists():
            return Registered()
        try:
            return _decode(self._path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, Poison) as error:
            log.warning("last_good_unreadable", path=str(self._path), error=str(error))
            return Registered()


def _versions(registered: Registered) -> list[registry.DeployedVersion]:
    deployments = [record for record in registered.deployments.values() if record is not None]
    return [version for record in deployments for version, _ in scorers_of(record)]


def _encode(registered: Registered) -> bytes:
    state = {
        "format": FORMAT,
        "definitions": [to_json(record).decode() for record in registered.definitions.values()],
        "deployments": [to_json(record).decode() for record in registered.deployments.values() if record is not None],
    }
    return json.dumps(state).encode()


def _decode(raw: bytes) -> Registered:
    state = json.loads(raw)
    if state["format"] != FORMAT:
        raise ValueError(f"format {state['format']!r} is not known here")
    registered = Registered()
    for text in state["definitions"]:
        registered = registered.with_definition(text.encode())
    for text in state["deployments"]:
        registered = registered.with_deployment(None, text.encode())
    return registered


def _replace(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
