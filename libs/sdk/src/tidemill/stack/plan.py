"""What runs and with which environment: pure, so that tests and compose can be compared with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tidemill.kafka_login import NAMES, PREFIX
from tidemill.stack.endpoints import Endpoints
from tidemill.stack.spec import SERVICES


@dataclass(frozen=True)
class Layout:
    """Folders and files under a stack's home."""

    home: Path

    @property
    def state_file(self) -> Path:
        return self.home / "state.json"

    @property
    def spec_file(self) -> Path:
        return self.home / "spec.json"

    @property
    def secrets_file(self) -> Path:
        return self.home / "secrets.json"

    @property
    def lock_file(self) -> Path:
        return self.home / "lock"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def warehouse(self) -> Path:
        return self.home / "warehouse"

    @property
    def signing_key(self) -> Path:
        return self.home / "keys" / "signing.pem"

    @property
    def verify_key(self) -> Path:
        return self.home / "keys" / "verify.pem"

    def data(self, name: str) -> Path:
        """Return the folder that one server or service has for itself."""
        return self.home / name


@dataclass(frozen=True)
class Needs:
    """What one service is given: servers, peers by their gRPC address, and paths."""

    servers: tuple[str, ...]
    peers: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


NEEDS: Mapping[str, Needs] = {
    "registry": Needs(servers=("kafka", "postgres")),
    "ingestion": Needs(servers=("kafka",)),
    "feature": Needs(servers=("kafka", "postgres", "redis"), paths=("WAREHOUSE",)),
    "training": Needs(
        servers=("kafka", "postgres"),
        peers=("registry", "feature"),
        paths=("ARTIFACTS", "SIGNING_KEY_FILE", "DATADIR"),
    ),
    "serving": Needs(servers=("kafka", "redis"), paths=("ARTIFACTS", "VERIFY_KEY_FILE", "CACHE")),
    "monitoring": Needs(servers=("kafka", "postgres"), paths=("DATADIR",)),
}


def prefix_of(service: str) -> str:
    """Return the service's environment prefix.

    >>> prefix_of("feature")
    'TIDEMILL_FEATURE_'
    """
    return f"TIDEMILL_{service.upper()}_"


def kafka_security(service: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return how an existing Kafka is talked to, from what the command line reads, as settings of one service.

    >>> kafka_security("feature", {"TIDEMILL_KAFKA_SASL_USERNAME": "ada", "HOME": "/"})
    {'TIDEMILL_FEATURE_KAFKA__SASL_USERNAME': 'ada'}
    """
    given = ((name, environment.get(PREFIX + name)) for name in NAMES)
    return {f"{prefix_of(service)}KAFKA__{name}": value for name, value in given if value}


def service_environment(service: str, endpoints: Endpoints, layout: Layout) -> dict[str, str]:
    """Return the settings that the stack hands to one service, as environment variables."""
    needs = NEEDS[service]
    address = endpoints.services[service]
    servers = {
        "kafka": {
            "KAFKA__BOOTSTRAP": endpoints.kafka,
            "KAFKA__TOPIC_PREFIX": endpoints.topic_prefix,
            # The supervisor runs one of each and restarts it.
            "KAFKA__INSTANCE": "local",
        },
        "postgres": {"POSTGRES__DSN": endpoints.postgres_dsn},
        "redis": {"REDIS__URL": endpoints.redis},
    }
    paths = {
        "ARTIFACTS": layout.artifacts,
        "WAREHOUSE": layout.warehouse,
        "SIGNING_KEY_FILE": layout.signing_key,
        "VERIFY_KEY_FILE": layout.verify_key,
        "DATADIR": layout.data(service),
        "CACHE": layout.data(service),
    }
    values = {"GRPC__LISTEN": address.grpc, "HTTP__LISTEN": address.http}
    for server in needs.servers:
        values |= servers[server]
    for peer in needs.peers:
        if peer in endpoints.services:
            values[peer.upper()] = endpoints.services[peer].grpc
    values |= {name: str(paths[name]) for name in needs.paths}
    return {prefix_of(service) + name: value for name, value in values.items()}


def port_names(services: tuple[str, ...], external: frozenset[str]) -> tuple[str, ...]:
    """Return the name of every port the stack listens on itself, in a fixed order."""
    servers = {"kafka": ("kafka", "kafka-controller"), "postgres": ("postgres",), "redis": ("redis",)}
    names = [port for server, ports in servers.items() if server not in external for port in ports]
    for service in SERVICES:
        if service in services:
            names += [f"{service}-grpc", f"{service}-http"]
    return tuple(names)
