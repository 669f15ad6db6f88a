"""tail and dead-letters: any topic as readable JSON."""

import asyncio
from contextlib import aclosing
from typing import Annotated, Any

import typer

from tidemill.cli.answers import USAGE, RefusedError, answering
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Kafka, Prefix, StackName, Target
from tidemill.clients.decoding import Decoder, dead_letter
from tidemill.clients.topics import KafkaTarget, list_topics, read_topic

MAX_LAST = 100_000
Last = Annotated[int, typer.Option("--last", "-n", min=0, max=MAX_LAST, help="How many of the newest records.")]
dead_letters_app = typer.Typer(no_args_is_help=True, add_completion=False)
_COLUMNS = ("from_topic", "from_partition", "from_offset", "reason", "group", "key", "message")


def tail(
    topic: Annotated[str, typer.Argument(help="Its name without the prefix, such as serving.predictions.v1.")],
    last: Last = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new records until Ctrl-C.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="From the beginning.")] = False,
    kafka: Kafka = None,
    topic_prefix: Prefix = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print a topic's records, decoded; with --json each with its place, time, key and headers."""
    with answering(as_json) as answer:
        target = Target(stack, home).kafka(kafka, topic_prefix)
        name = topic.removeprefix(target.prefix)
        decoder = Decoder.of(name)

        async def show() -> None:
            reading = read_topic(target, name, last=None if everything else last, follow=follow)
            async with aclosing(reading) as records:
                async for record in records:
                    if as_json:
                        answer.json(decoder.envelope(record))
                    else:
                        answer.value(decoder.value(record.value))

        try:
            asyncio.run(show())
        except KeyboardInterrupt:
            return


@dead_letters_app.callback()
def group() -> None:
    """Records that a service refused."""


@dead_letters_app.command("list")
def list_dead_letters(
    stream: Annotated[str | None, typer.Argument(help="A stream; every dead-letter topic unless told.")] = None,
    last: Last = 20,
    reason: Annotated[str | None, typer.Option(help="Only this reason.")] = None,
    kafka: Kafka = None,
    topic_prefix: Prefix = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List refused records with their reason; their bytes are in the topic, untouched."""
    with answering(as_json) as answer:
        target = Target(stack, home).kafka(kafka, topic_prefix)
        found = asyncio.run(_letters(target, stream, last))
        letters = [letter for letter in found if reason is None or letter["reason"] == reason]
        if as_json:
            answer.json({"dead_letters": letters})
        rows = [[letter[name] for name in _COLUMNS] for letter in letters]
        answer.table(_COLUMNS, rows, "no dead letters")


async def _letters(target: KafkaTarget, stream: str | None, last: int) -> list[dict[str, Any]]:
    """Return the newest dead letters of a stream, or of every topic that holds some."""
    topics = await list_topics(target)
    wanted = [name for name in topics if name.endswith(".dlq") or name == "ingestion.dead-letters.v1"]
    if stream is not None:
        wanted = [name for name in wanted if name == f"events.{stream}.dlq"]
        if not wanted:
            raise RefusedError(f"stream {stream!r} has no dead-letter topic; is it registered?", USAGE)
    letters = []
    for name in wanted:
        decoder = Decoder.of(name)
        async with aclosing(read_topic(target, name, last=last, follow=False)) as records:
            letters += [dead_letter(decoder.envelope(record)) async for record in records]
    return letters
