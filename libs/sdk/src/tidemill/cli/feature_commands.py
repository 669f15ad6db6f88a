"""features read: what a view says of some entities, and with --explain the slots behind each value."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us

from tidemill.cli.answers import USAGE, RefusedError, answering
from tidemill.cli.build_commands import backfill, rebuild
from tidemill.cli.explanations import explained, show, shown_duration
from tidemill.cli.rows import cell
from tidemill.cli.scalars import as_of_us
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Registry, StackName, Target
from tidemill.clients.feature_table import FeatureTable, Key, KeyPart, moment
from tidemill.clients.features import FeatureClient
from tidemill.clients.registry import RegistryClient

features_app = typer.Typer(no_args_is_help=True, add_completion=False)
features_app.command()(rebuild)
features_app.command()(backfill)
_COLUMNS = ("entity", "feature", "value", "status", "age", "window", "note")
_SHOWN_CHARACTERS = 60


@features_app.callback()
def group() -> None:
    """Online feature values."""


@features_app.command()
def read(
    view: Annotated[str, typer.Argument(help="A registered view.", show_default=False)],
    keys: Annotated[
        list[str], typer.Argument(help='Entities; several fields as "JFK,LAX" or ["JFK","LAX"].', show_default=False)
    ],
    as_of: Annotated[str | None, typer.Option(help="The moment to read for; now unless told.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the slots behind each value.")] = False,
    version: Annotated[str, typer.Option(help="Read this version of the view only: its hash, or first digits.")] = "",
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    feature_: Annotated[
        str | None, typer.Option("--feature", help="HOST:PORT of feature.", envvar="TIDEMILL_FEATURE")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Show a view's values for some entities, each with its status, age and window."""
    with answering(as_json) as answer:
        target, when = Target(stack, home), _instant(as_of)
        with target.connect("registry", registry) as connection:
            closure = RegistryClient(connection).definition("view", view).definition
        declared = next(item for item in closure.views if item.name == view)
        fields = _entity_fields(declared, closure.streams)
        entities = [_entity(text, fields) for text in keys]
        with target.connect("feature", feature_) as connection:
            client = FeatureClient(connection)
            table = client.get_features(view, entities, when, version=version)
            # Of the same moment as the values, should more events come in meanwhile.
            explanations = [client.explain(view, entity, table.as_of) for entity in entities] if explain else []
        names = [_shown_key(key) for key in keys]
        entries = list(_entries(table, keys, _windows(declared)))
        if as_json:
            found = {"view": view, "view_hash": table.view_hash, "as_of": format_us(table.as_of_us), "values": entries}
            if explain:
                found["explanations"] = [explained(*pair) for pair in zip(keys, explanations, strict=True)]
            answer.json(found)
        shown = [[_shown(entry, name) for name in _COLUMNS] for entry in entries]
        answer.table(_COLUMNS, shown, "no values")
        for name, explanation in zip(names, explanations, strict=False):
            show(answer, name, explanation)


def _instant(text: str | None) -> datetime | None:
    found_us = as_of_us(text)
    return None if found_us is None else moment(found_us)


def _entity_fields(view: definition.View, streams: Sequence[definition.Stream]) -> list[definition.Field]:
    """Return the fields that together are the view's entity."""
    schema = {field.name: field for stream in streams if stream.name == view.stream for field in stream.fields}
    return [schema[name] for name in view.entity]


def _windows(view: definition.View) -> Mapping[str, str]:
    """Return each feature's window; of a last without one, the age that bounds it."""
    return {one.name: shown_duration((one.window_ms or view.max_age_ms) * 1000) for one in view.features}


def _entity(text: str, fields: list[definition.Field]) -> Key:
    """Return an entity from what was typed."""
    names = ", ".join(field.name for field in fields)
    if text.startswith("["):
        try:
            parts = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"{_shown_key(text)!r} is no JSON list: {error}", USAGE) from error
    else:
        parts = [text] if len(fields) == 1 else text.split(",")
    if not isinstance(parts, list) or len(parts) != len(fields):
        raise RefusedError(f"{_shown_key(text)!r} is no entity of this view, which is kept by ({names})", USAGE)
    return [_part(part, field) for part, field in zip(parts, fields, strict=True)]


def _part(value: Any, field: definition.Field) -> KeyPart:
    """Return one field of an entity; what does not fit its type goes as it is, for the service to name."""
    if not isinstance(value, str) or field.type == definition.FIELD_TYPE_STRING:
        return value  # type: ignore[no-any-return]
    if field.type != definition.FIELD_TYPE_TIMESTAMP:
        found: KeyPart = cell(value, field, "")
        return found
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return value
    if when.tzinfo is None:
        message = f"{field.name}: {value!r} has no UTC offset: write it as 2013-06-04T00:00:00Z"
        raise RefusedError(message, USAGE, {"reason": "naive_timestamp", "field": field.name})
    return when


def _entries(table: FeatureTable, keys: Sequence[str], windows: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    ages = {name: column.ages for name, column in table.items()}
    for row, key in enumerate(keys):
        for name, column in table.items():
            age = ages[name][row]
            yield {
                "entity": key,
                "feature": name,
                "value": _json(column.values[row]),
                "status": str(column.statuses[row]),
                "age": None if age is None else f"{age.total_seconds():.0f} s",
                "age_s": None if age is None else age.total_seconds(),
                # Aggregates of several numbers are features name.0, name.1, …
                "window": windows.get(name) or windows.get(name.rpartition(".")[0], ""),
                "note": _note(table.head_excluded[row], column.hop_accuracy[row]),
            }


def _note(head_excluded: bool, hop_accuracy: bool) -> str:
    return " ".join(["HEAD_EXCLUDED"] * head_excluded + ["HOP_ACCURACY"] * hop_accuracy)


def _json(value: Any) -> Any:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value


def _shown(entry: Mapping[str, Any], name: str) -> Any:
    value = entry[name]
    if name == "entity":
        return _shown_key(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def _shown_key(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
