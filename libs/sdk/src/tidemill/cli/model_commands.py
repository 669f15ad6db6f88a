"""runs and models: how versions come to be and which one answers."""

from typing import Annotated, Any

import typer
from tidemill_contracts.canonical import to_dict
from tidemill_contracts.registry.v1 import records_pb2 as records

from tidemill.cli.answers import answering
from tidemill.cli.scalars import instant_us
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Registry, StackName, Target
from tidemill.clients.calls import CallError, actor
from tidemill.clients.registry import RegistryClient

models_app = typer.Typer(no_args_is_help=True, add_completion=False)
Pipeline = Annotated[str, typer.Argument(help="A registered pipeline.", show_default=False)]
Why = Annotated[str, typer.Option("--why", "--reason", help="The reason, kept with the change.", show_default=False)]
At = Annotated[str | None, typer.Option("--at", help="Event time of the change; the pipeline's clock unless told.")]
MAX_VERSION = 2**31 - 1
_RUN_COLUMNS = (
    "run_id",
    "pipeline",
    "status",
    "cause_kind",
    "request_id",
    "attempts",
    "requested_at",
    "version",
    "reason",
)
_VERSION_COLUMNS = ("pipeline", "version", "stage", "created_at", "log_loss", "roc_auc", "summary")


def runs(
    pipeline: Annotated[str | None, typer.Argument(help="A registered pipeline; every one unless told.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many of the newest.")] = 20,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """List training runs with their cause and outcome, newest first."""
    with answering(as_json) as answer, Target(stack, home).connect("registry", registry) as connection:
        client = RegistryClient(connection)
        found = [to_dict(run) for name in _pipelines(client, pipeline) for run in client.runs(name, limit)]
        if as_json:
            answer.json({"runs": found})
        answer.table(_RUN_COLUMNS, [[run.get(name) for name in _RUN_COLUMNS] for run in found], "no runs yet")


@models_app.callback()
def group() -> None:
    """Versions: list, show, promote, roll back."""


@models_app.command("list")
def list_models(
    pipeline: Annotated[str | None, typer.Argument(help="A registered pipeline; every one unless told.")] = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """List versions with their stage, and what serves now."""
    with answering(as_json) as answer, Target(stack, home).connect("registry", registry) as connection:
        client = RegistryClient(connection)
        names = _pipelines(client, pipeline)
        versions = [version for name in names for version in client.versions(name)]
        deployments = [found for name in names if (found := _deployment(client, name)) is not None]
        if as_json:
            entries = [_without_profile(version) for version in versions]
            answer.json({"versions": entries, "deployments": [to_dict(found) for found in deployments]})
        rows = [[_cell(version, name) for name in _VERSION_COLUMNS] for version in versions]
        answer.table(_VERSION_COLUMNS, rows, "no versions yet")
        told = {version.summary for version in versions}
        for deployment in deployments:
            if deployment.summary not in told:
                answer.say(deployment.summary)


@models_app.command()
def show(
    pipeline: Pipeline,
    version: Annotated[int, typer.Argument(min=1, max=MAX_VERSION, help="Its number.", show_default=False)],
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Show one version: metrics, gates, lineage, features."""
    with answering(as_json) as answer, Target(stack, home).connect("registry", registry) as connection:
        answer.value(_without_profile(RegistryClient(connection).version(pipeline, version)))


@models_app.command()
def promote(
    pipeline: Pipeline,
    version: Annotated[int, typer.Argument(min=1, max=MAX_VERSION, help="Its number.", show_default=False)],
    why: Why,
    at: At = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Make a version champion at once, without a rollout."""
    with answering(as_json) as answer, Target(stack, home).connect("registry", registry) as connection:
        found = RegistryClient(connection).promote(pipeline, version, why, actor(), at_us=instant_us(at))
        answer.say(found.summary or f"{pipeline}: version {found.champion.version} is champion")
        if as_json:
            answer.json(to_dict(found))


@models_app.command()
def rollback(
    pipeline: Pipeline,
    why: Why,
    at: At = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """End a rollout, or bring the champion before this one back."""
    with answering(as_json) as answer, Target(stack, home).connect("registry", registry) as connection:
        found = RegistryClient(connection).rollback(pipeline, why, actor(), at_us=instant_us(at))
        answer.say(found.summary or f"{pipeline}: version {found.champion.version} is champion")
        if as_json:
            answer.json(to_dict(found))


def _pipelines(client: RegistryClient, given: str | None) -> list[str]:
    return [given] if given is not None else [record.name for record in client.definitions("pipeline")]


def _deployment(client: RegistryClient, pipeline: str) -> records.DeploymentRecord | None:
    """Return what serves; None before the first version does."""
    try:
        return client.deployment(pipeline)
    except CallError as error:
        if error.reason in ("no_model", "unknown_version"):
            return None
        raise


def _without_profile(version: records.VersionRecord) -> dict[str, Any]:
    """Return a version without the reference histograms, which are for monitoring and long."""
    return {name: value for name, value in to_dict(version).items() if name != "reference"}


def _cell(version: records.VersionRecord, column: str) -> object:
    if column in ("log_loss", "roc_auc"):
        value = version.metrics.get(column)
        return "" if value is None else f"{value:.4f}"
    return to_dict(version).get(column)
