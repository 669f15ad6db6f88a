"""No password gets into what a service writes, whatever is wrong with it."""

import os
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.plugin import Servers

SERVICE = """
from contextlib import asynccontextmanager
from pydantic_settings import SettingsConfigDict
from tidemill_runtime.lifecycle import main
from tidemill_runtime.postgres import open_pool
from tidemill_runtime.redis_client import redis_client
from tidemill_runtime.settings import PostgresSettings, RedisSettings, ServiceSettings

class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TIDEMILL_SAMPLE_")
    postgres: PostgresSettings = PostgresSettings()
    redis: RedisSettings | None = None

async def prepare(connection):
    pass

@asynccontextmanager
async def open_service(settings, health):
    if settings.redis:
        async with redis_client(settings.redis) as redis:
            await redis.ping()
    async with open_pool(settings.postgres, "sample", prepare):
        yield

main(open_service, Settings)
"""
FORMATS = ("json", "pretty")


def ended(log_format: str, **settings: str) -> tuple[int, str]:
    """Run the service to its end; return its exit code and all it wrote."""
    given = {f"TIDEMILL_SAMPLE_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run(
        dying_with_us([sys.executable, "-c", SERVICE]),
        env={**os.environ, **given, "TIDEMILL_SAMPLE_LOG_FORMAT": log_format, "COLUMNS": "200"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.servers
@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("form", ["dsn", "parts", "redis"])
def test_a_wrong_password_ends_the_service_and_is_not_in_its_output(
    servers: Servers, form: str, log_format: str
) -> None:
    given = urlsplit(servers.redis if form == "redis" else servers.postgres_dsn)
    if form == "parts":
        parts = {"host": given.hostname, "port": given.port, "user": given.username, "password": "S3cret"}
        settings = {f"postgres__{name}": str(value) for name, value in parts.items()}
    else:
        url = given._replace(netloc=f"{given.username or ''}:S3cret@{given.hostname}:{given.port}").geturl()
        settings = {"redis__url" if form == "redis" else "postgres__dsn": url}
    code, output = ended(log_format, **settings)
    assert (code, "check user name and password" in output) == (70, True), output
    assert "Traceback" in output
    assert "S3cret" not in output


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize(
    ("name", "url"), [("postgres__dsn", "postgresql://u:S3cret/x@h:1/d"), ("redis__url", "redis://:S3cret/x@h:1/0")]
)
def test_an_address_with_an_unquoted_password_is_a_wrong_setting_and_not_in_the_output(
    name: str, url: str, log_format: str
) -> None:
    code, output = ended(log_format, **{name: url})
    assert (code, name.replace("__", ".") in output, "as %2F" in output) == (78, True, True), output
    assert "S3cret" not in output
