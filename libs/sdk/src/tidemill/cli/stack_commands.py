"""The command line's local stack: up, down, status, logs, doctor."""

import asyncio
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tidemill.stack.client import Stack
from tidemill.stack.doctor import Finding, examine, probe
from tidemill.stack.endpoints import redacted
from tidemill.stack.logs import last_lines
from tidemill.stack.spec import DEFAULT_NAME, DEFAULT_PREFIX, SERVERS, SERVICES, External, StackError, services_of
from tidemill.stack.state import READY, StackState, read_state

NO, USAGE, NOT_REACHABLE = 1, 2, 3
FOLLOW_S = 0.2

Name = Annotated[
    str, typer.Option("--name", "--stack", help="Which stack; several run side by side.", envvar="TIDEMILL_STACK")
]
Home = Annotated[Path | None, typer.Option("--home", help="Its folder; .tidemill/NAME unless told.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _fail(message: str, code: int, *, as_json: bool) -> NoReturn:
    typer.echo(json.dumps({"error": message}) if as_json else message, err=not as_json)
    raise typer.Exit(code)


def _stack(name: str, home: Path | None, *, as_json: bool, **options: Any) -> Stack:
    try:
        return Stack(name, home, **options)
    except StackError as error:
        _fail(str(error), USAGE, as_json=as_json)


def _live(stack: Stack, *, as_json: bool) -> StackState:
    try:
        return stack.live()
    except StackError as error:
        _fail(str(error), NOT_REACHABLE, as_json=as_json)


def _rows(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class _Progress:
    """Prints a line for each process that becomes ready."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, state: StackState) -> None:
        for process in state.processes:
            if process.state == READY and process.name not in self._shown:
                self._shown.add(process.name)
                typer.echo(f"{process.name:<10}  ready after {process.seconds_to_ready or 0:.1f} s")


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"give a finite number of seconds, not {seconds}")
    return seconds


# Each option of a command is one parameter, so these functions have more than the usual six.
def up(
    name: Name = DEFAULT_NAME,
    home: Home = None,
    only: Annotated[
        str | None, typer.Option("--only", help="`servers`, or the services to run, separated by commas.")
    ] = None,
    kafka: Annotated[str | None, typer.Option(help="An existing Kafka, HOST:PORT.", envvar="TIDEMILL_KAFKA")] = None,
    redis: Annotated[str | None, typer.Option(help="An existing Redis, as a URL.", envvar="TIDEMILL_REDIS")] = None,
    postgres: Annotated[
        str | None, typer.Option(help="An existing PostgreSQL, as a DSN.", envvar="TIDEMILL_POSTGRES")
    ] = None,
    topic_prefix: Annotated[
        str | None, typer.Option(help=f"Starts the name of every topic; {DEFAULT_PREFIX} unless told.")
    ] = None,
    deadline: Annotated[
        float, typer.Option(min=1, callback=_finite, help="Seconds until everything must be ready.")
    ] = 120.0,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, print all logs; Ctrl-C stops it.")] = False,
    as_json: Json = False,
) -> None:
    """Start the local stack and return when everything is ready; one that runs as asked for is left as it is."""
    external = External(kafka=kafka or None, redis=redis or None, postgres=postgres or None)
    stack = _stack(name, home, as_json=as_json, external=external, topic_prefix=topic_prefix)
    try:
        services_of(only)
    except StackError as error:
        _fail(str(error), USAGE, as_json=as_json)
    try:
        if foreground:
            stack.replace_by_supervisor(only, deadline_s=deadline)
        stack.start(only=only, attached=False, deadline_s=deadline, progress=None if as_json else _Progress())
    except StackError as error:
        _fail(str(error), NO, as_json=as_json)
    except OSError as error:
        _fail(f"the stack cannot be started in {stack.layout.home}: {error}", NO, as_json=as_json)
    state = _live(stack, as_json=as_json)
    if as_json:
        typer.echo(json.dumps(_summary(state, {})))
        return
    typer.echo(f"stack {state.name!r} is ready ({state.seconds_to_ready:g} s); its folder is {stack.layout.home}")
    _show_endpoints(state)


def down(
    name: Name = DEFAULT_NAME,
    home: Home = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="Delete its data too.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the local stack in reverse order; its data stay unless --wipe is given."""
    stack = _stack(name, home, as_json=as_json)
    before = read_state(stack.layout.state_file)
    # A folder that is given by hand says itself which stack it holds.
    name = name if before is None else before.name
    try:
        was_running = stack.stop()
        if wipe:
            stack.remove()
    except StackError as error:
        _fail(str(error), NOT_REACHABLE, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({"name": name, "stopped": was_running, "wiped": wipe}))
    else:
        done = "stopped" if was_running else "did not run"
        typer.echo(f"stack {name!r} {done}{' and its data are deleted' if wipe else ''}")


def _summary(state: StackState, answers: dict[str, bool]) -> dict[str, Any]:
    processes = [
        {**vars(process), **({"answers": answers[process.name]} if process.name in answers else {})}
        for process in state.processes
    ]
    return {
        "name": state.name,
        "status": state.status,
        "message": state.message,
        "seconds_to_ready": state.seconds_to_ready,
        "supervisor_pid": state.supervisor_pid,
        "endpoints": {
            **state.endpoints.to_json(),
            "redis": redacted(state.endpoints.redis),
            "postgres_dsn": redacted(state.endpoints.postgres_dsn),
        },
        "processes": processes,
    }


def _show_endpoints(state: StackState) -> None:
    endpoints = state.endpoints
    _rows(
        [
            ("kafka", endpoints.kafka),
            ("redis", redacted(endpoints.redis)),
            ("postgres", redacted(endpoints.postgres_dsn)),
        ]
    )
    if endpoints.services:
        _rows([(name, f"grpc {one.grpc}", f"http {one.http}") for name, one in endpoints.services.items()])


def _troubles(state: StackState, answers: Mapping[str, bool]) -> Iterator[str]:
    """Yield what keeps the stack from being ready: the whole of it, or its processes one by one."""
    if state.status != READY:
        yield state.status
        return
    for process in state.processes:
        if process.state != READY:
            yield f"{process.name} is {process.state}"
        elif not answers.get(process.name, False):
            yield f"{process.name} does not answer"


def status(name: Name = DEFAULT_NAME, home: Home = None, as_json: Json = False) -> None:
    """Show every process, its health now, and where it is reached; exit 1 when something is not ready."""
    stack = _stack(name, home, as_json=as_json)
    state = _live(stack, as_json=as_json)
    answers = asyncio.run(probe(state))
    troubles = list(_troubles(state, answers))
    if as_json:
        typer.echo(json.dumps(_summary(state, answers)))
    else:
        typer.echo(f"stack {state.name!r}: {', '.join(troubles) or READY}")
        rows = [("process", "state", "answers", "pid", "restarts")]
        rows += [
            (
                process.name,
                process.state,
                "yes" if answers.get(process.name) else "no",
                str(process.pid or "-"),
                str(process.restarts),
            )
            for process in state.processes
        ]
        _rows(rows)
        typer.echo()
        _show_endpoints(state)
    if troubles:
        raise typer.Exit(NO)


def _follow(path: Path, stack: Stack) -> Iterator[str]:
    """Yield new lines until the stack is gone, across rotations of the file."""
    start_at_end = True
    while True:
        with path.open(errors="replace") as file:
            if start_at_end:
                file.seek(0, os.SEEK_END)
            start_at_end = False
            inode, part = os.fstat(file.fileno()).st_ino, ""
            while True:
                read = file.readline()
                part += read
                if part.endswith("\n"):
                    yield part.rstrip("\n")
                    part = ""
                elif not read and path.exists() and path.stat().st_ino != inode:
                    break
                elif not read and not stack.running:
                    return
                elif not read:
                    time.sleep(FOLLOW_S)


def logs(
    service: Annotated[str, typer.Argument(help="A service, a server, or `supervisor`.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stack stops.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines to begin with.")] = 50,
    name: Name = DEFAULT_NAME,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what one process wrote."""
    known = (*SERVICES, *SERVERS, "supervisor")
    if service not in known:
        _fail(f"no process named {service!r}; choose from {', '.join(known)}", USAGE, as_json=as_json)
    stack = _stack(name, home, as_json=as_json)
    path = stack.layout.log(service)
    if not path.exists():
        _fail(f"{service} has written nothing: stack {name!r} never ran it", NOT_REACHABLE, as_json=as_json)

    def show(line: str) -> None:
        typer.echo(json.dumps({"service": service, "line": line}) if as_json else line)

    for line in last_lines(path, lines):
        show(line)
    if follow:
        try:
            for line in _follow(path, stack):
                show(line)
        except KeyboardInterrupt:
            return


def _mark(finding: Finding) -> str:
    return {True: "ok", False: "PROBLEM", None: "-"}[finding.ok]


def doctor(name: Name = DEFAULT_NAME, home: Home = None, as_json: Json = False) -> None:
    """Say why it does not work: look at the machine and at the stack; exit 1 when there is a problem."""
    stack = _stack(name, home, as_json=as_json)
    findings = list(examine(stack))
    if as_json:
        typer.echo(json.dumps({"findings": [finding.to_json() for finding in findings]}))
    else:
        for finding in findings:
            typer.echo(f"{_mark(finding):<8} {finding.name:<20} {finding.found}")
            if finding.fix and finding.ok is not True:
                typer.echo(f"{'':<8} {'':<20} → {finding.fix}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(NO)


COMMANDS = (up, down, status, logs, doctor)
