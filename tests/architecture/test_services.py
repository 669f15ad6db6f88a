"""Every service can be run, understood and operated on its own."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tidemill.stack.endpoints import Endpoints, ServiceAddress
from tidemill.stack.plan import Layout, prefix_of, service_environment
from tidemill.stack.spec import SERVICES
from tidemill_runtime.settings import unknown_variables

APP_LINES = 80
ENDPOINTS = Endpoints(
    kafka="127.0.0.1:9092",
    redis="redis://:secret@127.0.0.1:6379/0",
    postgres_dsn="postgresql://tidemill:secret@127.0.0.1:5432/tidemill",
    services={name: ServiceAddress(f"127.0.0.1:5{n}", f"127.0.0.1:8{n}") for n, name in enumerate(SERVICES)},
)


def package(root: Path, service: str) -> Path:
    return root / "services" / service / "src" / f"tidemill_{service}"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_the_files_every_service_has(root: Path, name: str) -> None:
    files = ("__main__.py", "app.py", "settings.py", "adapters/__init__.py")
    missing = [file for file in files if not (package(root, name) / file).is_file()]
    assert not missing, f"services/{name} lacks {', '.join(missing)}: see any other service"


@pytest.mark.parametrize("heading", ["Settings", "Health", "Degraded modes"])
def test_a_readme_answers_an_operators_questions(root: Path, service: str, heading: str) -> None:
    text = (root / "services" / service / "README.md").read_text()
    headings = [line.lstrip("# ").strip().lower() for line in text.splitlines() if line.startswith("#")]
    assert any(found.startswith(heading.lower()) for found in headings), (
        f"services/{service}/README.md needs a section '## {heading}'"
    )


def test_a_readme_leads_to_the_settings_reference(root: Path, service: str) -> None:
    text = (root / "services" / service / "README.md").read_text()
    assert prefix_of(service) in text
    assert "docs/reference/settings.md" in text, "link the generated reference: ../../docs/reference/settings.md"


def test_a_service_has_tests_of_its_own(root: Path, service: str) -> None:
    assert list((root / "services" / service / "tests").glob("test_*.py"))


def test_settings_are_frozen_prefixed_and_explained(service: str, reference: ModuleType) -> None:
    kind = reference.settings_class(service)
    assert kind.model_config.get("env_prefix") == prefix_of(service)
    assert kind.model_config.get("frozen") is True
    silent = [
        name
        for name, field in kind.model_fields.items()
        if name in vars(kind).get("__annotations__", {}) and reference.group_of(field) is None and not field.description
    ]
    assert not silent, f"give {', '.join(silent)} a Field(description=…): the reference is written from it"


def test_the_stack_sets_only_settings_that_exist(service: str, reference: ModuleType) -> None:
    environment = service_environment(service, ENDPOINTS, Layout(Path("/home")))
    assert unknown_variables(reference.settings_class(service), environment) == []


def test_the_stack_sets_every_path_that_a_service_writes_or_reads(service: str, reference: ModuleType) -> None:
    environment = service_environment(service, ENDPOINTS, Layout(Path("/home")))
    paths = {"artifacts", "warehouse", "signing_key_file", "verify_key_file", "datadir", "cache"}
    wanted = {prefix_of(service) + name.upper() for name in paths & set(reference.settings_class(service).model_fields)}
    assert wanted <= set(environment), "add it to the service's paths in tidemill.stack.plan.NEEDS"


def test_the_stack_names_every_server_that_a_service_uses(service: str, reference: ModuleType) -> None:
    environment = service_environment(service, ENDPOINTS, Layout(Path("/home")))
    groups = {"kafka": "KAFKA__BOOTSTRAP", "postgres": "POSTGRES__DSN", "redis": "REDIS__URL"}
    used = {variable for group, variable in groups.items() if group in reference.settings_class(service).model_fields}
    given = {variable for variable in groups.values() if prefix_of(service) + variable in environment}
    assert given == used


def test_the_settings_of_the_stack_are_accepted(
    service: str, reference: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in service_environment(service, ENDPOINTS, Layout(Path("/home"))).items():
        monkeypatch.setenv(name, value)
    settings = reference.settings_class(service)()
    assert settings.kafka.bootstrap == ENDPOINTS.kafka
    assert settings.grpc.listen == ENDPOINTS.services[service].grpc
    assert settings.http.listen == ENDPOINTS.services[service].http


def test_the_environment_is_read_in_settings_alone(sources: dict[Path, ast.Module]) -> None:
    readers = [
        str(path)
        for path, tree in sources.items()
        if path.parts[0] == "services"
        and any(isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} for node in ast.walk(tree))
        and path.name not in {"settings.py", "__main__.py"}
        and "adapters" not in path.parts  # a child process's environment is the adapter's business
    ]
    assert not readers, f"{', '.join(readers)}: make it a field of the service's settings"


def test_pure_modules_import_without_the_world(service: str, root: Path) -> None:
    """What the import rules say of the source holds at run time too: nobody's `__init__` pulls I/O in."""
    folder = package(root, service)
    outer = {"__main__", "app", "settings", "metrics"}
    modules = [f"tidemill_{service}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem not in outer]
    code = (
        "import importlib, sys\n"
        "[importlib.import_module(name) for name in sys.argv[1:]]\n"
        "world = {'aiokafka', 'asyncpg', 'fastapi', 'faust', 'grpc', 'pyiceberg', 'redis', 'uvicorn'}\n"
        "sys.exit(', '.join(sorted(world & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"importing the pure modules of {service} loads {done.stderr}"


def test_app_modules_stay_readable(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apps = {name: package(root, name) / "app.py" for name in SERVICES}
    lengths = {name: len(app.read_text().splitlines()) for name, app in apps.items() if app.exists()}
    with capsys.disabled():
        over = {name: lines for name, lines in lengths.items() if lines > APP_LINES}
        if over:
            print(f"\napp.py over {APP_LINES} lines: {over}")
