"""features rebuild and backfill: views from the log, with how far it is and how long it will take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tidemill.cli.answers import USAGE, Answer, RefusedError, answering
from tidemill.cli.targets import DEFAULT_STACK, Feature, Home, Json, StackName, Target
from tidemill.clients.builds import BuildClient, BuildState

Views = Annotated[list[str] | None, typer.Argument(help="Views; all that are being built unless told.")]


def rebuild(
    view: Annotated[str, typer.Argument(help="The view to build anew.")] = "",
    stream: Annotated[str, typer.Option(help="Build all views of this stream anew.")] = "",
    wait: Annotated[bool, typer.Option(help="Follow it to the end.")] = True,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    feature: Feature = None,
    as_json: Json = False,
) -> None:
    """Build a view's rings anew from the log, beside those that answer until the new ones have caught up."""
    with answering(as_json) as answer:
        if bool(view) == bool(stream):
            raise RefusedError("name a view, or a stream with --stream", USAGE)
        with Target(stack, home).connect("feature", feature) as connection:
            client = BuildClient(connection)
            views = client.rebuild(view, stream)
            answer.say(f"building {', '.join(views)} anew")
            if wait:
                _follow(client, views, answer)
            elif as_json:
                answer.json({"views": views})


def backfill(
    views: Views = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    feature: Feature = None,
    as_json: Json = False,
) -> None:
    """Follow views that are being built over their history, as every new or changed one is, until they are read."""
    with answering(as_json) as answer, Target(stack, home).connect("feature", feature) as connection:
        _follow(BuildClient(connection), list(views or ()), answer)


def _follow(client: BuildClient, views: list[str], answer: Answer) -> None:
    """Show how far it is until it is done; interrupted, only the looking on ends."""
    began, state = time.monotonic(), None
    try:
        with _bar(answer) as advance:
            for state in client.follow(views):
                advance(state)
    except KeyboardInterrupt:
        answer.say("it goes on without you; `tidemill features backfill` follows it again")
    if state is None:
        return
    seconds = time.monotonic() - began
    if answer.as_json:
        answer.json(
            {
                "ready": state.ready,
                "views": [_entry(one) for one in state.views],
                "records": state.done,
                "seconds": round(seconds, 3),
            }
        )
    elif state.ready:
        answer.say(f"{', '.join(sorted(one.view for one in state.views))}: built and read, after {seconds:.1f} s")


def _entry(view: Any) -> dict[str, Any]:
    return {"view": view.view, "view_hash": view.view_hash, "build": view.build, "ready": view.ready}


@contextmanager
def _bar(answer: Answer) -> Iterator[Callable[[BuildState], None]]:
    """Show a bar with the rate and the remaining time, on a terminal."""
    console = Console(stderr=True)
    if answer.as_json or not console.is_terminal:
        yield lambda _state: None
        return
    columns = (
        TextColumn("building"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} records"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    began: tuple[float, int] | None = None
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("build", total=0, rate=0.0)

        def advance(state: BuildState) -> None:
            nonlocal began
            if not state.total:
                return
            began = began or (time.monotonic(), state.done)
            rate = (state.done - began[1]) / max(time.monotonic() - began[0], 1e-9)
            progress.update(task, total=state.total, completed=state.done, rate=max(0.0, rate))

        yield advance
