"""streams: which take events and which are paused, and ending a pause."""

from typing import Annotated, Any

import typer
from tidemill_contracts.ingestion.v1 import ingestion_pb2
from tidemill_contracts.instants import format_us

from tidemill.cli.answers import answering
from tidemill.cli.retired import Why, retire_objects
from tidemill.cli.targets import DEFAULT_STACK, Home, Ingestion, Json, Registry, StackName, Target
from tidemill.clients.calls import actor
from tidemill.clients.ingestion import IngestionClient
from tidemill.clients.registry import RegistryClient

streams_app = typer.Typer(no_args_is_help=True, add_completion=False)
_COLUMNS = ("stream", "partitions", "state", "events", "refused", "mostly", "since", "resumes_at")


@streams_app.callback()
def group() -> None:
    """Registered streams: which are paused, resuming them, and ending those that nobody reads.

    Every replica of ingestion pauses for itself: `--ingestion` names the one that is asked.
    """


@streams_app.command("list")
def list_streams(
    paused: Annotated[bool, typer.Option("--paused", help="Only those that are paused.")] = False,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    ingestion: Ingestion = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """List streams, whether they take events, and how many of the window's records were refused."""
    with answering(as_json) as answer:
        target = Target(stack, home)
        with target.connect("registry", registry) as connection:
            records = RegistryClient(connection).definitions("stream")
        with target.connect("ingestion", ingestion) as connection:
            client = IngestionClient(connection)
            found = [_entry(client.state(one.name), one.definition.streams[0].partitions) for one in records]
        chosen = [entry for entry in found if entry["state"] == "paused" or not paused]
        if as_json:
            answer.json({"streams": chosen})
        rows = [[entry.get(name) for name in _COLUMNS] for entry in chosen]
        answer.table(_COLUMNS, rows, "no stream is paused" if paused else "no streams")


@streams_app.command()
def resume(
    stream: Annotated[str, typer.Argument(help="A registered stream.", show_default=False)],
    why: Annotated[
        str, typer.Option("--why", "--reason", help="Why it may go on; told to operators.", show_default=False)
    ],
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    ingestion: Ingestion = None,
    as_json: Json = False,
) -> None:
    """End a stream's pause now, at the replica that is asked."""
    with answering(as_json) as answer, Target(stack, home).connect("ingestion", ingestion) as connection:
        client = IngestionClient(connection)
        was_paused = client.state(stream).paused
        state = client.resume(stream, why, actor())
        if as_json:
            answer.json({"resumed": was_paused, **_entry(state)})
        answer.say(f"{stream} takes events again" if was_paused else f"{stream} was not paused")


@streams_app.command()
def retire(
    stream: Annotated[list[str], typer.Argument(help="Streams to end.", show_default=False)],
    why: Why = "",
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """End streams: events are refused, nothing reads them, topic and table stay; exit 1 where one is in use."""
    retire_objects(Target(stack, home), registry, ("stream", stream), why=why, as_json=as_json)


def _entry(state: ingestion_pb2.StreamState, partitions: int | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"stream": state.stream, "state": "paused" if state.paused else "open"}
    if partitions is not None:
        entry["partitions"] = partitions
    entry |= {"events": state.events, "refused": state.refused}
    if state.paused:
        pause = state.pause
        entry |= {"events": pause.events, "refused": pause.refused, "mostly": pause.mostly, "limit": pause.limit}
        entry |= {"since": format_us(pause.since_us), "resumes_at": format_us(pause.until_us)}
    return entry
