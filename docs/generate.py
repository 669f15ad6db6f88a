"""Write what is generated of docs/ from the code: settings, metrics, topics; `--check` fails when it is stale."""

import argparse
import ast
import importlib
import itertools
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import generate_asyncapi
import generate_features
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from tidemill_runtime.settings import ServiceSettings

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs/reference"
DECLARATIONS = {"counter", "gauge", "histogram"}
NOTE = "<!-- Written by docs/generate.py (`make gen`): change the code, not this file. -->\n"


def settings_class(service: str) -> type[ServiceSettings]:
    """Return the one settings class that the service's settings module defines."""
    module = importlib.import_module(f"tidemill_{service}.settings")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ServiceSettings) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"{module.__name__} must define exactly one subclass of ServiceSettings, it has {len(found)}")
    return found[0]


def services() -> list[str]:
    """Return the services that have settings, by name."""
    return sorted(path.parent.parent.parent.name for path in ROOT.glob("services/*/src/*/settings.py"))


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def type_name(annotation: Any) -> str:
    """Return the type as an operator reads it."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return type_name(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in {types.UnionType, typing.Union}:
        return ", ".join(type_name(one) for one in typing.get_args(annotation) if one is not type(None))
    plain = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Path: "path", SecretStr: "secret"}
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if field.default is None else f"`{field.default}`"


def row(variable: str, field: FieldInfo) -> str:
    return line(f"`{variable}`", type_name(field.annotation), default_of(field), field.description or "")


def line(*cells: str) -> str:
    """Return one line of a table."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


SETTINGS_TABLE = "\n".join([line("variable", "type", "default", "meaning"), "|---|---|---|---|"])
METRICS_TABLE = "\n".join([line("metric", "kind", "labels", "meaning"), "|---|---|---|---|"])


def settings_page() -> str:
    """Return the reference of all settings: the shared groups once, then each service's own."""
    shared = set(ServiceSettings.model_fields)
    groups: dict[str, type[BaseModel]] = {}
    sections: list[str] = []
    for service in services():
        kind = settings_class(service)
        prefix = kind.model_config.get("env_prefix", "")
        used = {name: group for name, field in kind.model_fields.items() if (group := group_of(field)) is not None}
        groups |= used
        own = [
            row(prefix + name.upper(), field)
            for name, field in kind.model_fields.items()
            if name not in shared and name not in used
        ]
        summary = f"Prefix `{prefix}`; groups {', '.join(f'`{name.upper()}__`' for name in used)}."
        table = [SETTINGS_TABLE, *own] if own else ["It has no settings of its own beyond those all services share."]
        sections.append("\n".join([f"## {service}", "", summary, "", *table]))
    plain = {name: field for name, field in ServiceSettings.model_fields.items() if group_of(field) is None}
    common = [row(name.upper(), field) for name, field in plain.items()]
    lines = ["# Settings", "", NOTE, INTRODUCTION, "## All services", "", SETTINGS_TABLE, *common, ""]
    for name, group in sorted(groups.items()):
        rows = [row(f"{name}__{inner}".upper(), field) for inner, field in group.model_fields.items()]
        lines += [f"### Group `{name.upper()}__`", "", (group.__doc__ or "").strip(), "", SETTINGS_TABLE, *rows, ""]
    return "\n".join([*lines, "\n\n".join(sections), ""])


INTRODUCTION = """Every service reads its settings once, at start, from environment variables, and prints them with
their secrets hidden. A variable is the service's prefix followed by the name below: `TIDEMILL_FEATURE_` and
`KAFKA__BOOTSTRAP` make `TIDEMILL_FEATURE_KAFKA__BOOTSTRAP`.
"""


@dataclass(frozen=True)
class Metric:
    """One declaration found in the source."""

    name: str
    kind: str
    documentation: str
    labels: tuple[str, ...]
    owner: str


def literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def metrics_in(path: Path, owner: str) -> Iterator[Metric]:
    """Yield the metrics that a module declares through `tidemill_runtime.metrics`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called not in DECLARATIONS or len(node.args) < 2:
            continue
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        labels = node.args[2] if len(node.args) > 2 else named.get("labels")
        name, documentation = literal(node.args[0]), literal(node.args[1])
        if isinstance(name, str) and isinstance(documentation, str):
            found = literal(labels) if labels is not None else ()
            yield Metric(f"tidemill_{name}", called, documentation, tuple(found or ()), owner)


def metrics() -> list[Metric]:
    """Return every metric of the runtime library and the services."""
    found: list[Metric] = []
    for path in sorted(ROOT.glob("libs/runtime/src/**/*.py")):
        found += metrics_in(path, "all services")
    for path in sorted(ROOT.glob("services/*/src/**/*.py")):
        found += metrics_in(path, path.relative_to(ROOT).parts[1])
    return sorted(found, key=lambda metric: (metric.owner, metric.name))


def metrics_page() -> str:
    lines = ["# Metrics", "", NOTE, "Each service serves its metrics at `/metrics` of its HTTP address.", ""]
    for owner, declared in itertools.groupby(metrics(), key=lambda metric: metric.owner):
        lines += [f"## {owner}", "", METRICS_TABLE]
        for metric in declared:
            name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            lines.append(line(f"`{name}`", metric.kind, labels, metric.documentation))
        lines.append("")
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    return {
        REFERENCE / "settings.md": settings_page(),
        REFERENCE / "metrics.md": metrics_page(),
        ROOT / "docs/asyncapi.yaml": generate_asyncapi.page(),
        ROOT / "docs/features.md": generate_features.page(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    REFERENCE.mkdir(parents=True, exist_ok=True)
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if check and stale:
        sys.exit("stale, run `make gen`: " + ", ".join(str(path.relative_to(ROOT)) for path in stale))
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
