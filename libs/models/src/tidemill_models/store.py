"""Where bundles lie: a folder of this machine, or (see `arrow_store`) any store that pyarrow reaches.

A bundle is published whole or not at all, and never changed: its place is named by the hash of its manifest.
"""

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from tidemill_models.bundle import MANIFEST, Folder
from tidemill_models.errors import BundleRefusedError
from tidemill_models.manifest import checked_file_name, manifest_hash

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_INCOMING = ".incoming-"
# Writing a bundle takes seconds.
_ABANDONED_S = 3_600.0


class ArtifactStore(Protocol):
    """Publishes bundles and gives access to them by their path relative to the store."""

    def publish(self, path: str, files: Mapping[str, bytes]) -> None: ...

    def folder(self, path: str) -> Folder: ...


def bundle_path(pipeline: str, files: Mapping[str, bytes]) -> str:
    """Return where a sealed bundle belongs: the same bundle always has the same place."""
    return checked_path(f"{pipeline}/{manifest_hash(files[MANIFEST]).removeprefix('sha256:')[:24]}")


def checked_path(path: str) -> str:
    """Return a relative path of plain segments. Raises `BundleRefusedError` for one that could leave the store."""
    segments = path.split("/")
    if not path or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise BundleRefusedError(f"{path!r} is no path within the artifact store")
    return path


def open_store(uri: str) -> ArtifactStore:
    """Return the store at a folder's path, or at a URI (`s3://…`, `gs://…`, `file://…`).

    pyarrow (about 60 MB) is loaded only for a URI.
    """
    if "://" in uri:
        return cast(ArtifactStore, import_module("tidemill_models.arrow_store").ArrowStore(uri))
    return LocalStore(Path(uri))


class LocalFolder:
    """One bundle's folder on this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """Return the names of everything in the folder. Raises `BundleRefusedError` where there is no such folder."""
        try:
            with os.scandir(self._root) as entries:
                return [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            raise BundleRefusedError(f"no bundle at {self._root}") from None

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a regular file's bytes; a link is not followed. Raises `BundleRefusedError`, or `OSError`."""
        path = self._root / checked_file_name(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise BundleRefusedError(f"{name} is missing") from None
        except OSError as error:
            raise BundleRefusedError(f"{name} is no regular file ({error.strerror})") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BundleRefusedError(f"{name} is no regular file")
        with os.fdopen(descriptor, "rb") as file:
            raw = file.read(max_bytes + 1)
        if len(raw) > max_bytes:
            raise BundleRefusedError(f"{name} is larger than {max_bytes} bytes")
        return raw


class LocalStore:
    """Bundles in a folder of this machine; publishing is one rename."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, path: str) -> LocalFolder:
        """Return the folder of a bundle, which may not exist."""
        return LocalFolder(self._root / checked_path(path))

    def publish(self, path: str, files: Mapping[str, bytes]) -> None:
        """Write a bundle whole; one that is there already is left as it is. Raises `OSError`."""
        target = self._root / checked_path(path)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent, _ABANDONED_S)
        incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=target.parent))
        try:
            for name, raw in files.items():
                _write_durably(incoming / checked_file_name(name), raw)
            incoming.chmod(0o755)
            _rename_unless_there(incoming, target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


def _sweep(folder: Path, older_than_s: float) -> None:
    """Remove what publishers that were killed left half-written; one that is at work now is younger."""
    limit = time.time() - older_than_s
    for rest in folder.glob(f"{_INCOMING}*"):
        with suppress(FileNotFoundError):
            # Another publisher may be sweeping too.
            if rest.stat().st_mtime < limit:
                shutil.rmtree(rest)


def _rename_unless_there(incoming: Path, target: Path) -> None:
    try:
        incoming.rename(target)
    except OSError:
        # Another publisher of the same content was first: its folder is as good as ours.
        if not target.exists():
            raise


def _write_durably(path: Path, raw: bytes) -> None:
    with path.open("xb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
