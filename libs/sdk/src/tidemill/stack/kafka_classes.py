"""Kafka's classes as a JVM has loaded them once (the AOT cache of JDK 25): with them a broker starts in half the time.

A cache belongs to one JVM, class path and set of options; the JVM refuses one that does not fit, and does without.
"""

import asyncio
import fcntl
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tidemill.stack import java, kafka, wheels
from tidemill.stack.children import die_with_parent
from tidemill.stack.health import kafka_answers
from tidemill.stack.kafka import Runtime
from tidemill.stack.ports import LOOPBACK, choose, is_free
from tidemill.stack.spec import StackError

OLDEST_JAVA = 25
# Each is some 60 MB; those of other versions go when they were not used for longest.
KEPT = 3
DEADLINE_S = 120.0
_POLL_S = 0.1
_MAKING = "making-"
_SHOWN_CHARS = 500


def installed() -> Runtime:
    """Return what runs Kafka here, with its cache. Raises: StackError where Java or the jars cannot be had."""
    found = java.find()
    runtime = Runtime(found, java.version(found), wheels.kafka_class_path())
    return replace(runtime, classes=cached(runtime, wheels.download_folder()))


def cached(runtime: Runtime, folder: Path) -> Path | None:
    """Return the runtime's cache in `folder`, made where it is missing by a broker of its own: ten seconds, once.

    None where Java has none, and where it could not be made, which is said: then Kafka starts slower.
    """
    if runtime.version < OLDEST_JAVA:
        return None
    release = runtime.java.resolve().parent.parent / "release"
    named = [release.read_text() if release.exists() else str(runtime), runtime.class_path, *kafka.OPTIONS]
    digest = hashlib.sha256("\n".join(named).encode()).hexdigest()
    file = folder / f"kafka-{digest[:16]}.aot"
    with open(folder / ".aot.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stacks may start for the first time at once
        if file.exists():
            os.utime(file)
            return file
        # Whoever was killed while making one left its folder.
        for left in folder.glob(f"{_MAKING}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=folder, prefix=_MAKING) as scratch:
            made = Path(scratch, "made.aot")
            try:
                _make(runtime, Path(scratch), made)
            except (OSError, StackError, subprocess.SubprocessError) as error:
                sys.stderr.write(f"Kafka starts slower than it might, since its classes could not be kept: {error}\n")
                return None
            made.rename(file)
        for old in sorted(folder.glob("kafka-*.aot"), key=lambda one: one.stat().st_mtime)[:-KEPT]:
            old.unlink()
    return file


def _make(runtime: Runtime, scratch: Path, file: Path) -> None:
    """Start a broker and stop it; on its way out the JVM writes the classes that it had loaded."""
    ports = choose(("broker", "controller"), {}, random.SystemRandom(), is_free)
    config = kafka.prepare(scratch / "data", ports["broker"], ports["controller"], runtime=runtime)
    deadline = time.monotonic() + DEADLINE_S
    output = scratch / "output.log"
    with output.open("wb") as written:
        process = subprocess.Popen(  # noqa: S603 - our own arguments
            runtime.command("kafka.Kafka", str(config), options=(f"-XX:AOTCacheOutput={file}", *kafka.OF_CLASSES)),
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid(), signal.SIGKILL),  # noqa: PLW1509 - as for every child of a stack
        )
    try:
        while not asyncio.run(kafka_answers(f"{LOOPBACK}:{ports['broker']}")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StackError(
                    f"a broker that was started for it did not come up: {output.read_text()[-_SHOWN_CHARS:]}"
                )
            time.sleep(_POLL_S)
        process.terminate()
        process.wait(deadline - time.monotonic())
    finally:
        process.kill()
        process.wait()
    if not file.exists():
        raise StackError("the JVM wrote nothing")
