"""The shape of the source: imports, names, marks, sizes, generated code."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BANNED = {"utils", "util", "common", "helpers", "helper", "manager", "core", "misc"}
FILE_LINES, FUNCTION_LINES = 400, 70
SHOWN = 8
MARKS = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b")


def run(*command: str, root: Path) -> str:
    """Return a tool's output; fail with it when the tool fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_import_rules_hold(root: Path) -> None:
    run("lint-imports", "--no-cache", root=root)


def test_every_folder_of_code_is_a_package(root: Path, sources: dict[Path, ast.Module]) -> None:
    bare = sorted({str(path.parent) for path in sources if not (root / path.parent / "__init__.py").exists()})
    assert not bare, f"add __init__.py, without it the import rules do not see the code: {', '.join(bare)}"


def test_generated_code_is_current(root: Path) -> None:
    run(sys.executable, "proto/generate.py", "--check", root=root)


def test_the_reference_is_current(root: Path) -> None:
    run(sys.executable, "docs/generate.py", "--check", root=root)


def test_every_metric_says_what_it_means(reference: ModuleType) -> None:
    metrics = reference.metrics()
    assert metrics
    assert not [metric.name for metric in metrics if not metric.documentation.strip().endswith(".")]
    names = [metric.name for metric in metrics]
    assert len(names) == len(set(names)), "a metric is declared once"


def test_metrics_are_declared_through_the_runtime(sources: dict[Path, ast.Module]) -> None:
    """`tidemill_runtime.metrics` prefixes the name and demands documentation; the reference reads its calls."""
    around = [
        str(path)
        for path, tree in sources.items()
        if path.parts[:2] != ("libs", "runtime")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module == "prometheus_client"
        and {alias.name for alias in node.names} & {"Counter", "Gauge", "Histogram", "Summary"}
        # A type annotation needs the class; only a call declares a metric.
        and any(
            isinstance(call, ast.Call) and getattr(call.func, "id", "") in {"Counter", "Gauge", "Histogram", "Summary"}
            for call in ast.walk(tree)
        )
    ]
    assert not around, f"{', '.join(around)}: declare metrics with tidemill_runtime.metrics"


def test_no_module_is_named_for_nothing(sources: dict[Path, ast.Module]) -> None:
    nameless = [str(path) for path in sources if BANNED & {path.stem, *path.parts}]
    assert not nameless, f"{', '.join(nameless)}: name it for what it decides"


def test_no_test_folder_is_a_package(root: Path) -> None:
    found = [str(path.relative_to(root)) for path in root.glob("*/*/tests/**/__init__.py")]
    assert not found + [str(path) for path in root.glob("tests/**/__init__.py")]


def test_every_module_begins_by_saying_what_it_is(sources: dict[Path, ast.Module]) -> None:
    silent = [
        str(path)
        for path, tree in sources.items()
        if ast.get_docstring(tree) is None and not (path.name == "__init__.py" and not tree.body)
    ]
    assert not silent, f"begin with a docstring of one sentence: {', '.join(silent)}"


def test_nothing_is_left_to_do_in_the_source(root: Path, sources: dict[Path, ast.Module]) -> None:
    marked = [str(path) for path in sources if MARKS.search((root / path).read_text())]
    assert not marked, f"do it, or open an issue: {', '.join(marked)}"


def test_no_error_is_swallowed(sources: dict[Path, ast.Module]) -> None:
    swallowing = [
        f"{path}:{node.lineno}"
        for path, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and all(isinstance(one, ast.Pass) for one in node.body)
    ]
    assert not swallowing, f"handle it, or name it with contextlib.suppress: {', '.join(swallowing)}"


def test_sizes_are_shown(root: Path, sources: dict[Path, ast.Module], capsys: pytest.CaptureFixture[str]) -> None:
    """Limits that nobody fails on: the largest are printed, so that growth is seen."""
    files = sorted(((len((root / path).read_text().splitlines()), str(path)) for path in sources), reverse=True)
    functions = sorted(
        (
            ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
            for path, tree in sources.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ),
        reverse=True,
    )
    with capsys.disabled():
        for title, wall, found in (("file", FILE_LINES, files), ("function", FUNCTION_LINES, functions)):
            over = [(lines, name) for lines, name in found if lines > wall]
            print(f"\n{len(found)} {title}s, {len(over)} over {wall} lines; the longest: {found[0][0]} ({found[0][1]})")
            for lines, name in over[:SHOWN]:
                print(f"  {lines:>5}  {name}")
