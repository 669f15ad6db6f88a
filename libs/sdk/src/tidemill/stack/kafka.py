"""One Kafka node (KRaft: broker and controller in one) as a child process."""

import base64
import functools
import struct
import subprocess
import uuid
from pathlib import Path

from tidemill.stack.health import kafka_answers
from tidemill.stack.ports import LOOPBACK
from tidemill.stack.programs import Program
from tidemill.stack.spec import StackError

HEAP = "512m"


def properties(data: Path, port: int, controller_port: int) -> str:
    """Return the text of server.properties: one node, everything on loopback, internal topics of one replica."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": escaped(str(data / "log")),
        # A topic exists because the catalogue names it, never because someone mistyped it.
        "auto.create.topics.enable": "false",
        "num.partitions": 1,
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "group.initial.rebalance.delay.ms": 0,
        # After a kill the controller refuses the new broker until the old one's session is over: 9 s by default.
        "broker.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 3000,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,  # the default reserves 128 MB of the heap
        "log.index.size.max.bytes": 1024 * 1024,
        "offset.metadata.max.bytes": 65_536,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def escaped(text: str) -> str:
    r"""Return a text as a value of server.properties, whose escapes are Java's and whose bytes are Latin-1.

    >>> print(escaped("/home/José/a=b"))
    /home/Jos\u00e9/a=b
    """
    units = struct.iter_unpack(">H", text.encode("utf-16-be", "surrogatepass"))
    return "".join(
        r"\\" if unit == ord("\\") else chr(unit) if 0x20 <= unit < 0x7F else rf"\u{unit:04x}" for (unit,) in units
    )


def prepare(data: Path, port: int, controller_port: int, *, java: Path, class_path: str) -> Path:
    """Write the configuration and format the log folder once; return the configuration's path.

    Raises: StackError when the folder's path has a comma, which no escape keeps from being two folders.
    """
    if "," in str(data):
        raise StackError(f"Kafka takes no folder with a comma in its path: {data}; choose another with --home")
    data.mkdir(parents=True, exist_ok=True)
    config = data / "server.properties"
    config.write_text(properties(data, port, controller_port))
    if not (data / "log" / "meta.properties").exists():
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = (str(java), "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-XX:TieredStopAtLevel=1")
        # Joined by "=": one id in 64 begins with a dash.
        arguments = ("format", f"--cluster-id={cluster}", "-c", str(config))
        command = (*tool, "-cp", class_path, "kafka.tools.StorageTool", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
        if done.returncode != 0:
            raise StackError(f"Kafka's log folder could not be formatted: {done.stdout}{done.stderr}")
    return config


def quiet(java_version: int) -> tuple[str, ...]:
    """Return the option that keeps later runtimes from warning about memory access that Kafka still needs."""
    return ("--sun-misc-unsafe-memory-access=allow",) if java_version >= 23 else ()


def program(config: Path, port: int, *, java: Path, java_version: int, class_path: str) -> Program:
    """Return the broker's process. A C1-only JVM with one GC thread starts fastest and stays small."""
    command = (
        str(java),
        f"-Xmx{HEAP}",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        *quiet(java_version),
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-cp",
        class_path,
        "kafka.Kafka",
        str(config),
    )
    return Program(name="kafka", command=command, ready=functools.partial(kafka_answers, f"{LOOPBACK}:{port}"))
