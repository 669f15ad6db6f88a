"""compose/ says the same as the local stack and the services' settings; nothing is started here."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tidemill.stack.endpoints import Endpoints, ServiceAddress
from tidemill.stack.plan import NEEDS, Layout, prefix_of, service_environment
from tidemill.stack.spec import SERVICES
from tidemill_runtime.settings import unknown_variables

REFERENCED = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((root / "compose/stack.yaml").read_text())
    return value


@pytest.fixture
def environment(compose: dict[str, Any], service: str) -> dict[str, str]:
    """One service's variables with compose's own substitutions done."""
    given = compose["services"][service]["environment"]
    return {name: REFERENCED.sub(lambda match: match[2] or "", str(value)) for name, value in given.items()}


def test_every_service_and_server_is_there(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {*SERVICES, "kafka", "postgres", "redis", "keys"}


def test_the_variables_are_those_of_the_local_stack(service: str, environment: dict[str, str]) -> None:
    everywhere = Endpoints(
        "k:1", "redis://r", "postgresql://p", "tidemill.", dict.fromkeys(SERVICES, ServiceAddress("h:1", "h:2"))
    )
    assert set(environment) == set(service_environment(service, everywhere, Layout(Path("/home"))))


def test_the_variables_are_settings_that_exist(
    service: str, environment: dict[str, str], reference: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = reference.settings_class(service)
    assert unknown_variables(kind, environment) == []
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = kind()
    assert settings.grpc.listen.endswith(":50051")
    assert settings.http.listen.endswith(":8080")


def test_every_peer_is_reached_at_its_port(compose: dict[str, Any], service: str, environment: dict[str, str]) -> None:
    for peer in NEEDS[service].peers:
        assert environment[prefix_of(service) + peer.upper()] == f"{peer}:50051"
        assert peer in compose["services"]


def test_the_private_key_is_mounted_by_training_alone(compose: dict[str, Any]) -> None:
    holders = [
        name
        for name, value in compose["services"].items()
        if any(mount.startswith("signing-key:") for mount in value.get("volumes", []))
    ]
    assert holders == ["keys", "training"]


def test_every_port_is_published_on_loopback_once(compose: dict[str, Any]) -> None:
    published = [port for value in compose["services"].values() for port in value.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    outside = [port.split(":")[1] for port in published]
    assert len(outside) == len(set(outside))


def test_every_volume_is_declared_and_used(compose: dict[str, Any]) -> None:
    used = {mount.split(":")[0] for value in compose["services"].values() for mount in value.get("volumes", [])}
    assert used == set(compose["volumes"])


def test_a_service_waits_for_the_servers_it_needs(compose: dict[str, Any], service: str) -> None:
    waits = set(compose["services"][service]["depends_on"]) - {"keys"}
    assert waits == set(NEEDS[service].servers)


def test_one_dockerfile_builds_each_service(compose: dict[str, Any], service: str, root: Path) -> None:
    build = compose["services"][service]["build"]
    assert build["args"] == {"SERVICE": service}
    dockerfile = (root / "compose" / build["context"] / build["dockerfile"]).resolve()
    text = dockerfile.read_text()
    assert 'uv sync --locked --no-dev --no-editable --package "tidemill-${SERVICE}"' in text
    assert "USER tidemill" in text
    assert "exec python -m tidemill_${SERVICE}" in text


def test_the_dockerfile_copies_only_what_exists(root: Path) -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (root / "compose/Dockerfile").read_text(), re.MULTILINE)
    for source in " ".join(copied).split():
        assert (root / source).exists(), source


def test_the_kafka_image_is_the_version_of_the_local_stack(compose: dict[str, Any], root: Path) -> None:
    version = compose["services"]["kafka"]["image"].split(":")[1]
    assert f"kafka_2.13-{version}.jar" in (root / "libs/sdk/src/tidemill/stack/kafka.lock").read_text()
