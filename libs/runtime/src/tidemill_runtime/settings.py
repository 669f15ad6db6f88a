"""Settings that every service shares: frozen groups, read once, printed redacted.

One environment prefix per service; `__` separates group and field: `TIDEMILL_FEATURE_KAFKA__BOOTSTRAP`.
"""

import difflib
import os
import re
import ssl
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from tidemill_contracts.topics import DEFAULT_PREFIX

MEBIBYTE = 1024 * 1024
_REDIS_PORT = 6379
_LAST_PORT = 65_535
_STARS = "*" * 10
# Up to the last @: whoever forgets to quote one in a password should not find its end in a log.
# Host and port, of which either may be left out.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:[0-9]*)?")
_URL_PASSWORD = re.compile(r"(://[^/@:]*:).*@|(\bpassword=)[^&]*")


class Group(BaseModel):
    """A frozen group of settings; an unknown field is an error."""

    # The input of what is refused may be a whole group, with its password.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, _masked(value)) for name, value in super().__repr_args__()]


def _readable(path: str) -> str:
    if not os.access(path, os.R_OK) or os.path.isdir(path):
        raise ValueError(f"{path} is no file that this process may read")
    if b"-----BEGIN " not in Path(path).read_bytes():
        raise ValueError(f"{path} is no PEM file: it has no line that begins -----BEGIN")
    return path


# A file of PEM certificates or keys: looked at once, at the start, since later errors do not say which file they mean.
Pem: TypeAlias = Annotated[str, AfterValidator(_readable)]


def _address(url: str, form: str, schemes: Collection[str]) -> str:
    """Return an address that every library reads alike; what they say of another may quote parts of its password."""
    try:
        parts = urlsplit(url)
        at, hosts = parts.netloc.rpartition("@")[1:]
        # An @ elsewhere tells of a password that was cut off at a / # or ?.
        whole = url.count("@") == len(at) and not parts.fragment and all(map(_HOST.fullmatch, hosts.split(",")))
        fits = whole and parts.scheme in schemes
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"write {form}, with / # ? @ [ ] of a user name or password as %2F %23 %3F %40 %5B %5D")
    return url


def _listening(address: str) -> str:
    split_address(address)
    return address


def _brokers(bootstrap: str) -> str:
    """Return the addresses, each of which is a host, with a port or without one."""
    for broker in bootstrap.split(","):
        if not (found := _HOST.fullmatch(broker.strip())) or not found[1] or not _is_port((found[2] or ":1")[1:]):
            raise ValueError(f"{broker.strip()!r} is no broker: write host:port, comma separated")
    return bootstrap


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= _LAST_PORT


def _redis_address(url: str) -> str:
    return _address(url, "redis://user:password@host:port/db", {"redis", "rediss", "unix"})


def _postgres_address(dsn: SecretStr) -> SecretStr:
    _address(dsn.get_secret_value(), "postgresql://user:password@host:port/database", {"postgresql", "postgres"})
    return dsn


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()


def _client_tls(ca: str | None, cert: str | None, key: str | None, *, verify_host: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = verify_host
    if cert:
        context.load_cert_chain(cert, key)
    return context


class KafkaSettings(Group):
    """Where Kafka is and how to log in."""

    bootstrap: Annotated[str, AfterValidator(_brokers)] = Field(
        default="127.0.0.1:9092", description="host:port of one or more brokers, comma separated"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Pem | None = Field(default=None, description="CA of the brokers; the system's store where absent")
    ssl_certfile: Pem | None = Field(default=None, description="client certificate, for mutual TLS")
    ssl_keyfile: Pem | None = None
    topic_prefix: str = Field(
        default=DEFAULT_PREFIX, pattern=r"^[A-Za-z0-9._-]*$", description="put before every logical topic name"
    )
    instance: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="this replica's name, the same after a restart and like no other replica's: with it a killed "
        "replica takes its partitions back at once, without it after the group's session (10 s)",
    )

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> "KafkaSettings":
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"{self.security_protocol} needs sasl_username and sasl_password")
        return self

    @model_validator(mode="after")
    def _key_has_certificate(self) -> "KafkaSettings":
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile is given with ssl_certfile; without it no certificate is shown")
        return self

    def client_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments that every aiokafka client takes."""
        kwargs: dict[str, Any] = {"bootstrap_servers": self.bootstrap, "security_protocol": self.security_protocol}
        if self.security_protocol.startswith("SASL"):
            kwargs["sasl_mechanism"] = self.sasl_mechanism
            kwargs["sasl_plain_username"] = self.sasl_username
            kwargs["sasl_plain_password"] = _secret(self.sasl_password)
        if self.security_protocol.endswith("SSL"):
            kwargs["ssl_context"] = self.tls()
        return kwargs

    def tls(self) -> ssl.SSLContext:
        """Return the TLS context of the brokers."""
        return _client_tls(self.ssl_cafile, self.ssl_certfile, self.ssl_keyfile)

    def group(self, name: str) -> dict[str, Any]:
        """Return the keyword arguments of a consumer in a group; `name` is logical."""
        member = {} if self.instance is None else {"group_instance_id": f"{name}.{self.instance}"}
        return {"group_id": self.physical(name), **member}

    def physical(self, logical: str) -> str:
        """Return the name on the broker."""
        return self.topic_prefix + logical

    def logical(self, physical: str) -> str:
        """Return the name in the catalogue."""
        return physical.removeprefix(self.topic_prefix)


class RedisSettings(Group):
    """Where Redis is: `redis://host:port/db`, `rediss://…` for TLS, `unix:///path`, or a cluster: `redis://a:1,b:2`."""

    url: Annotated[str, AfterValidator(_redis_address)] = "redis://127.0.0.1:6379/0"
    cluster: bool = Field(
        default=False,
        description="the URL names nodes of a Redis Cluster (`redis://a:7000,b:7000`), of which one must answer",
    )
    username: str | None = None
    password: SecretStr | None = None
    ssl_ca_file: Pem | None = None
    ssl_cert_file: Pem | None = None
    ssl_key_file: Pem | None = None
    max_connections: Annotated[int, Field(gt=0)] = 32
    timeout_s: Annotated[float, Field(gt=0)] = 5.0

    @model_validator(mode="after")
    def _several_are_a_cluster(self) -> "RedisSettings":
        if self.further_nodes() and not self.cluster:
            raise ValueError("url names several nodes, as only that of a cluster does: set cluster, or name one")
        return self

    def further_nodes(self) -> list[tuple[str, int]]:
        """Return host and port of the nodes after the first. Raises `ValueError` where one is no address.

        >>> RedisSettings(url="redis://me:a,b@one:1,two:2,[::1]/0", cluster=True).further_nodes()
        [('two', 2), ('::1', 6379)]
        """
        _, *others = self._nodes()
        places = [urlsplit(f"//{other}") for other in others]
        if not all(place.hostname for place in places):
            raise ValueError("url names a node without a host")
        return [(str(place.hostname), place.port or _REDIS_PORT) for place in places]

    def _nodes(self) -> list[str]:
        return urlsplit(self.url).netloc.rpartition("@")[2].split(",")

    def _first_url(self) -> str:
        return self.url.replace(",".join(nodes), nodes[0], 1) if len(nodes := self._nodes()) > 1 else self.url

    def client_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of `from_url` of redis-py's `Redis` and `RedisCluster`, one address included."""
        kwargs: dict[str, Any] = {
            "url": self._first_url(),
            "max_connections": self.max_connections,
            "socket_timeout": self.timeout_s,
            "socket_connect_timeout": self.timeout_s,
            # With RESP 3 the pool takes a closed connection for one with a notification: after a restart of Redis every
            # pooled connection would fail one more request.
            "protocol": 2,
        }
        if self.username:
            kwargs["username"] = self.username
        if self.password:
            kwargs["password"] = _secret(self.password)
        if self.url.startswith("rediss:"):
            files = {
                "ssl_ca_certs": self.ssl_ca_file,
                "ssl_certfile": self.ssl_cert_file,
                "ssl_keyfile": self.ssl_key_file,
            }
            kwargs.update((name, path) for name, path in files.items() if path)
        return kwargs


class PostgresSettings(Group):
    """Where PostgreSQL is: a DSN, or its parts; `host` may be the folder of a Unix socket."""

    dsn: Annotated[SecretStr, AfterValidator(_postgres_address)] | None = None
    host: str = "127.0.0.1"
    port: int = 5432
    user: str = "postgres"
    password: SecretStr | None = None
    database: str = "tidemill"
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    ssl_ca_file: Pem | None = None
    ssl_cert_file: Pem | None = None
    ssl_key_file: Pem | None = None
    max_connections: Annotated[int, Field(gt=0)] = 10
    timeout_s: Annotated[float, Field(gt=0)] = 30.0

    def url(self, scheme: str = "postgresql") -> str:
        """Return the address with its secrets; for a library that takes only a URL, give its scheme.

        >>> PostgresSettings(user="u", database="d").url("postgresql+psycopg2")
        'postgresql+psycopg2://u@127.0.0.1:5432/d?sslmode=prefer'
        """
        if self.dsn:
            return self._completed(self.dsn.get_secret_value(), scheme)
        login = quote(self.user, safe="") + self._password()
        query = "".join(f"&{name}={quote(path, safe='')}" for name, path in self._files().items())
        tail = f"/{quote(self.database, safe='')}?sslmode={self.sslmode}{query}"
        if self.host.startswith("/"):
            return f"{scheme}://{login}@{tail}&host={quote(self.host, safe='')}&port={self.port}"
        return f"{scheme}://{login}@{self.host}:{self.port}{tail}"

    def _completed(self, dsn: str, scheme: str) -> str:
        """Return the DSN with what it leaves to the other settings: the password, and how TLS is spoken."""
        parts = urlsplit(dsn)
        user, at, host = parts.netloc.rpartition("@")
        if at and ":" not in user:
            user += self._password()
        given = ({"sslmode": self.sslmode} if "sslmode" in self.model_fields_set else {}) | self._files()
        query = urlencode(given | dict(parse_qsl(parts.query)), quote_via=quote, safe="")
        return f"{scheme}://{user}{at}{host}{parts.path}" + (f"?{query}" if query else "")

    def _password(self) -> str:
        password = _secret(self.password)
        return f":{quote(password, safe='')}" if password else ""

    def _files(self) -> dict[str, str]:
        files = {"sslrootcert": self.ssl_ca_file, "sslcert": self.ssl_cert_file, "sslkey": self.ssl_key_file}
        return {name: path for name, path in files.items() if path}

    def pool_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of `asyncpg.create_pool`."""
        return {
            "dsn": self.url(),
            "min_size": 1,
            "max_size": self.max_connections,
            "command_timeout": self.timeout_s,
        }


class Door(Group):
    """Where a server listens, and its TLS."""

    listen: Annotated[str, AfterValidator(_listening)] = Field(
        default="127.0.0.1:0", description="host:port; port 0 takes a free one"
    )
    tls_cert: Pem | None = Field(default=None, description="certificate chain (PEM); TLS is on where it is given")
    tls_key: Pem | None = None

    @model_validator(mode="after")
    def _certificate_has_key(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key are given together")
        if self.tls_cert and self.tls_key:
            try:
                # gRPC would say that it cannot bind; for an encrypted key a terminal would be asked.
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key, password="")
            except ssl.SSLError as error:
                raise ValueError(f"{self.tls_key} is not the key, unencrypted, of {self.tls_cert}: {error}") from error
        return self


class GrpcSettings(Door):
    """Where the gRPC server listens, and the TLS of its server and of channels to peers."""

    tls_ca: Pem | None = Field(default=None, description="CA that signs peers; with tls_cert, clients must show one")
    peer_tls: bool = Field(default=False, description="channels to peers use TLS, checked against tls_ca")
    max_message_bytes: Annotated[int, Field(gt=0)] = 64 * MEBIBYTE
    max_in_flight: Annotated[int, Field(gt=0)] = 256
    default_deadline_s: Annotated[float, Field(gt=0)] = 60.0


class HttpSettings(Door):
    """Where HTTP listens: /live, /ready, /metrics and the service's own routes."""


class ServiceSettings(BaseSettings):
    """The base of every service's settings; a subclass sets `env_prefix` and adds its groups."""

    model_config = SettingsConfigDict(
        frozen=True, env_nested_delimiter="__", extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    kafka: KafkaSettings = KafkaSettings()
    grpc: GrpcSettings = GrpcSettings()
    http: HttpSettings = HttpSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "pretty"] = Field(default="auto", description="auto: pretty on a terminal")
    drain_s: Annotated[float, Field(gt=0, le=600)] = Field(default=20.0, description="longest orderly stop")
    stall_s: Annotated[float, Field(gt=0)] = Field(
        default=45.0, description="lag without progress before the process exits"
    )
    test_hop_delay_ms: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, description="tests only: random delay in every hop"
    )
    test_seed: int = Field(default=0, description="tests only: seed of the hop delays")


def split_address(address: str) -> tuple[str, int]:
    """Return host and port.

    >>> split_address("[::1]:80")
    ('::1', 80)

    Raises `ValueError` where there is no port.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not _is_port(port):
        raise ValueError(f"{address!r} is no address: write host:port, the port at most {_LAST_PORT:,}")
    return host.strip("[]"), int(port)


def redacted(settings: BaseSettings) -> dict[str, Any]:
    """Return the settings for printing: secrets are stars."""
    masked: dict[str, Any] = _masked(settings.model_dump(mode="json"))
    return masked


def _masked(value: Any) -> Any:
    """Return the value with the password of every URL in it replaced by stars."""
    if isinstance(value, dict):
        return {name: _masked(inner) for name, inner in value.items()}
    return _URL_PASSWORD.sub(_starred, value) if isinstance(value, str) else value


def _starred(found: "re.Match[str]") -> str:
    return f"{found[1]}{_STARS}@" if found[1] else f"{found[2]}{_STARS}"


def unknown_variables(settings: type[BaseSettings], environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that carries the service's prefix and names no setting."""
    prefix = settings.model_config.get("env_prefix", "").upper()
    known = {prefix + name.upper() for name in _names(settings.model_fields)}
    given = (name.upper() for name in environ if name.upper().startswith(prefix)) if prefix else ()
    return [_sentence(name, known) for name in sorted(set(given) - known)]


def _names(fields: Mapping[str, Any]) -> Iterable[str]:
    for name, info in fields.items():
        yield name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from (f"{name}__{inner}" for inner in _names(info.annotation.model_fields))


def _sentence(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} names no setting" + (f"; did you mean {near[0]}?" if near else "")
