"""Kafka, Redis and PostgreSQL as an operator secures them: TLS and a password at every door."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Final
from urllib.parse import urlsplit

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from pydantic import SecretStr
from relay import relayed
from tidemill.stack import kafka, kafka_classes
from tidemill.stack.spec import SERVICES
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.authority import LOOPBACK, Authority, Pair
from tidemill_testkit.eventually import eventually
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.plugin import Servers
from tidemill_testkit.ports import free_port

MECHANISM: Final = "SCRAM-SHA-512"
USER = "tidemill"
STOP_S = 60.0


def _lines(port: int, controller: int, password: str, pair: Pair, authority: Authority) -> str:
    """Return what makes the local stack's broker ask for TLS and a password; of two lines Java takes the later."""
    module = "org.apache.kafka.common.security.scram.ScramLoginModule"
    lines = {
        "listeners": f"SASL_SSL://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": f"SASL_SSL://{LOOPBACK}:{port}",
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "SASL_SSL",
        "sasl.enabled.mechanisms": MECHANISM,
        "sasl.mechanism.inter.broker.protocol": MECHANISM,
        f"listener.name.sasl_ssl.{MECHANISM.lower()}.sasl.jaas.config": (
            f'{module} required username="{USER}" password="{password}";'
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": pair.both,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authority.file,
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())


async def _answers(kafka: KafkaSettings) -> bool:
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    try:
        await admin.start()
    finally:
        await admin.close()
    return True


@contextmanager
def secured_kafka(folder: Path, authority: Authority) -> Iterator[KafkaSettings]:
    """Run a broker that takes SASL_SSL alone; yields how it is talked to."""
    folder.mkdir(parents=True)
    port, controller, password = free_port(), free_port(), token_hex(16)
    config = folder / "server.properties"
    text = kafka.properties(folder, port, controller)
    config.write_text(text + _lines(port, controller, password, authority.pair("kafka"), authority))
    runtime = kafka_classes.installed()
    user = f"{MECHANISM}=[name={USER},password={password}]"
    identity = ["format", "--cluster-id=c2VjdXJlZC1jbHVzdGVyIQ", "-c", str(config), "--add-scram", user]
    subprocess.run(runtime.command("kafka.tools.StorageTool", *identity), check=True, capture_output=True)
    program = kafka.program(config, port, runtime=runtime)
    with (folder / "kafka.log").open("wb") as log:
        process = subprocess.Popen(dying_with_us(program.command), stdout=log, stderr=log)
    settings = KafkaSettings(
        bootstrap=f"{LOOPBACK}:{port}",
        security_protocol="SASL_SSL",
        sasl_mechanism=MECHANISM,
        sasl_username=USER,
        sasl_password=SecretStr(password),
        ssl_cafile=str(authority.file),
    )
    try:
        eventually(lambda: asyncio.run(_answers(settings)), tolerate=(KafkaError, OSError))
        yield settings
    finally:
        process.terminate()
        process.wait(STOP_S)


@dataclass(frozen=True)
class Secured:
    """What an operator has: addresses, passwords, and the authority that signed every certificate."""

    authority: Authority
    stranger: Authority
    pair: Pair
    kafka: KafkaSettings
    redis: str
    postgres: str
    redis_password: str
    postgres_password: str

    @property
    def secrets(self) -> list[str]:
        assert self.kafka.sasl_password is not None
        return [self.kafka.sasl_password.get_secret_value(), self.redis_password, self.postgres_password]

    def services(self) -> dict[str, str]:
        """Return what each service is told; addresses are the stack's to tell, and hold no password."""
        shared = {
            "GRPC__TLS_CERT": self.pair.certificate,
            "GRPC__TLS_KEY": self.pair.key,
            "GRPC__TLS_CA": self.authority.file,
            "GRPC__PEER_TLS": "true",
        }
        told = {f"TIDEMILL_{name.upper()}_{key}": str(value) for name in SERVICES for key, value in shared.items()}
        for name in ("FEATURE", "SERVING"):
            told[f"TIDEMILL_{name}_REDIS__PASSWORD"] = self.redis_password
            told[f"TIDEMILL_{name}_REDIS__SSL_CA_FILE"] = str(self.authority.file)
        for name in ("REGISTRY", "FEATURE", "TRAINING", "MONITORING"):
            told[f"TIDEMILL_{name}_POSTGRES__PASSWORD"] = self.postgres_password
            told[f"TIDEMILL_{name}_POSTGRES__SSLMODE"] = "verify-full"
            told[f"TIDEMILL_{name}_POSTGRES__SSL_CA_FILE"] = str(self.authority.file)
        return told

    def commands(self) -> dict[str, str]:
        """Return what the command line and the local stack read."""
        return {
            "TIDEMILL_KAFKA_SECURITY_PROTOCOL": self.kafka.security_protocol,
            "TIDEMILL_KAFKA_SASL_MECHANISM": self.kafka.sasl_mechanism,
            "TIDEMILL_KAFKA_SASL_USERNAME": self.kafka.sasl_username or "",
            "TIDEMILL_KAFKA_SASL_PASSWORD": self.secrets[0],
            "TIDEMILL_KAFKA_SSL_CAFILE": str(self.authority.file),
            "TIDEMILL_TLS_CA": str(self.authority.file),
            "TIDEMILL_TLS_CERT": str(self.pair.certificate),
            "TIDEMILL_TLS_KEY": str(self.pair.key),
        }


@contextmanager
def opened_servers(servers: Servers, folder: Path) -> Iterator[Secured]:
    """Put TLS before Redis and PostgreSQL, which have passwords as they are, and run a Kafka that has both."""
    authority = Authority(folder / "authority", "tidemill tests")
    pair = authority.pair("services")
    redis, postgres = urlsplit(servers.redis), urlsplit(servers.postgres_dsn)
    with ExitStack() as opened:
        redis_port = opened.enter_context(relayed(redis.port or 0, pair))
        postgres_port = opened.enter_context(relayed(postgres.port or 0, pair, asks=True))
        yield Secured(
            authority=authority,
            stranger=Authority(folder / "stranger", "somebody else"),
            pair=pair,
            kafka=opened.enter_context(secured_kafka(folder / "kafka", authority)),
            redis=f"rediss://{LOOPBACK}:{redis_port}/0",
            postgres=f"postgresql://{postgres.username}@{LOOPBACK}:{postgres_port}{postgres.path}",
            redis_password=redis.password or "",
            postgres_password=postgres.password or "",
        )
