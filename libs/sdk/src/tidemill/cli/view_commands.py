"""views: which there are and who reads them, and ending those that nobody needs."""

from typing import Annotated

import typer

from tidemill.cli.answers import answering
from tidemill.cli.retired import Why, retire_objects
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Registry, StackName, Target
from tidemill.clients.registry import RegistryClient

views_app = typer.Typer(no_args_is_help=True, add_completion=False)
_COLUMNS = ("view", "stream", "by", "features", "revision", "pipelines")


@views_app.callback()
def group() -> None:
    """Feature views that are registered: list, retire."""


@views_app.command("list")
def list_views(
    stack: StackName = DEFAULT_STACK, home: Home = None, registry: Registry = None, as_json: Json = False
) -> None:
    """List the registered views with the pipelines that read them."""
    with answering(as_json) as answer:
        with Target(stack, home).connect("registry", registry) as connection:
            records = RegistryClient(connection).definitions()
        readers: dict[str, list[str]] = {}
        for record in records:
            for pipeline in record.definition.pipelines if record.kind == "pipeline" else ():
                for view in {source.view.view for source in pipeline.features if source.HasField("view")}:
                    readers.setdefault(view, []).append(pipeline.name)
        found = [
            {
                "view": record.name,
                "stream": record.definition.views[0].stream,
                "by": list(record.definition.views[0].entity),
                "features": [feature.name for feature in record.definition.views[0].features],
                "revision": record.revision,
                "pipelines": readers.get(record.name, []),
            }
            for record in records
            if record.kind == "view"
        ]
        if as_json:
            answer.json({"views": found})
        rows = [[_cell(view[name]) for name in _COLUMNS] for view in found]
        answer.table(_COLUMNS, rows, "no views")


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@views_app.command()
def retire(
    view: Annotated[list[str], typer.Argument(help="Views to end.", show_default=False)],
    why: Why = "",
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """End views: nobody computes or reads them any more, and their values expire; exit 1 where one is in use."""
    retire_objects(Target(stack, home), registry, ("view", view), why=why, as_json=as_json)
