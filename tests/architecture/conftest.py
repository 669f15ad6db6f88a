"""What the architecture tests look at: the checkout itself."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("feature", "ingestion", "monitoring", "registry", "serving", "training")


def source_files() -> Iterator[Path]:
    """Yield every Python file of ours that ships; generated code is not ours to shape."""
    for pattern in ("libs/*/src/**/*.py", "services/*/src/**/*.py"):
        yield from (path for path in sorted(ROOT.glob(pattern)) if "_pb2" not in path.name)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def sources() -> dict[Path, ast.Module]:
    """Every shipped module, parsed once, by its path within the checkout."""
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in source_files()}


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """docs/generate.py as a module: it knows every setting and every metric."""
    # The script imports what lies beside it, as any script does.
    sys.path.append(str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    """Each service's name in turn. One without its app is the business of the test that demands the file."""
    name: str = request.param
    if not (ROOT / "services" / name / "src" / f"tidemill_{name}" / "app.py").exists():
        pytest.skip(f"{name} has no app.py")
    return name
