"""What a run came from besides its data: the code and the environment; hashed so that a rebuild can be compared."""

import hashlib
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

# What can change the bytes of a model.
DISTRIBUTIONS = (
    "numpy",
    "onnx",
    "onnxmltools",
    "onnxruntime",
    "pyarrow",
    "pyiceberg",
    "river",
    "tidemill-contracts",
    "tidemill-features",
    "tidemill-models",
    "tidemill-training",
    "xgboost-cpu",
)


def environment() -> dict[str, str]:
    """Return the versions of Python, of the machine's kind and of the packages that decide a result."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def code_hash(packages: Iterable[Path]) -> str:
    """Return `sha256:…` over every Python file of these package folders, by relative path."""
    digest = hashlib.sha256()
    for package in sorted(packages, key=lambda path: path.name):
        for file in sorted(package.rglob("*.py")):
            digest.update(f"{package.name}/{file.relative_to(package).as_posix()}\0".encode())
            digest.update(file.read_bytes())
    return "sha256:" + digest.hexdigest()
