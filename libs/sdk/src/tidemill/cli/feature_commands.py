"""features read: what a view says of some entities."""

import json
from typing import Annotated, Any

import typer
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import format_us

from tidemill.cli.answers import USAGE, RefusedError, answering
from tidemill.cli.rows import cell
from tidemill.cli.scalars import instant_us, python_value, scalar
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Registry, StackName, Target
from tidemill.clients.features import FeatureClient
from tidemill.clients.registry import RegistryClient

features_app = typer.Typer(no_args_is_help=True, add_completion=False)
_COLUMNS = ("entity", "feature", "value", "status", "age", "note")


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
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    feature_: Annotated[
        str | None, typer.Option("--feature", help="HOST:PORT of feature.", envvar="TIDEMILL_FEATURE")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Show a view's values for some entities, each with its status and age."""
    with answering(as_json) as answer:
        target = Target(stack, home)
        with target.connect("registry", registry) as connection:
            fields = _entity_fields(RegistryClient(connection), view)
        entities = [_entity(text, fields) for text in keys]
        with target.connect("feature", feature_) as connection:
            found = FeatureClient(connection).read(view, entities, instant_us(as_of) or 0)
        entries = [entry for values in found.views for entry in _entries(values, keys, found.as_of_us)]
        if as_json:
            answer.json({"view": view, "as_of": format_us(found.as_of_us), "values": entries})
        answer.table(_COLUMNS, [[_shown(entry[name]) for name in _COLUMNS] for entry in entries], "no values")


def _entity_fields(client: RegistryClient, view: str) -> list[definition.Field]:
    """Return the fields that together are the view's entity."""
    closure = client.definition("view", view).definition
    found = next(item for item in closure.views if item.name == view)
    schema = {field.name: field for stream in closure.streams if stream.name == found.stream for field in stream.fields}
    return [schema[name] for name in found.entity]


def _entity(text: str, fields: list[definition.Field]) -> feature.EntityKey:
    """Return an entity from what was typed."""
    names = ", ".join(field.name for field in fields)
    if text.startswith("["):
        try:
            parts = json.loads(text)
        except ValueError as error:
            raise RefusedError(f"{text!r} is no JSON list: {error}", USAGE) from error
    else:
        parts = [text] if len(fields) == 1 else text.split(",")
    if not isinstance(parts, list) or len(parts) != len(fields):
        raise RefusedError(f"{text!r} is no entity of this view, which is kept by ({names})", USAGE)
    typed = [
        cell(part, field, "") if isinstance(part, str) else part for part, field in zip(parts, fields, strict=True)
    ]
    return feature.EntityKey(values=[scalar(value, field) for value, field in zip(typed, fields, strict=True)])


def _entries(values: feature.ViewValues, keys: list[str], as_of_us: int) -> list[dict[str, Any]]:
    entries = []
    for key, row in zip(keys, values.rows, strict=True):
        for name, value in zip(values.features, row.values, strict=True):
            age_s = (as_of_us - value.event_time_us) / 1_000_000 if value.event_time_us else None
            entry = {
                "entity": key,
                "feature": name,
                "value": python_value(value.value),
                "status": feature.Status.Name(value.status).removeprefix("STATUS_"),
                "age": None if age_s is None else f"{age_s:.0f} s",
                "age_s": age_s,
                "note": "HEAD_EXCLUDED" if value.head_excluded else "",
            }
            entries.append(entry)
    return entries


def _shown(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
