"""One Kafka node (KRaft: broker and controller in one) as a child process."""

import base64
import functools
import struct
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidemill.stack.health import kafka_answers
from tidemill.stack.ports import LOOPBACK
from tidemill.stack.programs import Program
from tidemill.stack.spec import StackError

# A C1-only JVM with one GC thread starts fastest and stays small.
OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
# Adapters that were kept do not always fit again, and JDK 25 warns of each.
OF_CLASSES = ("-XX:+UnlockDiagnosticVMOptions", "-XX:-AOTAdapterCaching", "-Xlog:aot*=off")


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


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs Kafka: a Java of some major version, and the jars. `classes`: the cache of `kafka_classes`, if any."""

    java: Path
    version: int
    class_path: str
    classes: Path | None = None

    def command(self, main: str, *arguments: str, options: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the command that runs one of Kafka's main classes."""
        chosen = [*OPTIONS, *options]
        # Later runtimes warn about memory access that Kafka still needs.
        chosen += ["--sun-misc-unsafe-memory-access=allow"] if self.version >= 23 else []
        chosen += [f"-XX:AOTCache={self.classes}", *OF_CLASSES] if self.classes else []
        return (str(self.java), *chosen, "-cp", self.class_path, main, *arguments)


def prepare(data: Path, port: int, controller_port: int, *, runtime: Runtime) -> Path:
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
        # Joined by "=": one id in 64 begins with a dash.
        arguments = ("format", f"--cluster-id={cluster}", "-c", str(config))
        command = runtime.command("kafka.tools.StorageTool", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
        if done.returncode != 0:
            raise StackError(f"Kafka's log folder could not be formatted: {done.stdout}{done.stderr}")
    return config


def program(config: Path, port: int, *, runtime: Runtime) -> Program:
    """Return the broker's process."""
    command = runtime.command("kafka.Kafka", str(config))
    return Program(name="kafka", command=command, ready=functools.partial(kafka_answers, f"{LOOPBACK}:{port}"))
