"""Which stack or which addresses a command talks to."""

import os
from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.answers import NOT_REACHABLE, USAGE, RefusedError
from tidemill.clients.calls import Connection, Tls
from tidemill.clients.topics import KafkaTarget
from tidemill.stack.endpoints import Endpoints
from tidemill.stack.plan import Layout
from tidemill.stack.spec import DEFAULT_NAME, DEFAULT_PREFIX, StackError, default_home, start_command
from tidemill.stack.state import read_state, supervisor_alive

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StackName = Annotated[str, typer.Option("--stack", help="The local stack to talk to.", envvar="TIDEMILL_STACK")]
Home = Annotated[Path | None, typer.Option("--home", help="The stack's folder; .tidemill/NAME unless told.")]
Ingestion = Annotated[str | None, typer.Option(help="HOST:PORT of ingestion.", envvar="TIDEMILL_INGESTION")]
Feature = Annotated[str | None, typer.Option(help="HOST:PORT of feature.", envvar="TIDEMILL_FEATURE")]
Registry = Annotated[str | None, typer.Option(help="HOST:PORT of the registry.", envvar="TIDEMILL_REGISTRY")]
Serving = Annotated[str | None, typer.Option(help="HOST:PORT of serving.", envvar="TIDEMILL_SERVING")]
Monitoring = Annotated[str | None, typer.Option(help="HOST:PORT of monitoring.", envvar="TIDEMILL_MONITORING")]
Kafka = Annotated[str | None, typer.Option(help="HOST:PORT of Kafka.", envvar="TIDEMILL_KAFKA")]
Prefix = Annotated[
    str | None, typer.Option("--topic-prefix", help="Starts every topic's name.", envvar="TIDEMILL_TOPIC_PREFIX")
]

DEFAULT_STACK = DEFAULT_NAME


class Target:
    """A local stack by name or folder; addresses given by hand come first."""

    def __init__(self, stack: str, home: Path | None) -> None:
        self._stack = stack
        try:
            self._home = default_home(stack) if home is None else home.absolute()
        except StackError as error:
            raise RefusedError(str(error), USAGE) from error

    def connect(self, service: str, given: str | None) -> Connection:
        """Return a connection to a service. Raises `RefusedError` where nobody knows its address."""
        return Connection(service, given or self._address(service), Tls.from_environment(os.environ))

    def knows(self, service: str, given: str | None) -> bool:
        """Say whether there is an address to connect to, of a service or of `kafka`."""
        endpoints = self._endpoints()
        return bool(given) or (endpoints is not None and service in ("kafka", *endpoints.services))

    def kafka(self, given: str | None, prefix: str | None) -> KafkaTarget:
        """Return where Kafka is. Raises `RefusedError` where nobody knows."""
        endpoints = None if given else self._endpoints()
        if endpoints is None and not given:
            raise self._unknown("kafka")
        bootstrap = given or (endpoints.kafka if endpoints else "")
        known_prefix = endpoints.topic_prefix if endpoints else DEFAULT_PREFIX
        return KafkaTarget.from_environment(bootstrap, known_prefix if prefix is None else prefix, os.environ)

    def archive(self, catalogue: str | None, warehouse: str | None) -> tuple[str, str]:
        """Return the offline log's catalogue (a PostgreSQL DSN) and its folder. Raises `RefusedError`."""
        endpoints = None if catalogue and warehouse else self._endpoints()
        if endpoints is None and not (catalogue and warehouse):
            raise RefusedError(
                f"stack {self._stack!r} does not run in {self._home}; start it with `{start_command(self._stack)}`, "
                "or give --catalogue and --warehouse",
                NOT_REACHABLE,
            )
        known = endpoints.postgres_dsn if endpoints else ""
        return catalogue or known, warehouse or str(Layout(self._home).warehouse)

    def _address(self, service: str) -> str:
        endpoints = self._endpoints()
        if endpoints is None or service not in endpoints.services:
            raise self._unknown(service)
        return endpoints.services[service].grpc

    def _endpoints(self) -> Endpoints | None:
        state = read_state(Layout(self._home).state_file)
        return state.endpoints if state is not None and supervisor_alive(state) else None

    def _unknown(self, service: str) -> RefusedError:
        hint = (
            f"start it with `{start_command(self._stack)}`, or give --{service} HOST:PORT "
            f"(or TIDEMILL_{service.upper()}), or --home where it runs elsewhere"
        )
        return RefusedError(f"stack {self._stack!r} runs no {service} in {self._home}; {hint}", NOT_REACHABLE)
