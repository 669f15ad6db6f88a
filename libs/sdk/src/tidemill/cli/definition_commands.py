"""check, apply, diff: a definition file from the desk to the registry."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from tidemill_contracts.canonical import message_hash, to_dict
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.registry.v1 import registry_pb2

from tidemill.cli.answers import NO, NOT_REACHABLE, USAGE, RefusedError, answering
from tidemill.cli.difference import differences
from tidemill.cli.following import behind, told
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Registry, StackName, Target
from tidemill.clients.calls import CallError, actor
from tidemill.clients.registry import RegistryClient
from tidemill.definition import DefinitionError, Problem, compile_file
from tidemill.definition.memory import ViewMemory, memory_of

File = Annotated[Path, typer.Argument(help="The definition file.", show_default=False)]
_COLUMNS = ("kind", "name", "change", "revision")


def check(
    file: File,
    canonical: Annotated[bool, typer.Option("--canonical", help="Print the canonical form, as JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no registry whether it breaks anything.")] = False,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Compile a definition file, and refuse it where it would break what is registered.

    Exit 1 with file, line and fix of every fault. Where no registry can be asked it says that it only compiled.
    """
    with answering(as_json or canonical) as answer:
        compiled = _compiled(file)
        if canonical:
            typer.echo(json.dumps(to_dict(compiled), indent=1, sort_keys=True, ensure_ascii=False))
            return
        names = {
            "streams": [stream.name for stream in compiled.streams],
            "views": [view.name for view in compiled.views],
            "pipelines": [pipeline.name for pipeline in compiled.pipelines],
        }
        found = None if offline else _compared(compiled, Target(stack, home), registry)
        if found is not None and found.breaks:
            raise _breaking(found)
        said = "not asked" if found is None else "compatible"
        if as_json:
            memory = [asdict(one) for one in memory_of(compiled)]
            answer.json({"ok": True, "hash": message_hash(compiled), **names, "registry": said, "memory": memory})
            return
        counts = ", ".join(f"{len(found)} {kind if len(found) != 1 else kind[:-1]}" for kind, found in names.items())
        answer.say(f"{file}: {counts}, sound ({message_hash(compiled)})")
        if compiled.views:
            most = "at most: sketches and raw events full, strings of 32 bytes"
            answer.say(f"bytes per entity with events in one partition ({most}):")
            rows = [(one.view, one.rings, *_sizes(one)) for one in memory_of(compiled)]
            answer.table(("view", "slots × hop", "bytes", "at most", "budget"), rows, "")
        if found is None:
            answer.say("no registry was asked whether it breaks anything: this only says that it compiles")
        else:
            answer.say("it breaks nothing that is registered")


def _sizes(one: ViewMemory) -> tuple[str, ...]:
    return tuple(f"{size:,}" for size in (one.bytes_per_key, one.most_bytes, one.budget_bytes))


def apply(
    file: File,
    retire: Annotated[list[str] | None, typer.Option("--retire", help="End this view along; may be repeated.")] = None,
    allow_breaking: Annotated[
        bool, typer.Option("--allow-breaking", help="Also what breaks others, for the --reason given.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", "--why", help="Kept in the audit trail.")] = "",
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Register what a definition file declares, and wait until the services go by it; twice changes nothing."""
    with answering(as_json) as answer:
        if allow_breaking and not reason.strip():
            raise RefusedError("--allow-breaking needs --reason: say why it may break", USAGE)
        compiled = _compiled(file)
        target = Target(stack, home)
        with target.connect("registry", registry) as connection:
            done = RegistryClient(connection).apply(
                compiled, actor(), retire=retire or (), allow_breaking=allow_breaking, reason=reason
            )
            waits = behind(target, connection)
        if as_json:
            breaks = [to_dict(one) for one in done.breaks]
            changes = [to_dict(change) for change in done.changes]
            outdated = list(done.outdated)
            answer.json({"changes": changes, "breaks": breaks, "outdated": outdated, "behind": waits})
        rows = [[getattr(change, column) for column in _COLUMNS] for change in done.changes]
        answer.table(_COLUMNS, rows, "nothing to register")
        for line in [*_told(done.breaks), *done.outdated, *told(waits)]:
            answer.say(line)


def diff(
    file: File,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Say what applying a definition file would change; exit 1 where it would break what others use."""
    with answering(as_json) as answer:
        compiled = _compiled(file)
        with Target(stack, home).connect("registry", registry) as connection:
            client = RegistryClient(connection)
            compared = client.compare(compiled, actor())
            found: list[dict[str, Any]] = []
            for change in compared.changes:
                entry: dict[str, Any] = {"kind": change.kind, "name": change.name, "change": change.change}
                if change.change == "changed":
                    before = client.definition(change.kind, change.name).definition
                    after = _own(compiled, change)
                    # What merely follows is not in the file.
                    same = after == definition.Definition()
                    lines = [] if same else list(differences(_own(before, change), after))
                    entry["differences"] = lines or ["what it refers to has changed"]
                found.append(entry)
        for entry in found:
            answer.say(f"{entry['change']:<10}{entry['kind']} {entry['name']}")
            for line in entry.get("differences", ()):
                answer.say(f"          {line}")
        outdated = list(compared.outdated)
        for line in outdated:
            answer.say(line)
        if compared.breaks:
            raise _breaking(compared, changes=found, outdated=outdated)
        if as_json:
            answer.json({"changes": found, "breaks": [], "outdated": outdated})


def _compared(
    compiled: definition.Definition, target: Target, registry: str | None
) -> registry_pb2.ApplyDefinitionResponse | None:
    """Return what the registry says of a definition; None where none can be reached."""
    try:
        with target.connect("registry", registry) as connection:
            return RegistryClient(connection).compare(compiled, actor())
    except RefusedError as error:
        if error.code != NOT_REACHABLE:
            raise
    except CallError as error:
        if error.reached:
            raise
    return None


def _breaking(found: registry_pb2.ApplyDefinitionResponse, **details: Any) -> RefusedError:
    """Return the no to a definition that breaks what is registered, with everything that it breaks."""
    count = len(found.breaks)
    summary = f"{count} {'change breaks' if count == 1 else 'changes break'} what is registered"
    lines = _told(found.breaks)
    breaks = [to_dict(one) for one in found.breaks]
    said = {"ok": False, "error": summary, "reason": "breaking_change", "breaks": breaks, **details}
    return RefusedError("\n".join([*lines, summary]), NO, said)


def _told(breaks: Iterable[registry_pb2.Break]) -> list[str]:
    """Return what breaks as lines."""
    return [
        line
        for one in breaks
        for line in (f"{one.subject}: {one.message}", f"    breaks {', '.join(one.breaks)}", f"    fix: {one.fix}")
    ]


def _compiled(file: Path) -> definition.Definition:
    """Return what the file declares. Raises `RefusedError` that names every fault."""
    try:
        return compile_file(file)
    except DefinitionError as error:
        count = len(error.problems)
        summary = f"{count} {'fault' if count == 1 else 'faults'}"
        lines = [line for problem in error.problems for line in _lines(problem)]
        details = {"ok": False, "error": summary, "problems": [problem.to_json() for problem in error.problems]}
        raise RefusedError("\n".join([*lines, summary]), NO, details) from error


def _lines(problem: Problem) -> list[str]:
    """Return the fault's sentence and, where a character is at fault, the text with a caret under it."""
    pointer = problem.pointer.splitlines() if "^" in problem.pointer else []
    return [problem.sentence, *(f"    {line}" for line in pointer)]


def _own(whole: definition.Definition, change: registry_pb2.ObjectChange) -> definition.Definition:
    """Return one object alone: what it refers to is compared on its own."""
    own = definition.Definition()
    kind = f"{change.kind}s"
    getattr(own, kind).extend(item for item in getattr(whole, kind) if item.name == change.name)
    return own
