"""Pytest fixtures that give a test its own corner of the real Kafka, PostgreSQL and Redis.

The servers are started once per session in a temporary folder; with TIDEMILL_TEST_HOME naming a running stack's
folder (or its state.json) that stack is used and left running.
"""

import asyncio
import importlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from tidemill_testkit.redis_cluster import RedisNodes, running_cluster

HOME_VARIABLE = "TIDEMILL_TEST_HOME"


@dataclass(frozen=True)
class Servers:
    """Addresses of the servers that tests share; take names of your own inside them."""

    kafka: str
    redis: str
    postgres_dsn: str


def pytest_configure() -> None:
    """Let no law fail because the machine was busy: how long an example takes is not what it claims."""
    settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


def _stack(home: Path, name: str) -> Any:
    # The stack is loaded only when a test asks for servers: this plugin is imported in every pytest run.
    return importlib.import_module("tidemill.stack").Stack(name, home)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The real servers, one set per session."""
    given = os.environ.get(HOME_VARIABLE)
    if given:
        home = Path(given).parent if given.endswith(".json") else Path(given)
        yield servers_of(_stack(home, "given").endpoints)
        return
    stack = _stack(tmp_path_factory.mktemp("stack"), "test")
    try:
        yield servers_of(stack.start(only="servers"))
    finally:
        stack.remove()


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A stack of servers that no other module uses: its tests may stop them."""
    stack = _stack(tmp_path_factory.mktemp("own"), "own")
    try:
        stack.start(only="servers")
        yield stack
    finally:
        stack.remove()


def servers_of(endpoints: Any) -> Servers:
    """Return the addresses of a stack's servers."""
    return Servers(kafka=endpoints.kafka, redis=endpoints.redis, postgres_dsn=endpoints.postgres_dsn)


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNodes]:
    """A Redis Cluster of three nodes, one per session; whoever kills a node starts it again."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
def topic_prefix() -> str:
    """A prefix for topics and groups that no other test has."""
    return f"test-{secrets.token_hex(4)}."


@pytest.fixture
def redis_namespace() -> str:
    """A prefix for Redis keys that no other test has."""
    return f"test-{secrets.token_hex(4)}"


@pytest_asyncio.fixture
async def database(servers: Servers) -> AsyncIterator[str]:
    """The DSN of an empty PostgreSQL database, dropped after the test."""
    name = f"test_{secrets.token_hex(6)}"
    # Whoever tests against PostgreSQL declares its driver; the testkit must not hide that it is missing.
    admin = await importlib.import_module("asyncpg").connect(servers.postgres_dsn)
    try:
        await admin.execute(f'CREATE DATABASE "{name}"')
        yield urlunsplit(urlsplit(servers.postgres_dsn)._replace(path=f"/{name}"))
        # FORCE, since a test that was killed on purpose may have left its sessions behind.
        async with asyncio.timeout(30):
            await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await admin.close()
