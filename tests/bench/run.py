"""Run every benchmark and write `build/bench.json`; each entry carries a baseline measured in the same run.

A benchmark is a module `bench_<name>.py` in this folder with `run(servers) -> list[dict]`. All share the servers, but
each has a PostgreSQL database of its own: what one leaves there would be another's tables.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2
from psycopg2 import sql
from tidemill.stack import Stack

HERE = Path(__file__).parent
KEYS = ("name", "value", "unit", "baseline", "baseline_value", "ratio", "min", "median", "max", "runs")


def load(path: Path) -> ModuleType:
    """Import one benchmark by its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def own_database(dsn: str, name: str) -> str:
    """Make an empty database beside the one of `dsn`, and return its DSN."""
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        connection.cursor().execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


def checked(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry with its keys in order. Raises `ValueError` where one is missing."""
    if missing := [key for key in KEYS if key not in entry]:
        raise ValueError(f"bench entry {entry.get('name')} lacks {', '.join(missing)}")
    return {key: entry[key] for key in (*KEYS, *(key for key in entry if key not in KEYS))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="run the benchmarks whose file name contains this")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    files = [path for path in sorted(HERE.glob("bench_*.py")) if not options.only or options.only in path.stem]
    entries: list[dict[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="tm-bench-") as home,
        Stack("bench", Path(home)).running_with("servers") as servers,
    ):
        for path in files:
            sys.stderr.write(f"{path.stem} …\n")
            mine = replace(servers, postgres_dsn=own_database(servers.postgres_dsn, path.stem))
            for entry in load(path).run(mine):
                entries.append(checked(entry))
                sys.stdout.write("{name:<22} {value:>12,.1f} {unit:<14} {ratio:>7.2f} x {baseline}\n".format(**entry))
                sys.stdout.flush()
            # Where one fails, those before it are kept.
            options.out.write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
