"""Kafka's classes are kept once per runtime, used by its JVM, and done without where they cannot be had."""

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tidemill.stack import kafka_classes
from tidemill.stack.kafka import Runtime
from tidemill.stack.kafka_classes import KEPT, cached, installed


def broken_java(folder: Path) -> Path:
    java = folder / "java"
    java.write_text("#!/bin/sh\necho no such option >&2\nexit 1\n")
    java.chmod(0o755)
    return java


def test_an_older_java_has_no_cache(tmp_path: Path) -> None:
    assert cached(Runtime(broken_java(tmp_path), kafka_classes.OLDEST_JAVA - 1, "kafka.jar"), tmp_path) is None
    assert [one.name for one in tmp_path.iterdir()] == ["java"]


def test_a_java_that_fails_is_said_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One that was killed before could not tidy up.
    (tmp_path / "making-x").mkdir()
    (tmp_path / "making-x/data").touch()
    assert cached(Runtime(broken_java(tmp_path), 25, "kafka.jar"), tmp_path) is None
    said = capsys.readouterr().err
    assert said.startswith("Kafka starts slower than it might, since its classes could not be kept: ")
    assert "no such option" in said
    assert {one.name for one in tmp_path.iterdir()} == {"java", ".aot.lock"}


def test_a_broker_that_does_not_come_up_is_said_with_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    java = tmp_path / "java"
    java.write_text('#!/bin/sh\ncase "$*" in *StorageTool*) exit 0;; esac\necho no room for classes >&2\nexit 1\n')
    java.chmod(0o755)
    assert cached(Runtime(java, 25, "kafka.jar"), tmp_path) is None
    assert "did not come up: no room for classes" in capsys.readouterr().err


def test_a_command_names_the_cache_where_there_is_one() -> None:
    runtime = Runtime(Path("java"), 25, "kafka.jar")
    assert not [word for word in runtime.command("kafka.Kafka") if "AOT" in word]
    assert "-XX:AOTCache=k.aot" in replace(runtime, classes=Path("k.aot")).command("kafka.Kafka")


@pytest.mark.servers
def test_the_jvm_takes_the_cache_that_was_made_and_older_ones_go(tmp_path: Path) -> None:
    runtime = installed()
    if runtime.version < kafka_classes.OLDEST_JAVA:
        pytest.skip(f"Java {runtime.version} keeps no classes")
    for age in range(KEPT + 1):
        old = tmp_path / f"kafka-{age}.aot"
        old.touch()
        os.utime(old, (time.time() - 1_000 * age,) * 2)
    made = cached(replace(runtime, classes=None), tmp_path)
    assert made is not None
    assert {one.name for one in tmp_path.glob("*.aot")} == {made.name, "kafka-0.aot", "kafka-1.aot"}
    written = made.stat().st_ino
    assert cached(replace(runtime, classes=None), tmp_path) == made
    assert made.stat().st_ino == written
    # Where a cache is required, a JVM that cannot use it ends.
    command = replace(runtime, classes=made).command(
        "kafka.tools.StorageTool", "random-uuid", options=("-XX:AOTMode=on",)
    )
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    other = replace(runtime, classes=made, class_path=f"{tmp_path}:{runtime.class_path}")
    command = other.command("kafka.tools.StorageTool", "random-uuid", options=("-XX:AOTMode=on",))
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode != 0
