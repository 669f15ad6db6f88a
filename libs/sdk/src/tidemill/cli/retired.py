"""What commands that end streams, views and pipelines share: the reason that they take, and how they end one."""

from collections.abc import Sequence
from typing import Annotated

import typer
from tidemill_contracts.canonical import to_dict

from tidemill.cli.answers import USAGE, RefusedError, answering
from tidemill.cli.following import behind, told
from tidemill.cli.targets import Target
from tidemill.clients.calls import actor
from tidemill.clients.registry import RegistryClient

Why = Annotated[str, typer.Option("--why", "--reason", help="The reason, kept in the audit trail.")]


def retire_objects(
    target: Target,
    registry: str | None,
    ended: tuple[str, Sequence[str]],
    *,
    why: str,
    as_json: bool,
    allow_breaking: bool = False,
) -> None:
    """End objects, `ended` by their kind and names; say of each whether it ended now or before, and who waits."""
    kind, names = ended
    with answering(as_json) as answer:
        if allow_breaking and not why.strip():
            raise RefusedError("--allow-breaking needs --why: say why it may break", USAGE)
        with target.connect("registry", registry) as connection:
            client = RegistryClient(connection)
            done = client.retire(kind, names, actor(), allow_breaking=allow_breaking, reason=why)
            waits = behind(target, connection)
        if as_json:
            answer.json({"changes": [to_dict(change) for change in done.changes], "behind": waits})
        for change in done.changes:
            said = "is retired" if change.change == "retired" else "was retired before"
            answer.say(f"{change.kind} {change.name} {said} (revision {change.revision})")
        for line in told(waits):
            answer.say(line)
