"""Generate the contracts library: protobuf code, topic catalogue; `--check` fails when the committed copy is stale."""

import argparse
import filecmp
import re
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT.parent / "libs/contracts/src/tidemill_contracts"
# In Python the name `tidemill` belongs to the SDK: generated imports move into the contracts library.
IMPORT = re.compile(r"(?<![\w.])(from|import) tidemill\.(?=\w+\.v\d)")
REFERENCE = re.compile(r"(?<![\w.\"'/])tidemill\.(?=\w+\.v\d+\.\w+_pb2)")


def generate(out: Path) -> None:
    """Write `<domain>/v1/*_pb2*.py[i]` and package markers under `out`."""
    well_known = Path(protoc.__file__).parent / "_proto"
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("tidemill/**/*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        status = protoc.main(
            [
                "protoc",
                f"-I{ROOT}",
                f"-I{well_known}",
                f"--python_out={scratch}",
                f"--mypy_out=quiet:{scratch}",
                f"--grpc_python_out={scratch}",
                f"--mypy_grpc_out=quiet:{scratch}",
                *sources,
            ]
        )
        if status != 0:
            sys.exit(status)
        for made in sorted(Path(scratch, "tidemill").rglob("*.py*")):
            target = out / made.relative_to(Path(scratch, "tidemill"))
            target.parent.mkdir(parents=True, exist_ok=True)
            text = IMPORT.sub(r"\1 tidemill_contracts.", made.read_text())
            target.write_text(REFERENCE.sub("tidemill_contracts.", text))
    catalogue = out / "topics_data"
    catalogue.mkdir(exist_ok=True)
    for entry in ROOT.glob("topics/*.yaml"):
        shutil.copyfile(entry, catalogue / entry.name)
    for folder in {p.parent for p in out.rglob("*_pb2.py")}:
        for package in (folder, folder.parent):
            (package / "__init__.py").touch()


def committed() -> list[Path]:
    """Return every generated file of the contracts library."""
    code = [path for path in PACKAGE.rglob("*_pb2*.py*") if path.parent.name != "__pycache__"]
    return [*code, *PACKAGE.glob("topics_data/*.yaml")]


def stale(fresh: Path) -> list[str]:
    """Return the generated files that differ from, or are missing in, the committed package."""
    made = {p.relative_to(fresh) for p in fresh.rglob("*.*")}
    kept = {p.relative_to(PACKAGE) for p in committed()}

    def differs(path: Path) -> bool:
        return not (PACKAGE / path).exists() or not filecmp.cmp(fresh / path, PACKAGE / path, shallow=False)

    differing = {path for path in made if differs(path)}
    return sorted(str(p) for p in differing | (kept - made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        if not check:
            for old in committed():
                old.unlink()
            shutil.copytree(fresh, PACKAGE, dirs_exist_ok=True)
        elif changed := stale(fresh):
            sys.exit("generated code is stale, run `make gen`: " + ", ".join(changed))


if __name__ == "__main__":
    main()
