"""Run each member's tests alone: in one shared environment an undeclared dependency imports without complaint."""

import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NO_TESTS_SELECTED = 5


def members() -> list[tuple[str, Path]]:
    """Return every member's distribution name and folder."""
    files = sorted([*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")])
    return [(tomllib.loads(file.read_text())["project"]["name"], file.parent) for file in files]


def export_test_tools(uv: str, target: Path) -> None:
    """Write what the tests run with, at the versions of uv.lock."""
    command = [uv, "export", "--quiet", "--locked", "--only-group", "test", "--no-hashes", "--output-file", str(target)]
    subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603 - our own arguments


def run(uv: str, name: str, folder: Path, tools: Path) -> int:
    """Return pytest's exit code for one member."""
    environment = [uv, "run", "--quiet", "--locked", "--isolated", "--exact", "--package", name, "--all-extras"]
    extra = ["--with-requirements", str(tools)]
    if name != "tidemill-testkit":
        extra += ["--with-editable", str(ROOT / "libs/testkit")]
    tests = ["pytest", "-q", str(folder / "tests"), "-m", "not servers and not e2e"]
    done = subprocess.run([*environment, *extra, *tests], check=False, cwd=ROOT)  # noqa: S603 - our own arguments
    return done.returncode


def main() -> int:
    uv = sys.argv[1] if len(sys.argv) > 1 else "uv"
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        tools = Path(scratch, "tools.txt")
        export_test_tools(uv, tools)
        for name, folder in members():
            if not (folder / "tests").is_dir():
                failed.append(f"{name} (has no tests)")
                continue
            started = time.monotonic()
            code = run(uv, name, folder, tools)
            sys.stdout.write(f"{name}: exit {code}, {time.monotonic() - started:.1f} s\n")
            sys.stdout.flush()
            if code not in {0, NO_TESTS_SELECTED}:
                failed.append(name)
    if failed:
        sys.stderr.write(f"not green alone: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
