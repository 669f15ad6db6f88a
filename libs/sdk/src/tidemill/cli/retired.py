"""What commands that end streams, views and pipelines share: the reason that they take, and their answer."""

from typing import Annotated

import typer
from tidemill_contracts.canonical import to_dict
from tidemill_contracts.registry.v1.registry_pb2 import ApplyDefinitionResponse

from tidemill.cli.answers import Answer

Why = Annotated[str, typer.Option("--why", "--reason", help="The reason, kept in the audit trail.")]


def say_retired(answer: Answer, done: ApplyDefinitionResponse) -> None:
    """Say of each object whether it ended now or before."""
    if answer.as_json:
        answer.json({"changes": [to_dict(change) for change in done.changes]})
    for change in done.changes:
        said = "is retired" if change.change == "retired" else "was retired before"
        answer.say(f"{change.kind} {change.name} {said} (revision {change.revision})")
