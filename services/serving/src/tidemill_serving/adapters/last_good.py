"""The last good state on disk: what was served, so that a restart without Kafka or registry serves it again."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import structlog
from tidemill_contracts.canonical import to_json
from tidemill_runtime.errors import Poison

from tidemill_serving.desired import Registered
from tidemill_serving.routing import scorers_of

FILE = "last-good.json"
FORMAT = 1

log = structlog.get_logger(__name__)


class LastGood:
    """One JSON file, replaced whole; a file that cannot be read is as good as none."""

    def __init__(self, folder: Path | None, keep_bundles: Callable[[list[str]], None]) -> None:
        """`folder`: None keeps nothing. `keep_bundles` is told which bundles the state on disk needs, by their hash."""
        self._keep_bundles = keep_bundles
        self._path = None if folder is None else folder / FILE

    async def remember(self, registered: Registered) -> None:
        """Write the state; a disk that refuses is logged, since serving does not depend on it."""
        if self._path is None:
            return
        try:
            await asyncio.to_thread(_replace, self._path, _encode(registered))
            await asyncio.to_thread(self._keep_bundles, _bundles(registered))
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


def _bundles(registered: Registered) -> list[str]:
    deployments = [record for record in registered.deployments.values() if record is not None]
    return sorted({version.manifest_hash for record in deployments for version, _ in scorers_of(record)})


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
