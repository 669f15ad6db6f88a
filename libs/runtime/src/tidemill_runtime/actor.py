"""Who acts: every call that changes something says so in metadata `x-tidemill-actor`."""

from collections.abc import Iterable
from typing import Protocol

from tidemill_contracts.reasons import Reason

from tidemill_runtime.errors import Poison

ACTOR_KEY = "x-tidemill-actor"
MAX_CHARS = 200
_FIX = f"send metadata {ACTOR_KEY}, for instance 'anna@example.org' or 'service/training'"


class Call(Protocol):
    """What a servicer method gets as its context, as far as needed here."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def require_actor(call: Call) -> str:
    """Return who makes a changing call. Raises `Poison(MISSING_ACTOR)`, which says what to do."""
    given = [value for key, value in call.invocation_metadata() or () if key == ACTOR_KEY]
    actor = given[0] if given else ""
    return check_actor(actor if isinstance(actor, str) else "")


def check_actor(actor: str) -> str:
    """Return the actor where it can stand in an audit record.

    >>> check_actor("service/training")
    'service/training'
    """
    if not actor.strip():
        raise Poison(Reason.MISSING_ACTOR, "a call that changes something names its actor", field=ACTOR_KEY, fix=_FIX)
    if len(actor) > MAX_CHARS or not actor.isprintable():
        raise Poison(Reason.MISSING_ACTOR, f"an actor is at most {MAX_CHARS} printable characters", field=ACTOR_KEY)
    return actor.strip()
