"""tail: any topic as readable JSON."""

import asyncio
from contextlib import aclosing
from typing import Annotated

import typer

from tidemill.cli.answers import answering
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Kafka, Prefix, StackName, Target
from tidemill.clients.decoding import Decoder
from tidemill.clients.topics import read_topic

MAX_LAST = 100_000
Last = Annotated[int, typer.Option("--last", "-n", min=0, max=MAX_LAST, help="How many of the newest records.")]


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
