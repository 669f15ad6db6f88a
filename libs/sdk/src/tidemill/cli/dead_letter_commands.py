"""dead-letters: what services refused, sending it again after a fix, giving it up."""

import asyncio
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tidemill_contracts import reasons
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill.cli.answers import NO, USAGE, Answer, RefusedError, answering
from tidemill.cli.scalars import instant_us
from tidemill.cli.targets import DEFAULT_STACK, Home, Ingestion, Json, Kafka, Prefix, Registry, StackName, Target
from tidemill.clients.calls import actor
from tidemill.clients.dead_letters import (
    ActionLog,
    Deed,
    letter_topics,
    newest_letters,
    producing,
    read_fates,
    read_letters,
)
from tidemill.clients.decoding import Decoder, dead_letter, text_of
from tidemill.clients.ingestion import IngestionClient
from tidemill.clients.judging import Judge
from tidemill.clients.letters import OPEN, STATES, Fate, Letter, Place, Selection, items_of, place_of
from tidemill.clients.redrive import Redrive, Report, discard
from tidemill.clients.registry import RegistryClient
from tidemill.clients.topics import KafkaTarget, TopicError
from tidemill.definition.report import unknown

REASONS = frozenset(one.value for one in reasons.Reason)
MAX_LAST = 100_000
MAX_LIMIT = 1_000_000
MAX_ATTEMPTS = 3
_COLUMNS = ("id", "state", "reason", "group", "from_topic", "from_partition", "from_offset", "key", "message")
_HEX_WIDTH = 16

dead_letters_app = typer.Typer(no_args_is_help=True, add_completion=False)
Stream = Annotated[str | None, typer.Argument(help="A stream; every dead-letter topic unless told.")]
Id = Annotated[str, typer.Argument(help="Its id, as `list` shows it.", show_default=False)]
Reason = Annotated[str | None, typer.Option("--reason", help="Only letters refused for this reason.")]
Group = Annotated[str | None, typer.Option("--group", help="Only letters of this consumer group.")]
Since = Annotated[str | None, typer.Option("--since", help="Only letters written at this instant or later.")]
Letters = Annotated[list[str] | None, typer.Option("--letter", help="Only the letter of this id; may be repeated.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]

T = TypeVar("T")


@dead_letters_app.callback()
def group() -> None:
    """Records that a service refused: list, show, send again, give up."""


@dead_letters_app.command("list")
def list_dead_letters(
    stream: Stream = None,
    last: Annotated[int, typer.Option("--last", "-n", min=0, max=MAX_LAST, help="How many of the newest.")] = 20,
    reason: Reason = None,
    group: Group = None,
    since: Since = None,
    state: Annotated[str | None, typer.Option(help=f"Only {', '.join(STATES)}.")] = None,
    kafka: Kafka = None,
    topic_prefix: Prefix = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List refused records with their reason and what became of them: of those that are asked for, the newest."""
    with answering(as_json) as answer:
        if state is not None and state not in STATES:
            raise RefusedError(f"unknown state {state!r}; there are {', '.join(STATES)}", USAGE)
        target = Target(stack, home).kafka(kafka, topic_prefix)

        async def find() -> list[dict[str, Any]]:
            chosen = await _selection(target, stream, reason=reason, group=group, since=since)
            fates = await read_fates(target)

            def wanted(letter: Letter) -> bool:
                return chosen.holds(letter) and state in (None, fates.of(letter.place).state)

            every = reason is None and group is None and since is None and state is None
            found = await newest_letters(target, chosen.topics, None if every else wanted, last=last)
            return [_entry(letter, fates.of(letter.place)) for letter in found]

        letters = _run(find())
        if as_json:
            answer.json({"dead_letters": letters})
        rows = [[letter[name] for name in _COLUMNS] for letter in letters]
        answer.table(_COLUMNS, rows, "no dead letters")


@dead_letters_app.command()
def show(
    letter: Id,
    raw: Annotated[bool, typer.Option("--raw", help="Write the original bytes, and nothing else.")] = False,
    kafka: Kafka = None,
    topic_prefix: Prefix = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one letter: why and where it was refused, its headers, its bytes, what became of it."""
    with answering(as_json) as answer:
        target = Target(stack, home).kafka(kafka, topic_prefix)
        place = _place(letter)

        async def find() -> tuple[Letter, Fate]:
            return await _letter(target, place), (await read_fates(target)).of(place)

        found, fate = _run(find())
        if raw:
            sys.stdout.buffer.write(found.value or b"")
            return
        entry = _entry(found, fate) | fate.to_json()
        entry["headers"] = [[name, text_of(value or b"")] for name, value in found.headers]
        entry["bytes"] = len(found.value or b"")
        entry["value"] = text_of(found.value or b"")
        if as_json:
            answer.json(entry)
            return
        for name in ("id", "state", "actor", "why", "at", "reason", "message", "group", "attempt", "first_failed_at"):
            if entry.get(name):
                answer.say(f"{name:<16}{entry[name]}")
        answer.say(f"{'origin':<16}{entry['from_topic']} [{entry['from_partition']}] {entry['from_offset']}")
        answer.say(f"{'key':<16}{entry['key']}")
        for name, text in entry["headers"]:
            answer.say(f"{'header':<16}{name}: {text}")
        answer.say(f"{'value':<16}{entry['bytes']} bytes")
        answer.say(_readable(found.value or b""))


# Each option of a command is one parameter, so these functions have more than the usual six.
@dead_letters_app.command()
def redrive(
    stream: Stream = None,
    reason: Reason = None,
    group: Group = None,
    since: Since = None,
    letter: Letters = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="At most so many records.")] = 1_000,
    max_attempts: Annotated[int, typer.Option(min=1, help="Leave what was refused so often.")] = MAX_ATTEMPTS,
    late: Annotated[bool, typer.Option("--late", help="Also events that features would drop as late.")] = False,
    bridged: Annotated[
        bool, typer.Option("--bridged", help="Also records of producers' own topics, into these topics.")
    ] = False,
    why: Annotated[str, typer.Option("--why", help="Kept with the record of it.")] = "",
    dry_run: DryRun = False,
    kafka: Kafka = None,
    topic_prefix: Prefix = None,
    ingestion: Ingestion = None,
    registry: Registry = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Send open letters to their topic again, bytes and identity untouched; exit 1 where some would be refused."""
    with answering(as_json) as answer:
        aim = Target(stack, home)
        target = aim.kafka(kafka, topic_prefix)

        def check(name: str, events: Any, *, strictly: bool = False) -> Any:
            with aim.connect("ingestion", ingestion) as connection:
                return IngestionClient(connection).check(name, events, strictly=strictly)

        def declared(name: str) -> definition.Stream:
            with aim.connect("registry", registry) as connection:
                return RegistryClient(connection).definition("stream", name).definition.streams[0]

        judge = Judge(
            target,
            check,
            declared,
            max_attempts=max_attempts,
            allow_late=late,
            check_bridged=partial(check, strictly=True) if bridged else None,
        )
        run = Redrive(target, judge, _deed(why), dry_run=dry_run, limit=limit)

        async def go() -> None:
            chosen = await _selection(target, stream, reason=reason, group=group, since=since, letters=letter)
            with _progress("redrive", answer) as after:
                if dry_run:
                    await run.run(chosen, None, after)
                    return
                async with producing(target) as producer:
                    await run.run(chosen, producer, after)

        try:
            _run(go())
        except KeyboardInterrupt:
            run.report.interrupted = True
        _report(answer, run.report)


@dead_letters_app.command("discard")
def discard_letters(
    why: Annotated[str, typer.Option("--why", help="The reason, kept for five years.", show_default=False)],
    stream: Stream = None,
    reason: Reason = None,
    group: Group = None,
    since: Since = None,
    letter: Letters = None,
    dry_run: DryRun = False,
    kafka: Kafka = None,
    topic_prefix: Prefix = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Give open letters up; who did it and why is kept for five years, the bytes as long as their topic keeps them."""
    with answering(as_json) as answer:
        if not why.strip():
            raise RefusedError("--why is empty: say why they are given up", USAGE)
        if stream is None and not letter:
            raise RefusedError("say which: a stream, or --letter ID", USAGE)
        target = Target(stack, home).kafka(kafka, topic_prefix)
        found = _run(_open(target, stream, reason=reason, group=group, since=since, letters=letter))
        if letter and (closed := {"/".join(map(str, _place(one))) for one in letter} - {one.id for one in found}):
            raise RefusedError(f"no open letter {', '.join(sorted(closed))}; nothing was discarded", NO)
        done = 0

        async def go() -> None:
            async with producing(target) as producer:
                with _progress("discard", answer) as after:

                    def counted(count: int, total: int) -> None:
                        nonlocal done
                        done = count
                        after(count, total)

                    await discard(ActionLog(target, producer), _deed(why), found, counted)

        interrupted = False
        if found and not dry_run:
            try:
                _run(go())
            except KeyboardInterrupt:
                interrupted = True
        chosen = len(found) if dry_run else done
        if as_json:
            counts = {"would_be_discarded" if dry_run else "discarded": chosen, "records": len(items_of(found))}
            answer.json({"dry_run": dry_run, **counts, "interrupted": interrupted})
        answer.say(f"{'would discard' if dry_run else 'discarded'} {chosen:,} open letters")
        if interrupted:
            raise typer.Exit(NO)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _deed(why: str) -> Deed:
    return Deed(actor(), why, uuid.uuid4().hex)


def _place(letter: str) -> Place:
    try:
        return place_of(letter)
    except ValueError as error:
        raise RefusedError(f"{letter!r} is no letter's id; they look like events.rides.dlq/0/12", USAGE) from error


async def _selection(
    target: KafkaTarget,
    stream: str | None,
    *,
    reason: str | None,
    group: str | None,
    since: str | None,
    letters: list[str] | None = None,
) -> Selection:
    if reason is not None and reason not in REASONS:
        raise RefusedError(unknown(reason, REASONS, "reason"), USAGE)
    places = frozenset(map(_place, letters or ()))
    since_us = instant_us(since)
    try:
        topics = await letter_topics(target, stream)
    except TopicError as error:
        raise RefusedError(str(error), USAGE) if error.reached else error from error
    if places:
        topics = [topic for topic in topics if topic in {place[0] for place in places}]
    return Selection(tuple(topics), reason, group, since_us, places)


async def _open(
    target: KafkaTarget,
    stream: str | None,
    *,
    reason: str | None,
    group: str | None,
    since: str | None,
    letters: list[str] | None,
) -> list[Letter]:
    chosen = await _selection(target, stream, reason=reason, group=group, since=since, letters=letters)
    fates, now_us = await read_fates(target), time.time_ns() // 1000

    def wanted(letter: Letter) -> bool:
        return chosen.holds(letter) and fates.is_open(letter.place, now_us)

    return (await read_letters(target, chosen.topics, wanted)).letters


async def _letter(target: KafkaTarget, place: Place) -> Letter:
    found = await read_letters(target, [place[0]], lambda letter: letter.place == place)
    if not found.letters:
        raise RefusedError(f"there is no letter {'/'.join(map(str, place))} any more, or never was", NO)
    return found.letters[0]


def _entry(letter: Letter, fate: Fate) -> dict[str, Any]:
    """Return a letter as `list` and `show` tell it."""
    topic, partition, offset = letter.place
    decoder = Decoder.of(topic)
    envelope = {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "key": None if letter.key is None else text_of(letter.key),
        "headers": {name: text_of(value or b"") for name, value in letter.headers},
        "value": decoder.value(letter.value),
    }
    return {"id": letter.id, "state": fate.state or OPEN, **dead_letter(envelope)}


def _readable(raw: bytes) -> str:
    """Return bytes as text, or as a hex dump where they are none."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    if text.isprintable() or all(char.isprintable() or char in "\r\n\t" for char in text):
        return text
    lines = []
    for start in range(0, len(raw), _HEX_WIDTH):
        part = raw[start : start + _HEX_WIDTH]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):<{3 * _HEX_WIDTH}} {shown}")
    return "\n".join(lines)


@contextmanager
def _progress(name: str, answer: Answer) -> Iterator[Callable[[int, int], None]]:
    """Show how far it is and how long it will take, on a terminal."""
    console = Console(stderr=True)
    if answer.as_json or not console.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _report(answer: Answer, report: Report) -> None:
    if answer.as_json:
        answer.json(report.to_json())
    else:
        said = "would be sent again" if report.dry_run else "sent again"
        refused = "would be refused" if report.dry_run else "left, since they would be refused"
        counts = f"{report.accepted:,} {said}, {report.duplicates:,} repeats, {report.refused.total():,} {refused}"
        answer.say(f"{'stopped; ' if report.interrupted else ''}{report.chosen:,} refused records: {counts}")
        if report.recovered:
            answer.say(f"{report.recovered:,} letters were found sent by a run that ended in the middle")
        if report.refused:
            answer.table(("reason", "records"), report.refused.most_common(), "")
            rows = [list(example.values()) for example in report.examples]
            answer.table(("letter", "reason", "field", "what to do"), rows, "")
        if report.more:
            answer.say("there are more: run it again")
    if report.refused or report.interrupted:
        raise typer.Exit(NO)
