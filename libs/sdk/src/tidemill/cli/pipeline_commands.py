"""pipelines: which there are and what they read, and ending those that nobody asks any more."""

from typing import Annotated, Any

import typer

from tidemill.cli.answers import answering
from tidemill.cli.retired import Why, retire_objects
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Registry, StackName, Target
from tidemill.clients.registry import RegistryClient

pipelines_app = typer.Typer(no_args_is_help=True, add_completion=False)
_COLUMNS = ("pipeline", "request", "label", "views", "revision")


@pipelines_app.callback()
def group() -> None:
    """Pipelines that are registered: list, retire."""


@pipelines_app.command("list")
def list_pipelines(
    stack: StackName = DEFAULT_STACK, home: Home = None, registry: Registry = None, as_json: Json = False
) -> None:
    """List the registered pipelines with the streams and views that they read."""
    with answering(as_json) as answer:
        with Target(stack, home).connect("registry", registry) as connection:
            records = RegistryClient(connection).definitions("pipeline")
        found: list[dict[str, Any]] = [
            {
                "pipeline": record.name,
                "request": record.definition.pipelines[0].request,
                "label": record.definition.pipelines[0].label.stream,
                "views": [view.name for view in record.definition.views],
                "revision": record.revision,
            }
            for record in records
        ]
        if as_json:
            answer.json({"pipelines": found})
        rows = [[*list(one.values())[:3], ", ".join(one["views"]), one["revision"]] for one in found]
        answer.table(_COLUMNS, rows, "no pipelines")


@pipelines_app.command()
def retire(
    pipeline: Annotated[list[str], typer.Argument(help="Pipelines to end.", show_default=False)],
    why: Why = "",
    allow_breaking: Annotated[
        bool, typer.Option("--allow-breaking", help="Also one that answers or trains, for the --why given.")
    ] = False,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """End pipelines: no version answers, nothing is trained or watched any more; exit 1 where one is in use."""
    target, ended = Target(stack, home), ("pipeline", pipeline)
    retire_objects(target, registry, ended, why=why, as_json=as_json, allow_breaking=allow_breaking)
