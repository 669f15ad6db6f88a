"""The whole loop with TLS and a password at every door: servers, services, and the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from secured_servers import Secured
from tidemill.stack import Stack
from tidemill.stack.spec import External
from tidemill_testkit.eventually import eventually

pytestmark = pytest.mark.servers

EXAMPLE = Path(__file__).parents[2] / "docs/examples/orders"
COMMAND = [sys.executable, "-m", "tidemill.cli.main"]
DONE, NOT_REACHABLE = 0, 3


@pytest.fixture(scope="session")
def stack(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The six services against them."""
    external = External(kafka=secured.kafka.bootstrap, redis=secured.redis, postgres=secured.postgres)
    home = tmp_path_factory.mktemp("services") / "stack"
    services = Stack("secured", home, external=external, service_environment=secured.services())
    try:
        # No longer than it starts: other tests of the session know other servers.
        with pytest.MonkeyPatch.context() as patch:
            for name, value in secured.commands().items():
                patch.setenv(name, value)
            services.start()
        yield services
    finally:
        services.remove()


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.strip().splitlines()[-1])


@dataclass(frozen=True)
class Terminal:
    """An operator's shell; what it prints never holds a secret."""

    stack: Stack
    folder: Path
    secrets: list[str]
    environment: dict[str, str]

    def run(self, *arguments: object, **changed: str | None) -> Done:
        command = [*COMMAND, *map(str, arguments), "--home", str(self.stack.layout.home), "--json"]
        merged = {**os.environ, **self.environment, **changed}
        environment = {name: value for name, value in merged.items() if value is not None}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=120, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert not [secret for secret in self.secrets if secret in done.stdout + done.stderr]
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def terminal(stack: Stack, secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    folder = tmp_path_factory.mktemp("orders")
    subprocess.run([sys.executable, str(EXAMPLE / "history.py")], cwd=folder, check=True, capture_output=True)
    return Terminal(stack, folder, secured.secrets, secured.commands())


def test_an_event_goes_in_and_a_feature_and_a_prediction_come_out(terminal: Terminal) -> None:
    assert terminal.run("apply", EXAMPLE / "orders.py").code == DONE
    for stream in ("placed", "delivered"):
        pushed = terminal.run("push", f"order-{stream}", f"{stream}.ndjson")
        assert pushed.code == DONE, pushed
    eventually(lambda: "PRESENT" in terminal.run("features", "read", "deliveries", "pizza").out, claim="it is folded")
    assert terminal.run("retrain", "late-orders", "--why", "first model").code == DONE

    def champion() -> Any:
        return terminal.run("models", "list", "late-orders").json["deployments"]

    eventually(champion, claim="the first model answers")
    last = json.loads((terminal.folder / "placed.ndjson").read_text().splitlines()[-1])
    (terminal.folder / "now.ndjson").write_text(json.dumps({**last, "order_id": "new"}) + "\n")

    def answered() -> Any:
        predicted = terminal.run("predict", "late-orders", "now.ndjson")
        assert predicted.code == DONE, predicted
        return predicted.json

    predicted = eventually(answered, claim="serving has loaded it")
    assert 0 < predicted["probability"] < 1, predicted
    logged = terminal.run("tail", "serving.predictions.v1", "--last", 1)
    assert logged.json["value"]["prediction_id"] == predicted["prediction_id"]


@pytest.mark.parametrize(
    ("command", "change", "said"),
    [
        (("models", "list"), {"TIDEMILL_TLS_CA": None}, "it hangs up; where it speaks TLS, set TIDEMILL_TLS_CA"),
        (("models", "list"), {"TIDEMILL_TLS_CERT": None, "TIDEMILL_TLS_KEY": None}, "where it asks for a certificate"),
        (("models", "list"), {"TIDEMILL_TLS_CA": "stranger"}, "its certificate is not trusted"),
        (("tail", "registry.audit.v1"), {"TIDEMILL_KAFKA_SASL_PASSWORD": "guess"}, "check sasl_username"),
        (("tail", "registry.audit.v1"), {"TIDEMILL_KAFKA_SSL_CAFILE": "stranger"}, "let ssl_cafile name the CA"),
    ],
)
def test_the_command_line_says_why_it_is_not_let_in(
    terminal: Terminal, secured: Secured, command: tuple[str, ...], change: dict[str, str | None], said: str
) -> None:
    told = {name: str(secured.stranger.file) if value == "stranger" else value for name, value in change.items()}
    done = terminal.run(*command, **told)
    assert done.code == NOT_REACHABLE, done
    assert said in done.json["error"]


def test_no_secret_is_in_a_log_or_on_a_command_line(stack: Stack, terminal: Terminal) -> None:
    text = "".join(path.read_text() for path in stack.layout.logs.iterdir())
    assert "**********" in text
    assert terminal.run("status").code == DONE
    state = stack.state
    assert state is not None
    pids = [state.supervisor_pid, *(process.pid for process in state.processes)]
    assert len(pids) == 7
    lines = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
    assert not [secret for secret in terminal.secrets if secret in text + lines]
