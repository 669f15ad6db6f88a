"""Bundles in any store that pyarrow reaches: S3, GCS, Azure, HDFS, or a `file://` URI."""

from collections.abc import Mapping

from pyarrow import fs

from tidemill_models.bundle import MANIFEST, SIGNATURE
from tidemill_models.errors import BundleRefusedError
from tidemill_models.manifest import checked_file_name
from tidemill_models.store import checked_path


class ArrowFolder:
    """One bundle's folder in a remote store."""

    def __init__(self, filesystem: fs.FileSystem, root: str) -> None:
        self._filesystem = filesystem
        self._root = root

    def names(self) -> list[str]:
        """Return the names of everything directly in the folder; empty where there is none."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        return [info.base_name for info in self._filesystem.get_file_info(selector)]

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a file's bytes. Raises `BundleRefusedError`, or `OSError` where the store does not answer."""
        path = f"{self._root}/{checked_file_name(name)}"
        info = self._filesystem.get_file_info(path)
        if info.type != fs.FileType.File:
            raise BundleRefusedError(f"{name} is missing or no regular file")
        if info.size > max_bytes:
            raise BundleRefusedError(f"{name} is larger than {max_bytes} bytes")
        with self._filesystem.open_input_stream(path) as stream:
            return bytes(stream.read(max_bytes))


class ArrowStore:
    """Bundles under a URI. There is no rename of folders here: the signature is written last and makes it a bundle."""

    def __init__(self, uri: str) -> None:
        self._filesystem, root = fs.FileSystem.from_uri(uri)
        self._root = root.rstrip("/")

    def folder(self, path: str) -> ArrowFolder:
        """Return the folder of a bundle, which may not exist."""
        return ArrowFolder(self._filesystem, f"{self._root}/{checked_path(path)}")

    def publish(self, path: str, files: Mapping[str, bytes]) -> None:
        """Write a bundle, the signature last. Raises `OSError` where the store does not answer."""
        root = f"{self._root}/{checked_path(path)}"
        self._filesystem.create_dir(root, recursive=True)
        last = (MANIFEST, SIGNATURE)
        for name in [*(name for name in files if name not in last), *(name for name in last if name in files)]:
            with self._filesystem.open_output_stream(f"{root}/{checked_file_name(name)}") as stream:
                stream.write(files[name])
