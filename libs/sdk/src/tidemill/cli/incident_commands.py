"""incidents and retrain: what changed, and asking for a new version by hand."""

import uuid
from typing import Annotated

import typer
from tidemill_contracts.canonical import to_dict

from tidemill.cli.answers import USAGE, RefusedError, answering
from tidemill.cli.scalars import instant_us
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Monitoring, StackName, Target
from tidemill.clients.calls import actor
from tidemill.clients.monitoring import MonitoringClient

incidents_app = typer.Typer(no_args_is_help=True, add_completion=False)
STATUSES = ("open", "acknowledged", "resolved")
Incident = Annotated[str, typer.Argument(help="Its id.", show_default=False)]
Note = Annotated[str, typer.Option("--note", help="Kept with the incident.")]
_COLUMNS = ("incident_id", "pipeline", "status", "severity", "detected_at", "summary")


@incidents_app.callback()
def group() -> None:
    """What changed, since when, how sure, what was done."""


@incidents_app.command("list")
def list_incidents(
    pipeline: Annotated[str | None, typer.Argument(help="A pipeline; every one unless told.")] = None,
    status: Annotated[str | None, typer.Option(help="open, acknowledged or resolved.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many of the newest.")] = 50,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    monitoring: Monitoring = None,
    as_json: Json = False,
) -> None:
    """List incidents, newest first."""
    with answering(as_json) as answer:
        if status is not None and status not in STATUSES:
            raise RefusedError(f"unknown status {status!r}; there are {', '.join(STATUSES)}", USAGE)
        with Target(stack, home).connect("monitoring", monitoring) as connection:
            found = MonitoringClient(connection).incidents(pipeline or "", status or "", limit)
        entries = [to_dict(incident) for incident in found]
        if as_json:
            answer.json({"incidents": entries})
        rows = [[entry.get(name) for name in _COLUMNS] for entry in entries]
        answer.table(_COLUMNS, rows, "no incidents")


@incidents_app.command()
def ack(
    incident: Incident,
    note: Note = "",
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    monitoring: Monitoring = None,
    as_json: Json = False,
) -> None:
    """Say that you look after an incident."""
    with answering(as_json) as answer, Target(stack, home).connect("monitoring", monitoring) as connection:
        found = MonitoringClient(connection).acknowledge(incident, note, actor())
        answer.say(f"{found.incident_id} is {found.status}")
        if as_json:
            answer.json(to_dict(found))


@incidents_app.command()
def resolve(
    incident: Incident,
    note: Note = "",
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    monitoring: Monitoring = None,
    as_json: Json = False,
) -> None:
    """Close an incident."""
    with answering(as_json) as answer, Target(stack, home).connect("monitoring", monitoring) as connection:
        found = MonitoringClient(connection).resolve(incident, note, actor())
        answer.say(f"{found.incident_id} is {found.status}")
        if as_json:
            answer.json(to_dict(found))


def retrain(
    pipeline: Annotated[str, typer.Argument(help="A registered pipeline.", show_default=False)],
    why: Annotated[str, typer.Option("--why", "--reason", help="The reason, kept with the run.", show_default=False)],
    at: Annotated[
        str | None, typer.Option(help="Rows up to this event time; the pipeline's clock unless told.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="The same key asks for the same run; a new one unless told.")] = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    monitoring: Monitoring = None,
    as_json: Json = False,
) -> None:
    """Ask for a training run now; it passes the same gates and rollout as any other."""
    with answering(as_json) as answer, Target(stack, home).connect("monitoring", monitoring) as connection:
        client = MonitoringClient(connection)
        found = client.retrain(pipeline, why, key or str(uuid.uuid4()), actor(), at_us=instant_us(at))
        answer.say(f"requested as {found.request_id}; follow it with `tidemill runs {pipeline}`, by this request_id")
        if as_json:
            answer.json(to_dict(found))
