"""Who is not let in is told what to change, and nobody is told a secret."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from secured_servers import Secured
from tidemill.stack.plan import kafka_security
from tidemill_contracts.kafka_refusals import refusal
from tidemill_testkit.authority import LOOPBACK
from tidemill_testkit.eventually import eventually
from tidemill_testkit.orphans import dying_with_us

pytestmark = pytest.mark.servers

WRONG = "not-the-password"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sasl_password": SecretStr(WRONG)}, "does not accept user 'tidemill' by SCRAM-SHA-512: check sasl_username"),
        ({"sasl_mechanism": "PLAIN"}, "does not take PLAIN: set sasl_mechanism"),
        ({"security_protocol": "PLAINTEXT"}, "hangs up on PLAINTEXT: set security_protocol"),
        ({"security_protocol": "SSL"}, "hangs up on SSL: set security_protocol"),
        ({"ssl_cafile": "stranger"}, "shows a certificate that is not trusted"),
        ({"bootstrap": f"{LOOPBACK}:1"}, None),
        ({}, None),
    ],
)
async def test_kafka_says_what_it_holds_against_a_client(
    secured: Secured, change: dict[str, Any], said: str | None
) -> None:
    if "ssl_cafile" in change:
        change = {"ssl_cafile": str(secured.stranger.file)}
    told = await refusal(secured.kafka.model_copy(update=change).client_kwargs())
    assert (told is None) == (said is None)
    assert (said or "") in (told or "")
    assert not [secret for secret in (*secured.secrets, WRONG) if secret in (told or "")]


@contextmanager
def service(name: str, secured: Secured, folder: Path, change: Mapping[str, str]) -> Iterator[Path]:
    """Run one service that is told what others are, and one thing wrong; yields its log."""
    prefix = f"TIDEMILL_{name.upper()}_"
    told = {
        "KAFKA__BOOTSTRAP": secured.kafka.bootstrap,
        "REDIS__URL": secured.redis,
        "POSTGRES__DSN": secured.postgres,
        "WAREHOUSE": str(folder / "warehouse"),
        **change,
    }
    environment = {
        **os.environ,
        **kafka_security(name, secured.commands()),
        **{key: value for key, value in secured.services().items() if key.startswith(prefix)},
        **{prefix + key: value for key, value in told.items()},
    }
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        command = dying_with_us([sys.executable, "-m", f"tidemill_{name}"])
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("ingestion", {"KAFKA__SASL_PASSWORD": WRONG}, "check sasl_username and sasl_password"),
        ("training", {"POSTGRES__SSL_CA_FILE": "stranger"}, "let ssl_ca_file name the CA that signed"),
        ("registry", {"POSTGRES__PASSWORD": WRONG}, "check user name and password"),
        ("registry", {"POSTGRES__SSLMODE": "disable"}, "where the server wants TLS, set sslmode"),
        ("monitoring", {"POSTGRES__PASSWORD": WRONG}, "check user name and password"),
        ("feature", {"REDIS__PASSWORD": WRONG}, "check user name and password"),
        ("feature", {"REDIS__SSL_CA_FILE": "stranger"}, "let ssl_ca_file name the CA that signed"),
        ("serving", {"GRPC__TLS_CA": "/nowhere.pem"}, "/nowhere.pem is no file that this process may read"),
    ],
)
def test_a_service_that_is_not_let_in_says_what_to_change(
    secured: Secured, tmp_path: Path, name: str, change: dict[str, str], said: str
) -> None:
    told = {key: str(secured.stranger.file) if value == "stranger" else value for key, value in change.items()}
    with service(name, secured, tmp_path, told) as log:
        eventually(lambda: said in log.read_text(), claim=f"{name} says: {said}")
    text = log.read_text()
    assert not [secret for secret in (*secured.secrets, WRONG) if secret in text]
